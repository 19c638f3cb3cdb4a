"""What is one finding and what is two: lobes of the map, pieces of one line; and what is drawn of them."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csgraph
from scipy.spatial.distance import cdist

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import Finding, Location
from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.images import Box, Mask
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.pieces import Extent, extent_of, things
from refdiff.tools.vision.measurement import Measurement, measured_as_one
from refdiff.tools.vision.regions import MAP_PX, MAX_REGIONS, Region, find_regions, map_size, merged
from refdiff.tools.vision.shape import Shape, belong_together, bridged, length_and_width, tight, union

SIZE = (240, 320)
CELL = 10.0
THRESHOLD = 0.06
Map = NDArray[np.float32]


def turned(points: NDArray, angle: float) -> NDArray:
    """(n, 2) offsets from the middle of the picture, turned about it."""
    t = math.radians(angle)
    turn = np.array([[math.cos(t), math.sin(t)], [-math.sin(t), math.cos(t)]])
    return np.asarray(np.asarray(points, float) @ turn + (SIZE[1] / 2, SIZE[0] / 2))


def stroke(canvas: NDArray, points: NDArray, value: float = 1.0, wide: int = 2) -> NDArray:
    line = np.round(points * 16).astype(np.int32)
    return np.asarray(cv2.polylines(canvas, [line], False, (value,), wide, cv2.LINE_8, 4))


def halo(sharp: NDArray) -> Map:
    """As the network shows it: a halo of some cells round every defect, its peak as strong as the defect."""
    near = cv2.GaussianBlur(sharp, (0, 0), 5) + 0.1 * cv2.GaussianBlur(sharp, (0, 0), 12)
    return np.asarray(near / max(float(near.max()), 1e-9), np.float32)


def lines(*parts: tuple[NDArray, float]) -> Callable[[float], Map]:
    """A map of polylines, each of a strength, turned by an angle."""

    def made(angle: float) -> Map:
        sharp = np.zeros(SIZE, np.float32)
        for points, strength in parts:
            sharp = np.maximum(sharp, stroke(np.zeros(SIZE, np.float32), turned(points, angle), strength))
        return halo(sharp)

    return made


def spots(*centres: tuple[float, float]) -> Callable[[float], Map]:
    def made(angle: float) -> Map:
        sharp = np.zeros(SIZE, np.float32)
        for x, y in turned(np.array(centres), angle):
            cv2.circle(sharp, (round(x), round(y)), 5, (1.0,), -1)
        return halo(sharp)

    return made


LOBES = {
    "one spot": (spots((0, 0)), 1),
    "two spots whose halos meet": (spots((-20, 0), (20, 0)), 2),
    "two spots that the map shows as one": (spots((-5, 0), (5, 0)), 1),
    "three spots": (spots((-40, 0), (0, 0), (30, 25)), 3),
    "a line": (lines((np.array([[-70, 0], [70, 0]]), 1.0)), 1),
    "a line that is faint in the middle": (
        lines(
            (np.array([[-80, 0], [-40, 0]]), 1.0),
            (np.array([[-40, 0], [40, 0]]), 0.2),
            (np.array([[40, 0], [80, 0]]), 1.0),
        ),
        1,
    ),
    "two lines beside each other": (
        lines((np.array([[-40, -18], [40, -18]]), 1.0), (np.array([[-40, 18], [40, 18]]), 1.0)),
        2,
    ),
}


@pytest.mark.parametrize("angle", [0, 37, 90, 155])
@pytest.mark.parametrize("case", LOBES)
def test_regions_are_the_lobes_of_the_map(case: str, angle: float) -> None:
    draw, wanted = LOBES[case]
    heat = draw(angle)
    connected = cv2.connectedComponents((heat > THRESHOLD).astype(np.uint8))[0] - 1
    found = find_regions(heat, THRESHOLD, cell=CELL)
    assert len(found) == wanted, f"{connected} connected above the threshold"
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)
    for region in found:
        x0, y0, x1, y1 = region.box
        assert region.mask.any(0).all() or region.mask.any(1).all()
        assert (heat[y0:y1, x0:x1][region.mask] > THRESHOLD).all()
    whole = union([(r.box, r.mask) for r in found])[1]
    assert whole.sum() == sum(r.area_px for r in found)  # no px is in two


def test_lobes_of_a_shrunk_map_are_those_of_the_map() -> None:
    """A map of which a cell has many px is looked at smaller."""
    for case, (draw, wanted) in LOBES.items():
        heat = cv2.resize(draw(20), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
        assert len(find_regions(heat, THRESHOLD, cell=4 * CELL)) == wanted, case


def test_halo_of_a_strong_defect_does_not_hide_a_weak_one_beside_it() -> None:
    heat = np.asarray(np.maximum(spots((-18, 0))(0), 0.09 * spots((18, 0))(0)), np.float32)
    low = 0.004  # as good parts that hardly differ set it
    assert cv2.connectedComponents((heat > low).astype(np.uint8))[0] - 1 == 1
    strong, weak = find_regions(heat, low, cell=CELL)
    assert (strong.peak, weak.peak) == (1.0, pytest.approx(0.09))


@pytest.mark.parametrize("apart", [11, 13])
@pytest.mark.parametrize("count", [26, 42, 60, 100])
def test_lobes_too_small_to_be_regions_join_their_neighbour(apart: int, count: int) -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    peaks = [np.exp(-((x - 150 - at) ** 2 + (y - 120) ** 2) / 18) for at in (0, apart)]
    heat = np.maximum(peaks[0], 0.8 * peaks[1]).astype(np.float32)
    threshold = float(np.sort(heat.ravel())[-count - 1])
    wanted = int((heat > threshold).sum())
    found = find_regions(heat, threshold, cell=CELL)
    assert sum(r.area_px for r in found) == wanted
    assert len(found) == 1 or min(r.area_px for r in found) >= (CELL / 2) ** 2


def test_halo_that_does_not_count_does_not_make_a_lobe() -> None:
    """Above a very low threshold each of two specks has a wide halo; only together they are large enough."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    near = np.minimum(*(np.hypot(x - 150 - at, y - 120) for at in (0, 14)))
    heat = np.where(near < 2.6, 1 - 0.1 * near, 0.08 * np.exp(-near / 20)).astype(np.float32)
    [region] = find_regions(heat, 0.01, cell=CELL)
    assert region.area_px == int((near < 2.6).sum())


