"""Moved edges and outlines, against rendered ground truth and hand-made pictures."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.model.defect_types import RenderedType
from refdiff.model.synthesis.render import DefectSpec, Light, Pose, render
from refdiff.tools.vision.edges import MovedEdge, moved_edge
from refdiff.tools.vision.outlines import outline_of
from refdiff.tools.vision.registration import Alignment

SIZE = (320, 320)
EXACT = Alignment("identity", True, np.eye(3), 0.2, 1.0, 1.0, 0.0, 1.0, "")
Picture = NDArray[np.uint8]


def step(at: float, angle_deg: float = 90.0, bright: int = 180, seed: int = 0) -> Picture:
    """(200, 200, 3): dark on one side of a line, bright on the other; at: px along its normal from the middle."""
    y, x = np.mgrid[:200, :200].astype(np.float32) - 99.5
    t = math.radians(angle_deg)
    share = np.clip(x * math.cos(t) + y * math.sin(t) - at + 0.5, 0, 1)[..., None]
    noise = np.random.default_rng(seed).normal(0, 1.5, (200, 200, 3))
    return np.clip(60 + share * (bright - 60) + noise, 0, 255).astype(np.uint8)


def found(
    photo: Picture, golden: Picture, alignment: Alignment = EXACT, *, hidden: bool = False, around: int = 0
) -> MovedEdge | None:
    """With the finding that differs most, 40 px clear of the border, as a finding has an end; around: px added to it."""
    mask = np.zeros(photo.shape[:2], bool)
    mask[40:160, 40:160] = (np.abs(photo.astype(int) - golden).max(2) > 25)[40:160, 40:160]
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return None
    box = int(xs.min()) - around, int(ys.min()) - around, int(xs.max()) + 1 + around, int(ys.max()) + 1 + around
    mask[box[1] : box[3], box[0] : box[2]] |= around > 0
    return moved_edge(photo, golden, alignment, box, mask[box[1] : box[3], box[0] : box[2]], may_be_hidden=hidden)


@pytest.mark.parametrize("angle", [0, 30, 90, 135, 200, 270])
@pytest.mark.parametrize("by", [-23.4, 6.3, 14.0])
def test_straight_edge_is_measured_to_a_fraction_of_a_pixel_at_any_angle(angle: float, by: float) -> None:
    moved = found(step(by, angle, seed=1), step(0, angle, seed=2))
    assert moved is not None
    t = math.radians(angle)
    assert (moved.dx, moved.dy) == pytest.approx((by * math.cos(t), by * math.sin(t)), abs=0.5)
    assert abs(moved.distance_px - abs(by)) < 3 * moved.uncertainty_px


def test_edge_is_measured_through_another_light_scale_and_registration() -> None:
    golden = step(0, seed=2)
    photo = np.clip(0.7 * step(-12, seed=1).astype(np.float32) + 8, 0, 255).astype(np.uint8)
    moved = found(photo, golden, replace(EXACT, matrix=np.array([[1, 0, 0], [0, 1, -3], [0, 0, 1.0]])))
    assert moved is not None
    assert (moved.dx, moved.dy) == pytest.approx((0, -9), abs=0.5)


def test_edge_is_measured_by_a_finding_that_is_larger_than_what_differs() -> None:
    moved = found(step(14, seed=1), step(0, seed=2), around=30)
    assert moved is not None
    assert (moved.dx, moved.dy) == pytest.approx((0, 14), abs=0.5)
    assert not moved.at_least


def _labelled(picture: Picture, top: int = 130) -> Picture:
    """With a label over its lower part, which hides what is behind."""
    made = picture.copy()
    made[top:] = made[top:] // 4 + 150
    made[top + 12 : top + 20] = 40
    return made


@pytest.mark.parametrize(("photo", "golden", "by"), [(60, 0, 30), (0, 60, -30)], ids=["photo's", "golden's"])
def test_edge_that_one_of_them_hides_has_moved_at_least_to_what_hides_it(photo: int, golden: int, by: int) -> None:
    pictures = [255 - step(at, seed=seed) for seed, at in enumerate((photo, golden))]
    moved = found(*map(_labelled, pictures), hidden=True)
    assert moved is not None
    assert moved.at_least
    assert (moved.dx, moved.dy) == pytest.approx((0, by), abs=2)
    assert found(*map(_labelled, pictures)) is None  # of another type, it may be a thing that is gone


def test_something_that_is_gone_is_no_hidden_edge() -> None:
    assert found(step(-60), _blob(step(-60, seed=1)), hidden=True) is None


@pytest.mark.parametrize("design", [0, 8, 18, 21])
def test_missing_cap_is_no_moved_edge_though_part_of_it_looks_like_one(design: int) -> None:
    """The rim of the neck lies 12 to 16 px from where the cap's lower or upper edge was."""
    golden = render("bottle", design, 1, size=SIZE, noise_seed=2)
    photo = render("bottle", design, 1, size=SIZE, noise_seed=1, defects=[DefectSpec("missing_component", seed=2)])
    truth = photo.defects[0]
    x0, y0, x1, y1 = truth.box
    assert y0 < 40
    assert moved_edge(photo.image, golden.image, EXACT, truth.box, truth.mask[y0:y1, x0:x1]) is None


