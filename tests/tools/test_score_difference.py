"""Regions of an anomaly map, and the problem reported for a photo unlike every golden."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.regions import find_regions
from refdiff.tools.workspace import Workspace


def test_low_threshold_does_not_extend_a_region_into_its_halo() -> None:
    heat = np.zeros((160, 160), np.float32)
    heat[20:120, 20:120] = 0.05
    heat[60:80, 50:90] = 1.0
    [region] = find_regions(heat, 0.01)
    assert region.box == (50, 60, 90, 80)
    assert region.area_px == 20 * 40
    assert region.mask.shape == (20, 40)


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