def test_texture_takes_no_place_of_another_defect() -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]].astype(np.float32)
    near = (x < 180) & (np.abs(y - 120) < 100)
    texture = np.where(near, (0.55 + 0.45 * np.cos(x * math.pi / 16)) * (0.55 + 0.45 * np.cos(y * math.pi / 16)), 0)
    heat = np.maximum(texture, 0.3 * spots((110, 60))(0)).astype(np.float32)
    found = find_regions(heat, THRESHOLD, cell=CELL)
    assert len(found) < MAX_REGIONS  # none was left out
    assert any(r.box[0] > 200 for r in found)
    above = (heat > THRESHOLD) & ((heat > 0.1 * heat.max()) | ~near)
    assert sum(r.area_px for r in found) >= 0.95 * above.sum()


def piece(*points: tuple[float, float], angle: float = 0, wide: int = 2) -> tuple[Box, Mask]:
    return tight(stroke(np.zeros(SIZE, np.uint8), turned(np.array(points), angle), 1, wide) > 0, (0, 0))


def disc(x: float, y: float, radius: int, angle: float = 0) -> tuple[Box, Mask]:
    ((x, y),) = turned(np.array([[x, y]]), angle)
    return tight(cv2.circle(np.zeros(SIZE, np.uint8), (round(x), round(y)), radius, (1,), -1) > 0, (0, 0))