@pytest.mark.parametrize(
    ("dx", "dy", "said"),
    [(1, 9, "lower"), (0, -5, "higher"), (-8, 3, "further left"), (6, 0, "further right"),
     (5, 5, "lower and further right"), (-4, -5, "higher and further left")],
)  # fmt: skip
def test_direction_is_told_as_it_is_seen_in_the_photo(dx: float, dy: float, said: str) -> None:
    assert MovedEdge(dx, dy, 0.2).direction == said


def _blob(picture: Picture) -> Picture:
    made = picture.copy()
    made[80:130, 70:120] = 20
    return made


@pytest.mark.parametrize(
    ("photo", "golden"),
    [
        (_blob(step(-60)), step(-60, seed=1)),  # something that lies there
        (step(-60), _blob(step(-60, seed=1))),  # something that is gone
        (step(0, bright=62), step(0, seed=1)),  # an edge that is gone
        (step(12, 90), step(0, 70, seed=1)),  # an edge that has turned
        (step(1.0, seed=1), step(0)),  # no more than registration may be off
    ],
    ids=["extra", "missing", "edge gone", "turned", "a pixel"],
)
def test_nothing_is_said_where_no_edge_has_moved_along_its_normal(photo: Picture, golden: Picture) -> None:
    assert found(photo, golden) is None


def test_nothing_is_said_of_a_finding_that_is_all_of_the_photo() -> None:
    photo, golden = step(14, seed=1), np.zeros((200, 200, 3), np.uint8)
    everything = np.ones((200, 200), bool)
    assert moved_edge(photo, golden, EXACT, (0, 0, 200, 200), everything, may_be_hidden=True) is None
    assert outline_of(photo, golden, EXACT, (0, 0, 200, 200), everything) is None


def test_nothing_is_said_without_a_registration() -> None:
    assert found(step(14), step(0, seed=2), replace(EXACT, ok=False)) is None


@pytest.mark.parametrize("seed", [0, 2, 3, 5])
def test_fill_level_is_as_much_lower_or_higher_as_it_was_drawn(seed: int) -> None:
    pose, light = Pose(angle_deg=2.0, shift_px=(3, -2)), Light(gain=0.9)
    drawn = [DefectSpec("wrong_fill_level", size_px=16, seed=seed)]
    photo = render("bottle", 5, 1, size=SIZE, pose=pose, light=light, noise_seed=1, defects=drawn)
    golden = render("bottle", 5, 1, size=SIZE, pose=pose, noise_seed=2)
    truth = photo.defects[0]
    x0, y0, x1, y1 = truth.box
    moved = moved_edge(photo.image, golden.image, EXACT, truth.box, truth.mask[y0:y1, x0:x1])
    assert moved is not None
    assert (moved.dx, moved.dy) == pytest.approx(truth.moved_px, abs=0.7)
    assert moved.direction == ("lower" if truth.moved_px and truth.moved_px[1] > 0 else "higher")


def _spot(level: float, noise: float, seed: int) -> Picture:
    """(120, 120, 3): grey, a disc of another level in the middle, and noise."""
    y, x = np.mgrid[:120, :120] - 60.0
    made = (
        120.0 + level * (np.hypot(x, y) < 20)[..., None] + np.random.default_rng(seed).normal(0, noise, (120, 120, 3))
    )
    return np.clip(made, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("photo", "golden", "told"),
    [
        (_spot(0, 2, 1), _spot(60, 2, 2), True),
        (_spot(60, 2, 1), _spot(0, 2, 2), False),
        (_spot(0, 0, 1), _spot(0, 0, 2), False),
        (_spot(0, 0.5, 1), _spot(0, 4, 2), False),
        ((_spot(60, 2, 1) * 0.4).astype(np.uint8), _spot(60, 2, 2), False),
    ],
    ids=["golden's alone", "photo's alone", "both flat", "noise in the golden", "both, the photo dark"],
)
def test_outline_is_only_the_golden_samples_where_the_photo_shows_none(
    photo: Picture, golden: Picture, told: bool
) -> None:
    y, x = np.mgrid[:40, :40] - 20.0
    outline = outline_of(photo, golden, EXACT, (40, 40, 80, 80), np.hypot(x, y) < 20)
    assert outline is not None
    assert outline.only_golden is told


@pytest.mark.parametrize(
    ("kind", "golden"),
    [("missing_component", True), ("added_component", False), ("wrong_component", False)],
)
def test_outline_tells_what_only_the_golden_sample_has(kind: RenderedType, golden: bool) -> None:
    drawn = [DefectSpec(kind, contrast=0.8, seed=4)]
    photo = render("moulded", 3, 1, size=SIZE, noise_seed=1, defects=drawn)
    good = render("moulded", 3, 1, size=SIZE, noise_seed=2)
    truth = photo.defects[0]
    x0, y0, x1, y1 = truth.box
    outline = outline_of(photo.image, good.image, EXACT, truth.box, truth.mask[y0:y1, x0:x1])
    assert outline is not None
    assert outline.only_golden is golden
    unregistered = replace(EXACT, ok=False)
    assert outline_of(photo.image, good.image, unregistered, truth.box, truth.mask[y0:y1, x0:x1]) is None
