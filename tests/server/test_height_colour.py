"""Height maps with colour photos through the command line."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from refdiff.agent.work.batches import parts_of
from refdiff.memory.journals.batches import LeftOut
from refdiff.model.images import encode_png
from refdiff.model.synthesis.height import SolidPart, Stain, xyz_tiff
from refdiff.server.cli import main

from .conftest import said

PART = SolidPart("bracket")


def write(path: Path, seed: int, stain: Stain | None = None) -> Path:
    """A height map, and its photo beside it."""
    rng = np.random.default_rng((8, seed))
    made = PART.height_map(rng, size=(128, 128), mm_per_px=0.9)
    path.write_bytes(xyz_tiff(made.mm, 0.9))
    path.with_suffix(".png").write_bytes(encode_png(PART.colour_photo(made, rng, stain)))
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good/, three pairs."""
    for name, value in (
        ("REFDIFF_HOME", tmp_path / "home"),
        ("REFDIFF_CACHE", tmp_path / "cache"),
        ("REFDIFF_LLM", "off"),
    ):
        monkeypatch.setenv(name, str(value))
    (tmp_path / "good").mkdir()
    for i in range(3):
        write(tmp_path / "good" / f"{i}.tiff", i)
    (tmp_path / "plate.yaml").write_text("depth: {unit_mm: 1, values: distance, colour: true}\n")
    return tmp_path


def test_pairs_are_enrolled_calibrated_and_inspected_and_a_lone_height_map_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["product", "set", "plate", "--spec", str(root / "plate.yaml")]) == 0
    code, enrolled = said(capsys, "enroll", "--product", "plate", "--kind", "depth", str(root / "good"))
    assert (code, len(enrolled["added"]), enrolled["refused"]) == (0, 3, [])
    code, calibrated = said(capsys, "calibrate", "--product", "plate")
    assert (code, len(calibrated["maps"])) == (0, 2)
    part = write(root / "bad.tiff", 100, Stain(36.0, 17.0, 5.0))
    inspect = ["inspect", "--part", "1", "--product", "plate", "--image", str(part)]
    code, report = said(capsys, *inspect, "--html", str(root / "bad.html"))
    assert (code, report["verdict"]) == (2, "REVIEW"), "three good parts"
    assert report["findings"][0]["found_in"] == ["colour"]
    assert "colour change" in (root / "bad.html").read_text()

    photo = part.with_suffix(".png").rename(root / "elsewhere.png")
    code, answer = said(capsys, *inspect)
    assert (code, "--colour FILE" in answer["error"]["message"]) == (65, True)
    code, again = said(capsys, *inspect, "--colour", str(photo))
    assert (code, again["query_sha256"]) == (2, report["query_sha256"])
    # a registration differs by 1e-5 px from run to run, and three good parts spread little
    assert again["image_score"] == pytest.approx(report["image_score"], rel=0.1)
    code, taken = said(capsys, "capture", "--part", "2", "--product", "plate", str(part), "--colour", str(photo))
    assert (code, taken["sha256"]) == (0, report["query_sha256"])
    assert main.run(["inspect", "--part", "2", "--colour", str(photo)]) == 64


def test_watched_folder_takes_the_photo_that_lies_in_the_folder_beside_also_where_it_comes_later(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["product", "set", "plate", "--spec", str(root / "plate.yaml")]) == 0
    assert main.run(["enroll", "--product", "plate", "--kind", "depth", str(root / "good")]) == 0
    for name in ("xyz", "rgb"):
        (root / "line" / name).mkdir(parents=True)
    heights = [write(root / "line" / "xyz" / f"part{i}.tiff", 110 + i) for i in range(2)]
    photos = [h.with_suffix(".png").rename(root / "line" / "rgb" / f"{h.stem}.png") for h in heights]
    late = photos[1].rename(root / "late.png")
    coming = threading.Timer(2, lambda: late.rename(photos[1]))
    coming.start()
    folder = str(root / "line" / "xyz")
    code, watched = said(
        capsys, "watch", folder, "--product", "plate", "--pattern", r"(?P<part>\w+)", "--once", "--workers", "1"
    )
    coming.join()
    assert code == 0
    assert sorted(p.name for p in (root / "line" / "xyz" / "done").iterdir()) == ["part0.tiff", "part1.tiff"], watched
    assert all(p.exists() for p in photos)


def test_batch_of_a_folder_has_one_part_a_pair(root: Path) -> None:
    parts = list(parts_of(root / "good", "plate", in_colour=True))
    assert [(p.name, getattr(p, "part_id", None)) for p in parts] == [(f"{i}.tiff", str(i)) for i in range(3)]


def test_batch_names_a_colour_photo_without_a_height_map_among_what_is_left_out(root: Path) -> None:
    for name in ("xyz", "rgb"):
        (root / name).mkdir()
    height = write(root / "xyz" / "1.tiff", 1)
    height.with_suffix(".png").rename(root / "rgb" / "1.png")
    (root / "rgb" / "7.png").write_bytes((root / "good" / "2.png").read_bytes())
    [part, left] = parts_of(root / "xyz", "plate", in_colour=True)
    assert (part.name, Path(left.name).name) == ("1.tiff", "7.png")
    assert isinstance(left, LeftOut)
    assert "without a height map of its name" in left.reason
