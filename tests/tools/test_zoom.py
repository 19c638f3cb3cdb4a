"""Zoom shows the requested place of the photo and the registered reference, never enlarged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.model.errors import InputError
from refdiff.model.images import MIN_CROP_PX
from refdiff.model.synthesis.render import DefectSpec, Pose, render
from refdiff.tools.vision.crops import zoom
from refdiff.tools.vision.registration import Alignment

Box = tuple[int, int, int, int]


def registration(matrix: NDArray | None = None, ok: bool = True) -> Alignment:
    m = np.eye(3) if matrix is None else np.asarray(matrix, np.float64)
    return Alignment("known" if ok else "none", ok, m, 0.3, 1.0, 0.9, 0.0, 1.0, "for the test")


def noise(h: int, w: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("box", "margin", "used"),
    [
        ((100, 80, 200, 160), 0.25, (75, 55, 225, 185)),
        ((100, 80, 200, 160), 0.0, (100, 80, 200, 160)),
        ((0, 0, 100, 100), 0.25, (0, 0, 125, 125)),
        ((-20, 150, 60, 400), 0.0, (0, 150, 60, 240)),
        ((150, 100, 154, 103), 0.0, (128, 78, 176, 126)),  # tiny: 48 px about it
        ((0, 0, 3, 3), 0.0, (0, 0, 48, 48)),  # tiny in a corner: moved, not cut
        ((317, 237, 320, 240), 0.0, (272, 192, 320, 240)),
        ((0, 0, 320, 240), 0.25, (0, 0, 320, 240)),
    ],
)
def test_zoom_box_gets_a_margin_and_is_clipped(box: Box, margin: float, used: Box) -> None:
    query = noise(240, 320)
    crops = zoom(query, query, registration(), box, margin=margin)
    assert crops.box == used
    assert np.array_equal(crops.query, query[used[1] : used[3], used[0] : used[2]])
    assert crops.reference is not None
    assert np.array_equal(crops.reference, crops.query)
    assert crops.covered


def test_image_smaller_than_the_smallest_crop_is_shown_whole() -> None:
    query = noise(20, 30)
    assert zoom(query, None, registration(), (5, 5, 8, 8)).box == (0, 0, 30, 20)


def test_reference_crop_shows_the_registered_place() -> None:
    query, reference = noise(200, 200), np.zeros((200, 200, 3), np.uint8)
    reference[40:60, 30:50] = 255  # lies 70 px to the right and 50 px lower on the query
    shift = np.array([[1, 0, 70], [0, 1, 50], [0, 0, 1.0]])
    crops = zoom(query, reference, registration(shift), (100, 90, 120, 110), margin=0)
    assert crops.reference is not None
    lit = np.zeros((200, 200), bool)
    lit[90:110, 100:120] = True
    x0, y0, x1, y1 = crops.box
    assert np.array_equal(crops.reference[..., 0] > 127, lit[y0:y1, x0:x1])


def test_rendered_defect_is_in_the_photo_crop_only() -> None:
    pose = Pose(angle_deg=30, shift_px=(5, 3))
    bad = render("circuit", 1, 2, defects=[DefectSpec("blob", size_px=20, contrast=1.0, seed=4)], pose=pose)
    good = render("circuit", 1, 2)
    truth = bad.defects[0]
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    matrix = half @ bad.transform @ np.linalg.inv(good.transform) @ np.linalg.inv(half)
    crops = zoom(bad.image, good.image, registration(matrix), truth.box)
    x0, y0, x1, y1 = crops.box
    assert x0 <= truth.box[0] < truth.box[2] <= x1
    assert y0 <= truth.box[1] < truth.box[3] <= y1
    assert crops.covered
    assert crops.reference is not None
    mask = truth.mask[y0:y1, x0:x1]
    gap = np.abs(crops.query.astype(float) - crops.reference).max(-1)
    assert np.median(gap[mask]) > 4 * np.median(gap[~mask])


def test_large_crops_are_shrunk_and_small_ones_not_enlarged() -> None:
    query = noise(900, 1200)
    large = zoom(query, query, registration(), (0, 0, 1200, 900), max_px=512)
    assert large.query.shape == (384, 512, 3)
    assert large.reference is not None
    assert large.reference.shape == large.query.shape
    assert large.box == (0, 0, 1200, 900)
    # averaged, not picked: noise loses contrast
    assert large.query.std() < 0.7 * query.std()
    small = zoom(query, query, registration(), (600, 400, 610, 410), margin=0, max_px=512)
    assert small.query.shape == (MIN_CROP_PX, MIN_CROP_PX, 3)


def test_reference_crop_without_registration_shows_the_relative_place() -> None:
    query, reference = noise(200, 200), np.zeros((100, 400, 3), np.uint8)
    reference[50:75, 200:300] = 255  # relative 0.5..0.75 both ways
    crops = zoom(query, reference, registration(np.diag([0.5, 2, 1.0]), ok=False), (100, 100, 150, 150), margin=0)
    assert not crops.covered
    assert crops.reference is not None
    assert crops.reference.shape == crops.query.shape
    assert crops.reference.mean() > 250


def test_reference_crop_beyond_the_reference_is_grey_or_absent() -> None:
    query, reference = noise(200, 200), np.full((200, 200, 3), 255, np.uint8)
    right = registration(np.array([[1, 0, 100], [0, 1, 0], [0, 0, 1.0]]))
    partly = zoom(query, reference, right, (70, 70, 130, 130), margin=0)
    assert not partly.covered
    assert partly.reference is not None
    assert (partly.reference[:, :29] == 128).all()
    assert (partly.reference[:, 31:] == 255).all()
    outside = zoom(query, reference, right, (0, 0, 60, 60), margin=0)
    assert outside.reference is None
    assert not outside.covered


def test_zoom_without_a_reference_shows_only_the_photo() -> None:
    crops = zoom(noise(100, 100), None, registration(), (10, 10, 80, 80))
    assert crops.reference is None
    assert not crops.covered


@pytest.mark.parametrize(
    "box", [(320, 0, 400, 50), (-50, 0, 0, 50), (10, 240, 20, 260), (50, 50, 50, 60), (60, 50, 40, 60)]
)
def test_zoom_box_outside_the_image_is_refused_with_the_image_size(box: Box) -> None:
    with pytest.raises(InputError, match="320 x 240 px"):
        zoom(noise(240, 320), None, registration(), box)


@pytest.mark.parametrize(
    ("how", "name"), [({"margin": -0.1}, "margin"), ({"margin": math.nan}, "margin"), ({"max_px": 4}, "max_px")]
)
def test_invalid_zoom_arguments_are_named(how: dict[str, float], name: str) -> None:
    with pytest.raises(InputError, match=name):
        zoom(noise(240, 320), None, registration(), (0, 0, 10, 10), **how)  # type: ignore[arg-type]