# pieces at an angle, and whether they are of one thing
PIECES: dict[str, tuple[Callable[[float], list[tuple[Box, Mask]]], bool]] = {
    "a straight line in two": (lambda a: [piece((-70, 0), (-15, 0), angle=a), piece((15, 0), (60, 3), angle=a)], True),
    "a crooked line in two": (
        lambda a: [
            piece((-80, 6), (-60, -2), (-40, 4), (-16, 0), angle=a), piece((16, 4), (34, -3), (60, 5), angle=a),
        ],
        True,
    ),
    "a bent line in two": (lambda a: [piece((-70, 20), (-12, 0), angle=a), piece((12, 0), (70, 20), angle=a)], True),
    "pieces nearer than a cell": (lambda a: [disc(-12, 0, 8, angle=a), disc(12, 0, 8, angle=a)], True),
    "pieces that share px": (lambda a: [disc(-6, 0, 8, angle=a), piece((0, 0), (50, 0), angle=a)], True),
    "a spot in the hole of a ring": (
        lambda a: [tight(cv2.circle(np.zeros(SIZE, np.uint8), (160, 120), 40, (1,), 2) > 0, (0, 0)), disc(0, 0, 5)],
        False,
    ),
    "two spots": (lambda a: [disc(-15, 0, 5, angle=a), disc(15, 0, 5, angle=a)], False),
    "two large spots": (lambda a: [disc(-25, 0, 14, angle=a), disc(25, 0, 14, angle=a)], False),
    "lines beside each other": (
        lambda a: [piece((-60, -12), (60, -12), angle=a), piece((-60, 12), (60, 12), angle=a)], False,
    ),
    "lines one behind the other, but aside": (
        lambda a: [piece((-80, -14), (-10, -14), angle=a), piece((10, 14), (80, 14), angle=a)], False,
    ),
    "lines at a right angle": (lambda a: [piece((-70, 0), (-15, 0), angle=a), piece((15, -5), (15, 50), angle=a)], False),
    "a spot beside a line": (lambda a: [piece((-60, 0), (60, 0), angle=a), disc(0, 25, 6, angle=a)], False),
    "a spot beyond the end of a line": (lambda a: [piece((-70, 0), (0, 0), angle=a), disc(30, 0, 5, angle=a)], False),
    "short lines far apart": (lambda a: [piece((-70, 0), (-45, 0), angle=a), piece((45, 0), (70, 0), angle=a)], False),
}  # fmt: skip


@pytest.mark.parametrize("angle", [0, 28, 90, 133])
@pytest.mark.parametrize("case", PIECES)
def test_pieces_of_one_line_belong_together_and_things_beside_each_other_do_not(case: str, angle: float) -> None:
    made, together = PIECES[case]
    one, other = (Shape.of(*at) for at in made(angle))
    assert belong_together(one, other, CELL) is together
    assert belong_together(other, one, CELL) is together


def measured(box: Box, mask: Mask) -> Measurement:
    return Measurement(box, mask, "centre", 10.0, 2.0, 1.0, "difference", 0.7)


def region(number: int, box: Box, mask: Mask, peak: float = 1.0) -> Region:
    return Region(f"r{number}", box, "centre", int(mask.sum()), peak, mask)


def test_a_line_in_many_pieces_is_one_thing_with_its_whole_length() -> None:
    cuts = [(-100, -60), (-40, -10), (15, 50), (70, 110)]
    along = [piece((a, 0), (b, 0), angle=20) for a, b in cuts]
    beside = disc(0, 45, 6, angle=20)
    pieces = [
        (region(i, *at), measured(*at)) for i, at in enumerate([along[2], beside, along[0], along[3], along[1]], 1)
    ]
    line, spot = things(pieces, CELL)
    assert [[r.id for r, _ in t] for t in (line, spot)] == [["r1", "r3", "r4", "r5"], ["r2"]]
    whole = measured_as_one([m for _, m in line], SIZE, mm_per_px=0.1, scale_uncertainty=0.01)
    assert whole.length_px == pytest.approx(210, abs=4)
    assert whole.length_mm == pytest.approx(0.1 * whole.length_px)
    assert whole.area_px == sum(int(mask.sum()) for _, mask in along)
    assert whole.uncertainty_px == pytest.approx(2.0)
    assert measured_as_one([m for _, m in spot], SIZE, None) is spot[0][1]
    joined = merged([r for r, _ in line], np.zeros((4, 60, 80), np.float32), SIZE)
    assert (joined.id, joined.box, joined.area_px) == ("r1", whole.box, whole.area_px)


