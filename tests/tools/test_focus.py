"""A photo that is far less sharp than its golden samples goes to a person, with that reason."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import Light, render
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.focus import Focus
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.workspace import Workspace

PART = render("circuit", 1, 0, size=(128, 160)).image
OTHER = render("circuit", 1, 1, size=(128, 160)).image
SURFACE = np.random.default_rng(0).normal(120, 5, PART.shape).clip(0, 255).astype(np.uint8)


def blurred(sigma: float, image: NDArray[np.uint8] = PART) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)


def planes(image: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def view(golden: NDArray[np.uint8], covered: float = 1.0, registered: bool = True) -> ReferenceView:
    reach = torch.zeros(golden.shape[:2], dtype=torch.bool)
    reach[:, : round(covered * golden.shape[1])] = True
    return ReferenceView({}, reach, registered, *((planes(golden), reach) if registered else ()))


def problem(photo: NDArray[np.uint8], *goldens: ReferenceView, ignored: NDArray[np.bool_] | None = None) -> str:
    found = Focus()
    found.add(planes(photo), goldens, ignored)
    return found.problem()


def covered_by(value: int, part: float, image: NDArray[np.uint8] = PART) -> NDArray[np.uint8]:
    """The left part of the picture under a smooth spot of one grey value."""
    out = image.copy()
    out[:, : round(part * image.shape[1])] = value
    return out


DARK_FIELD = (PART * 0.03).astype(np.uint8)
PROBLEMS = {
    "same": (PART, PART, ""),
    "another part": (OTHER, PART, ""),
    "half as bright": ((PART * 0.5).astype(np.uint8), PART, ""),
    "a fifth as bright": ((PART * 0.2).astype(np.uint8), PART, ""),
    "five times as bright": (PART, (PART * 0.2).astype(np.uint8), ""),
    "black": (np.zeros_like(PART), PART, ""),
    "slightly blurred": (blurred(0.6), PART, ""),
    "out of focus": (blurred(3), PART, "% as sharp"),
    "sharper than an unsharp golden sample": (PART, blurred(3), ""),
    "a glowing defect on a dark field": (covered_by(255, 0.3, DARK_FIELD), DARK_FIELD, ""),
    "paint over a third of it": (covered_by(120, 0.35), PART, ""),
    "another lamp": (render("circuit", 1, 1, size=(128, 160), light=Light(azimuth_deg=300)).image, PART, ""),
    "a surface without edges, less noise": (blurred(1, SURFACE), SURFACE, ""),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_focus_that_differs_too_much_is_a_problem_in_words(name: str) -> None:
    photo, golden, words = PROBLEMS[name]
    found = problem(photo, view(golden))
    assert found == "" if not words else words in found


def test_only_what_the_golden_sample_reaches_is_looked_at() -> None:
    photo = PART.copy()
    photo[:, 80:] = 0
    assert problem(photo, view(PART, covered=0.5)) == ""
    assert problem(blurred(3), view(PART, covered=0.0)) == ""
    assert problem(blurred(3), view(PART, registered=False)) == ""
    assert problem(blurred(3)) == ""


def test_one_golden_sample_like_it_is_enough() -> None:
    assert problem(blurred(3), view(PART), view(blurred(3))) == ""
    assert "as sharp" in problem(blurred(3), view(PART), view(PART))
    assert "as sharp" in problem(blurred(3), view(PART, registered=False), view(PART))


def test_ignore_zones_do_not_count() -> None:
    photo = PART.copy()
    photo[:, 48:] = blurred(4)[:, 48:]
    ignored = np.zeros((32, 40), bool)
    ignored[:, 12:] = True
    assert "as sharp" in problem(photo, view(PART))
    assert problem(photo, view(PART), ignored=ignored) == ""


def test_part_out_of_focus_is_reviewed_for_that_reason(tmp_path: Path) -> None:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    settings = ModelSettings(cache=tmp_path / "cache", working_px=160)
    with Workspace.open(memory, settings) as workspace:
        for i in range(4):
            Image.fromarray(render("circuit", 1, i, size=(128, 160)).image).save(tmp_path / f"{i}.png")
        enroll(workspace, "board", sorted(tmp_path.glob("*.png")))
        found = {}
        for name, photo in (("sharp", OTHER), ("unsharp", blurred(3, OTHER))):
            Image.fromarray(photo).save(tmp_path / "photo.png")
            upload = Upload("photo.png", (tmp_path / "photo.png").read_bytes())
            capture = record_capture(workspace.stores, name, "board", upload, settings=settings)
            found[name] = inspect_photo(workspace, capture).problems
    assert not [p for p in found["sharp"] if "sharp" in p]
    assert [p for p in found["unsharp"] if "% as sharp as its golden samples" in p]
