"""A change of pixel format within a product: refused where it shows in the file, REVIEW where it shows in the pixels."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.inspection.pixel_format import format_problem
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

COLOUR = render("circuit", 1, 0, size=(96, 128)).image
GREY = np.repeat(COLOUR[..., 1:2], 3, axis=2)
NOISE = np.random.default_rng(0).normal(0, 1.5, COLOUR.shape)
RED_LIGHT = (GREY * np.array([1, 0.12, 0.08]) + NOISE).clip(0, 255).astype(np.uint8)
TINTED = (GREY * np.array([1, 0.9, 0.7])).astype(np.uint8)
WARM = (COLOUR * np.array([1, 0.85, 0.7])).astype(np.uint8)
PAINTED = COLOUR.copy()
PAINTED[:, 32:] = (90, 90, 95)


def shown(share: float, offset: float = 40) -> NDArray[np.uint8]:
    """The part as an intensity window shows it, its range times `share`."""
    return np.clip(offset + COLOUR * (170 / 255 * share), 0, 255).astype(np.uint8)


PROBLEMS = {
    "in colour": (COLOUR, COLOUR, False, ""),
    "grey": (GREY, GREY, False, ""),
    "grey part in colour": (COLOUR, np.dstack([GREY[..., :2], GREY[..., 0] // 2]), False, ""),
    "grey photo": (GREY, COLOUR, False, "the photo is grey (a monochrome camera, or raw sensor data?)"),
    "photo in colour": (COLOUR, GREY, False, "the photo is in colour, the golden sample grey"),
    "under red light": (RED_LIGHT, COLOUR, False, "the photo has shades of one colour, the golden sample several"),
    "grey with a tint": (TINTED, COLOUR, False, "the photo has shades of one colour"),
    "both under red light": (RED_LIGHT, RED_LIGHT, False, ""),
    "in colour, golden sample under red light": (COLOUR, RED_LIGHT, False, ""),
    "under warm light": (WARM, COLOUR, False, ""),
    "three quarters painted grey": (PAINTED, COLOUR, False, ""),
    "without any light": ((40 + NOISE).astype(np.uint8), COLOUR, False, ""),
    "dark, 8-bit": (shown(0.05), COLOUR, False, ""),
    "deep": (shown(1), shown(1), True, ""),
    "deep, half as bright": (shown(0.5), shown(1), True, ""),
    "12 bits instead of 16": (shown(1 / 16), shown(1), True, "% of the range"),
    "12 bits instead of 14": (shown(1 / 4), shown(1), True, "% of the range"),
    "16 bits instead of 12": (shown(16), shown(1), True, "% of the samples lie outside"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_photo_of_another_format_is_a_problem_in_words(name: str) -> None:
    query, golden, deep, words = PROBLEMS[name]
    problem = format_problem(query, golden, deep=deep)
    assert problem == "" if not words else words in problem


def deep_png(image: NDArray[np.uint8], factor: int) -> bytes:
    return cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * factor)[1].tobytes()


def deep_grey(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 1].astype(np.uint16) * 16).save(buffer, "PNG")
    return buffer.getvalue()


def test_formats_do_not_mix_within_a_product(tmp_path: Path) -> None:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    model = ModelSettings(cache=tmp_path / "cache", working_px=96)
    photos = [render("circuit", 1, i, size=(96, 128), noise_seed=i).image for i in range(3)]
    with Workspace.open(memory, model, ToolsSettings(references=1)) as workspace:

        def enrolled(product: str, *files: bytes) -> list[str]:
            uploads = [Upload(f"{i}.png", data) for i, data in enumerate(files)]
            return [r.reason for r in enroll(workspace, product, uploads).refused]

        def capture(product: str, data: bytes) -> list[str]:
            photo = Upload("photo.png", data)
            taken = record_capture(workspace.stores, "1", product, photo, settings=model)
            return inspect_photo(workspace, taken).problems

        assert enrolled("deep", deep_png(photos[0], 16), deep_png(photos[1], 16)) == []
        assert enrolled("usual", encode_png(photos[0]), encode_png(photos[1])) == []
        # golden samples
        assert "8-bit samples" in enrolled("deep", encode_png(photos[2]))[0]
        assert "16-bit colour samples" in enrolled("usual", deep_png(photos[2], 16))[0]
        assert workspace.stores.products.get("usual").intensity_window is None  # type: ignore[union-attr]
        # photos
        with pytest.raises(ImageError, match="holds 8-bit samples"):
            capture("deep", encode_png(photos[2]))
        with pytest.raises(ImageError, match=r"16-bit colour samples, .* its golden samples are 8-bit"):
            capture("usual", deep_png(photos[2], 16))
        assert not capture("deep", deep_png(photos[2], 16))
        assert "outside the product's intensity window" in capture("deep", deep_png(photos[2], 256))[0]
        assert "fill only" in capture("deep", deep_png(photos[2], 1))[0]
        assert "the photo is grey" in capture("deep", deep_grey(photos[2]))[0]
        assert "the photo is grey" in capture("usual", encode_png(photos[2][..., 1]))[0]