@pytest.mark.parametrize("angle", [0, 10, 45, 90])
@pytest.mark.parametrize(
    ("wide", "count", "reach"), [(2, 3, 300), (5, 3, 3000), (2, 45, 900), (4, 16, 1500), (9, 2, 120)]
)
def test_width_of_a_joined_line_is_that_of_its_pieces(angle: float, wide: int, count: int, reach: int) -> None:
    along = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
    size = (reach + 40, reach + 40)
    pieces = []
    for start in np.linspace(0, 1, count, endpoint=False):
        ends = 20 + along * reach * np.array([[start], [start + 0.7 / count]])
        at = tight(stroke(np.zeros(size, np.uint8), ends, 1, wide) > 0, (0, 0))
        length, width = length_and_width(at[1], 0.0)
        pieces.append(replace(measured(*at), length_px=length, width_px=width))
    whole = measured_as_one(pieces, size, None)
    assert whole.width_px == pytest.approx(np.mean([p.width_px for p in pieces]), rel=0.02)
    assert whole.length_px == pytest.approx(reach * (1 - 0.3 / count), rel=0.03, abs=1.3 * wide)


def test_joined_pieces_that_are_no_line_are_as_wide_as_all_of_them() -> None:
    lines = [piece((-30, y), (30, y), wide=8) for y in (-8, 0, 8)]
    discs = [disc(-12, 0, 8), disc(12, 0, 8)]
    for beside, width in ((lines, 25), (discs, 17)):
        pieces = [replace(measured(*at), length_px=60.0, width_px=8.0) for at in beside]
        assert measured_as_one(pieces, SIZE, None).width_px == pytest.approx(width, abs=2)


