"""Regions of an anomaly map, and the problem reported for a photo unlike every golden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.framing.photos import Grid
from refdiff.tools.framing.tiles import Tile
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.difference import OnPhoto, ScoredCells
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.regions import find_regions, highest_without
from refdiff.tools.workspace import Workspace


def test_low_threshold_does_not_extend_a_region_into_its_halo() -> None:
    heat = np.zeros((160, 160), np.float32)
    heat[20:120, 20:120] = 0.05
    heat[60:80, 50:90] = 1.0
    [region] = find_regions(heat, 0.01)
    assert region.box == (50, 60, 90, 80)
    assert region.area_px == 20 * 40
    assert region.mask.shape == (20, 40)


def test_however_small_a_place_is_it_is_not_passed_over() -> None:
    heat = np.zeros((240, 320), np.float32)
    heat[50:80, 40:70], heat[150:152, 200:202] = 0.5, 0.4  # too small to be a finding
    (region,) = find_regions(heat, 0.3)
    found = np.zeros((480, 640), bool)  # the photo is larger than its map
    found[100:160, 80:140] = True
    assert region.box == (40, 50, 70, 80)
    assert highest_without(heat, found) == pytest.approx(0.4)
    heat[150:152, 200:202] = 0.04
    assert highest_without(heat, found) == 0.0, "it may be the halo"
    heat[150:152, 200:202], heat[60, 75] = 0.0, 0.4
    assert highest_without(heat, found) == 0.0, "one thing with what was found"


@pytest.mark.parametrize(
    ("speck", "elsewhere", "rest"),
    [
        (0.30, 0.29, 0.29),  # a broad faint stain, which no place of the map shows
        (0.30, 0.02, 0.0),
        (0.90, 0.20, 0.20),
        (0.90, 0.05, 0.0),  # what a strong defect does all over
    ],
)
def test_score_without_a_speck_is_that_of_what_is_as_strong(speck: float, elsewhere: float, rest: float) -> None:
    grid = Grid((320, 320), np.eye(3), None, True, [Tile(0, 0, 320, 320)])
    values = np.full((80, 80), 0.01, np.float32)
    values[40:70, 40:70] = elsewhere
    values[10:14, 10:14] = speck
    values[8:16, 15:17] = speck / 2  # its surroundings
    cells = ScoredCells(values, np.ones((80, 80), bool), grid, OnPhoto((320, 320), grid), 4.0)
    found = np.zeros((320, 320), bool)
    assert cells.score_without(found) == cells.score == pytest.approx(speck)
    found[40:56, 40:56] = True
    assert cells.score_without(found) == pytest.approx(rest)


def test_black_photo_is_reported_as_a_problem_and_a_good_one_is_not(tmp_path: Path) -> None:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    model = ModelSettings(cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory, model, ToolsSettings(references=1)) as workspace:
        paths = []
        for i in range(6):
            path = tmp_path / f"{i}.png"
            path.write_bytes(encode_png(render("circuit", 1, i, size=(96, 128), noise_seed=i).image))
            paths.append(path)
        enroll(workspace, "board", paths)
        photos = {"good": render("circuit", 1, 50, size=(96, 128)).image, "black": np.zeros((96, 128, 3), np.uint8)}
        found = {}
        for name, image in photos.items():
            capture = workspace.stores.captures.add(name, "board", workspace.stores.images.put(encode_png(image)))
            found[name] = [p for p in inspect_photo(workspace, capture).problems if "does not resemble any golden" in p]
    assert len(found["black"]) == 1
    assert found["good"] == []