@pytest.mark.parametrize("seed", range(6))
def test_pieces_of_a_mask_are_bridged_where_they_are_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((120, 160), bool)
    for _ in range(4 + 12 * seed):
        y, x = rng.integers(4, 110), rng.integers(4, 150)
        mask[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = True
    n, labels = cv2.connectedComponents(mask.astype(np.uint8))
    joined = bridged(mask)
    assert cv2.connectedComponents(joined.astype(np.uint8))[0] == 2
    assert joined[mask].all()
    at = [np.argwhere(labels == k) for k in range(1, n)]
    apart = np.array([[cdist(a, b).min() for b in at] for a in at])
    shortest = csgraph.minimum_spanning_tree(apart).sum()
    assert (joined & ~mask).sum() <= 1.05 * shortest


def random_extent(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Measurement, Extent]:
    """What some random pieces and a random map give; the photo is of that size, its map may be smaller."""
    heat = cv2.GaussianBlur(rng.random(map_size(size), np.float32), (0, 0), 2)
    pieces = []
    for number in range(1, int(rng.integers(2, 5))):
        shown, seen = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
        at = rng.uniform(0, 1, (6, 2)) * (size[1], size[0])
        cv2.fillPoly(shown, [at[:3].astype(np.int32)], (1,))
        stroke(seen, at[3:], 1, int(rng.integers(1, 9)))
        seen[rng.random(size) < 0.2] = 0
        seen[int(rng.integers(size[0])), int(rng.integers(size[1]))] = 1
        (box, mask), pixels = tight(shown > 0, (0, 0)), tight(seen > 0, (0, 0))
        peak = float(rng.uniform(0.3, 1)) * float(heat.max())
        pieces.append((region(number, box, mask, peak), measured(*pixels)))
    whole = measured_as_one([m for _, m in pieces], size, None)
    return whole, extent_of(pieces, whole, heat, size, float(rng.uniform(1, 12)))


def drawn(extent: Extent, size: tuple[int, int]) -> Mask:
    plain = np.zeros(size, np.uint8)
    return np.asarray(cv2.fillPoly(plain, extent.outline, (1,)) > 0)


@pytest.mark.parametrize("seed", range(24))
def test_box_holds_the_outline_and_the_outline_all_measured_px(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = ((int(rng.integers(20, 200)), int(rng.integers(20, 200))), (MAP_PX + 300, 60), (40, MAP_PX + 900))
    size = sizes[0] if seed % 10 else sizes[1 + seed // 10 % 2]
    m, extent = random_extent(rng, size)
    inside = drawn(extent, size)
    x0, y0, x1, y1 = m.box
    assert inside[y0:y1, x0:x1][m.mask].all()
    assert tight(inside, (0, 0))[0] == extent.box  # no wider either
    x0, y0, x1, y1 = extent.box
    assert 0 <= x0 < x1 <= size[1]
    assert 0 <= y0 < y1 <= size[0]
    assert inside[y0:y1, x0:x1][extent.mask].all()
    kept = KeptDifference(np.zeros((8, 8), np.float32), 0.5, np.eye(3), [extent.outline])
    (again,) = KeptDifference.decode(kept.encode()).outlines or ()
    assert all((a == b).all() for a, b in zip(again, extent.outline, strict=True))


def test_what_the_map_is_sure_of_and_no_px_explain_is_drawn_too() -> None:
    heat = np.maximum(spots((-60, 0))(0), spots((60, 0))(0))
    whole = tight(heat > THRESHOLD, (0, 0))
    seen = disc(-60, 0, 4)
    for near, drawn_too in ((seen, True), (union([seen, disc(60, 0, 4)]), False)):
        m = measured(*near)
        extent = extent_of([(region(1, *whole), m)], m, heat, SIZE, CELL)
        assert (extent.box != m.box) is drawn_too
        assert extent.box[2] >= 215


def test_a_thing_as_large_as_its_photo_takes_little_memory() -> None:
    size, line = (6000, 10_000), np.zeros((6000, 10_000), np.uint8)
    cv2.line(line, (100, 100), (9900, 5900), (1,), 40)
    parts = [tight(np.where(np.arange(size[1]) // 5000 == k, line, 0) > 0, (0, 0)) for k in (0, 1)]
    heat = np.zeros(map_size(size), np.float32)
    cv2.line(heat, (41, 41), (4055, 2417), (1.0,), 17)
    types = np.zeros((4, 60, 100), np.float32)
    types[2] = 1
    whole, photo = union(parts), size[0] * size[1]
    measurement = measured(*whole)
    tracemalloc.start()
    joined = merged([region(k, *at) for k, at in enumerate(parts, 1)], types, size)
    extent = extent_of([(region(1, *whole), measurement)], measurement, heat, size, 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (joined.type, joined.box, extent.box) == (DIFFERENCE_TYPES[2], whole[0], whole[0])
    assert peak < 5.5 * photo  # bytes: of masks


@pytest.mark.parametrize("seed", range(8))
def test_overlay_draws_the_outline_round_the_px_and_the_box_round_the_outline(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    size = [(60, 90), (300, 200), (900, 1300), (2400, 1500)][seed % 4]
    m, extent = random_extent(rng, size)
    x0, y0, x1, y1 = extent.box
    found = Finding(
        id="f1", type="crack", description="", location=Location(x0=x0, y0=y0, x1=x1, y1=y1, region="centre"),
        area_px=1, confidence=0.5, evidence=["e1"], reasoning="",
    )  # fmt: skip
    grey = np.full((*size, 3), 120, np.uint8)
    made = pictures.overlay(grey, [found], [extent.outline])
    without = pictures.overlay(grey, [found], [[]])
    scale = pictures.display_scale(*size)
    target = (made.shape[1], made.shape[0])
    px = cv2.resize(drawn(extent, size).astype(np.uint8), target, interpolation=cv2.INTER_NEAREST) > 0
    stroke_px = (made != without).any(-1)
    assert stroke_px.any()
    hidden = (without != 120).any(-1)  # by the frame and its number, which are drawn last
    measured_px = np.zeros(size, np.uint8)
    measured_px[m.box[1] : m.box[3], m.box[0] : m.box[2]] = m.mask
    shown = cv2.resize(measured_px, target, interpolation=cv2.INTER_NEAREST) > 0
    edge = cv2.erode(px.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) > 0 if scale < 1 else px
    assert not (stroke_px & shown & edge).any()  # it covers nothing that it points at
    frame = (np.abs(made.astype(int) - pictures.ORANGE) < 12).all(-1)
    rows, columns = np.nonzero(frame | hidden)
    ys, xs = np.nonzero(stroke_px)
    assert columns.min() <= xs.min()
    assert xs.max() <= columns.max()
    assert rows.min() <= ys.min()
    assert ys.max() <= rows.max()
