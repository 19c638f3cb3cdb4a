"""As fine as the smallest defect that matters: the working size, its tiles, and what is said to be too small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import SpecError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.marks import Mark, drawn, room
from refdiff.model.synthesis.render import Pose, render
from refdiff.tools.framing.frames import place_of
from refdiff.tools.framing.photos import Query
from refdiff.tools.framing.tiles import TILE_PX, Blend, grid_tiles, tiles_of
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import calibration_key
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.detectable import _Part
from refdiff.tools.inspection.difference import score_difference
from refdiff.tools.inspection.fineness import (
    MAX_WORKING_PX,
    SMALLEST_PX,
    Fineness,
    affordable_px,
    check_specification,
    frame_scale,
    needed_px,
    product_fineness,
    working_px,
)
from refdiff.tools.inspection.inspection import regions_of
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.specification import ProductSpec, parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.refinement import refined
from refdiff.tools.vision.regions import find_regions
from refdiff.tools.workspace import Workspace

SIZE = (480, 640)
GOLDENS = 3


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Product "board" with three goldens of 640 x 480 px, a little turned and moved."""
    root = tmp_path_factory.mktemp("fine")
    memory = MemorySettings(home=root / "home", qdrant_url=None)
    model = ModelSettings(cache=root / "cache", working_px=160, tiles=1)
    with Workspace.open(memory, model, ToolsSettings(references=2)) as opened:
        for i in range(GOLDENS):
            pose = Pose(angle_deg=i - 1.0, shift_px=(3.0 * i, -2.0 * i))
            image = render("label", 11, i, size=SIZE, pose=pose, noise_seed=i).image
            (root / f"{i}.png").write_bytes(encode_png(image))
        enroll(opened, "board", [root], scale_mm_per_px=0.1)
        yield opened


def photo(dot_px: float = 0.0, at: tuple[int, int] = (420, 330)) -> RgbImage:
    """A part that was never enrolled, with a dark dot of contrast .7."""
    image = render("label", 11, 40, size=SIZE, pose=Pose(angle_deg=1.5), noise_seed=9).image
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    dot = np.clip(dot_px / 2 + 0.5 - np.hypot(x - at[0], y - at[1]), 0, 1)[..., None] if dot_px else 0.0
    return np.asarray(image * (1 - 0.7 * dot), np.uint8)


# ---- tiles ----


@pytest.mark.parametrize(
    ("size", "count"),
    [((320, 320), 1), ((384, 384), 1), ((224, 416), 2), ((800, 1600), 18), ((1920, 2560), 80), ((64, 4096), 16)],
)
def test_tiles_cover_a_grid_and_overlap(size: tuple[int, int], count: int) -> None:
    tiles = tiles_of(size)
    assert len(tiles) == count
    assert len({(t.h, t.w) for t in tiles}) == 1
    assert all(n % 32 == 0 and n <= TILE_PX + 64 for t in tiles for n in (t.h, t.w))
    assert all(n % 8 == 0 for t in tiles for n in (t.y, t.x))
    seen = np.zeros(size, int)
    for t in tiles:
        assert min(t.y, t.x) >= 0
        assert (t.y + t.h <= size[0], t.x + t.w <= size[1]) == (True, True)
        seen[t.y : t.y + t.h, t.x : t.x + t.w] += 1
    assert seen.min() >= 1
    for axis, (n, side) in enumerate(zip(size, (tiles[0].h, tiles[0].w), strict=True)):
        if n > side:  # neighbours share at least a tenth
            assert (seen.max(1 - axis) >= 2).sum() >= n // 10


@pytest.mark.parametrize("size", [(320, 320), (416, 704), (800, 1600)])
def test_blended_tiles_of_one_plane_are_that_plane(size: tuple[int, int]) -> None:
    plane = np.random.default_rng(0).random((size[0] // 4, size[1] // 4), np.float32)
    blend = Blend(size, 4)
    for t in tiles_of(size):
        blend.add("plane", t, plane[t.y // 4 : (t.y + t.h) // 4, t.x // 4 : (t.x + t.w) // 4])
    assert np.allclose(blend.mean("plane"), plane, atol=1e-5)


def test_blended_tiles_that_disagree_show_no_step() -> None:
    size = (320, 1088)
    blend = Blend(size, 4)
    for i, t in enumerate(tiles_of(size)):
        blend.add("plane", t, np.full((t.h // 4, t.w // 4), float(i), np.float32))
    assert np.abs(np.diff(blend.mean("plane"), axis=1)).max() < 0.1


# ---- the working size ----


@pytest.mark.parametrize(
    ("wanted", "size", "needed"),
    [
        (SMALLEST_PX, (480, 640), 640),
        (2 * SMALLEST_PX, (480, 640), 320),
        (1000, (480, 640), 160),
        (1, (480, 640), 640),  # no more than the photo has
        (1, (40, 90), 160),
        (1, (8000, 8000), MAX_WORKING_PX),
    ],
)
def test_working_size_follows_from_the_smallest_defect(wanted: float, size: tuple[int, int], needed: int) -> None:
    assert needed_px(wanted, size, 160) == needed


@pytest.mark.parametrize(
    ("size", "tiles", "px"),
    [
        ((480, 640), 1, 320),
        ((300, 300), 4, 320),  # small photos gain nothing
        ((380, 380), 4, 320),  # nor does what a single tile holds
        ((480, 640), 2, 512),
        ((480, 640), 4, 576),
        ((480, 640), 256, 640),  # no more than the photo has
        ((1024, 1024), 2, 320),
        ((1024, 1024), 4, 576),
        ((800, 1600), 4, 800),
        ((1600, 800), 4, 800),
        ((8000, 8000), 256, 4096),
    ],
)
def test_working_size_without_a_smallest_defect_follows_from_the_tiles(
    size: tuple[int, int], tiles: int, px: int
) -> None:
    assert affordable_px(size, 320, tiles) == px
    assert len(grid_tiles(size, px, 320)) <= tiles


@pytest.fixture(scope="module")
def mixed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Golden]:
    """Product "mixed": the same part in 640 x 480 px of 0.1 mm, in 320 x 240 px of 0.2 mm, and in 640 x 480 px of unknown
    scale; a noise picture without scale in a frame of its own; in this order."""
    image = render("label", 11, 0, size=SIZE, noise_seed=1).image
    pictures = {
        "fine": (image, 0.1),
        "coarse": (cv2.resize(image, (320, 240), interpolation=cv2.INTER_AREA), 0.2),
        "unknown": (render("label", 11, 1, size=SIZE, noise_seed=2).image, None),
        "alone": (np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8), None),
    }
    folder = tmp_path_factory.mktemp("mixed")
    for name, (picture, scale) in pictures.items():
        (folder / f"{name}.png").write_bytes(encode_png(np.asarray(picture, np.uint8)))
        enroll(workspace, "mixed", [folder / f"{name}.png"], scale_mm_per_px=scale)
    return {g.filename.removesuffix(".png"): g for g in workspace.bank.list("mixed")}


@pytest.mark.parametrize(
    ("spec", "name", "needed"),
    [
        ({}, "fine", 160),
        ({"smallest_defect_px": 2 * SMALLEST_PX}, "fine", 320),
        ({"smallest_defect_px": 2 * SMALLEST_PX}, "coarse", 320),
        # whichever golden is the nearest, a frame has one size, and a defect as many px there as it needs
        ({"smallest_defect_mm": SMALLEST_PX * 0.2}, "fine", 320),
        ({"smallest_defect_mm": SMALLEST_PX * 0.2}, "coarse", 320),
        ({"smallest_defect_mm": SMALLEST_PX * 0.2}, "unknown", 320),
        ({"smallest_defect_mm": SMALLEST_PX * 0.2, "scale_mm_per_px": 9}, "fine", 320),  # its own is nearer the truth
        ({"smallest_defect_mm": SMALLEST_PX * 0.4, "scale_mm_per_px": 0.2}, "alone", 320),
        ({"smallest_defect_mm": SMALLEST_PX * 0.2}, "alone", 320),  # as the others of the product
    ],
)
def test_working_size_is_that_of_the_frame(
    workspace: Workspace, mixed: dict[str, Golden], spec: dict[str, float], name: str, needed: int
) -> None:
    assert place_of(workspace, mixed[name]).anchor_id == mixed["alone" if name == "alone" else "fine"].golden_id
    assert working_px(workspace, parse_spec(spec), mixed[name]) == needed


def test_scale_of_a_frame_follows_from_a_golden_in_it(workspace: Workspace, mixed: dict[str, Golden]) -> None:
    coarse = mixed["coarse"]
    kept = place_of(workspace, coarse)
    workspace.places[coarse.golden_id] = replace(kept, anchor_id="g-000000000000")  # an anchor that the bank has lost
    assert frame_scale(workspace, ProductSpec(), coarse) == pytest.approx(0.1, rel=0.01)
    workspace.places[coarse.golden_id] = kept


def test_what_is_too_small_is_said_in_words(workspace: Workspace) -> None:
    assert product_fineness(workspace, "board") == {
        "px": 32.0, "mm": 3.2, "working_px": 160, "summary": "defects under about 3.2 mm (32 px) are not looked for",
    }  # fmt: skip
    assert Fineness(160, 32, None).said == "defects under about 32 px are not looked for"
    assert product_fineness(workspace, "unheard of") is None


def test_smallest_defect_in_mm_needs_a_scale(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode_png(photo()))
    enroll(workspace, "no scale", [tmp_path])
    spec = parse_spec({"smallest_defect_mm": 0.3})
    with pytest.raises(SpecError, match=r"0\.3 mm is unknown in px.*--smallest-defect-px"):
        check_specification(workspace, "no scale", spec)
    check_specification(workspace, "board", spec)
    check_specification(workspace, "no scale", parse_spec({"smallest_defect_px": 9}))
    with pytest.raises(SpecError, match="in mm or in px, not both"):
        parse_spec({"smallest_defect_mm": 1, "smallest_defect_px": 9})


def test_another_smallest_defect_makes_the_calibration_stale(workspace: Workspace) -> None:
    keys = []
    for spec in ({}, {"smallest_defect_px": 30}, {"smallest_defect_px": 20}, {"smallest_defect_mm": 2}):
        workspace.stores.products.set_spec("board", spec)
        keys.append(calibration_key(workspace, "board", 2))
    workspace.stores.products.set_spec("board", {})
    assert len(set(keys)) == 4


def test_other_tiles_make_the_calibration_stale_unless_a_smallest_defect_is_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys() -> list[str]:
        found = []
        for tiles in (1, 2, 4):
            settings = workspace.model_settings.model_copy(update={"tiles": tiles})
            monkeypatch.setattr(workspace, "model_settings", settings)
            found.append(calibration_key(workspace, "board", 2))
        return found

    assert len(set(keys())) == 3
    workspace.stores.products.set_spec("board", {"smallest_defect_px": 20})
    assert len(set(keys())) == 1
    workspace.stores.products.set_spec("board", {})


# ---- what is seen ----


@pytest.fixture
def fine(workspace: Workspace) -> Iterator[Workspace]:
    """Compared at 640 px, six tiles."""
    workspace.stores.products.set_spec("board", {"smallest_defect_px": SMALLEST_PX})
    yield workspace
    workspace.stores.products.set_spec("board", {})


def test_small_dot_is_found_where_it_is_and_measures_its_size(fine: Workspace) -> None:
    good, bad = (compare(fine, photo(px), "board") for px in (0, 12))
    assert bad.difference.score > 3 * good.difference.score
    y, x = np.unravel_index(int(bad.difference.anomaly_map.argmax()), SIZE)
    assert np.hypot(x - 420, y - 330) < 8
    assert bad.difference.anomaly_map.shape == SIZE
    assert bad.difference.cell == pytest.approx(8, rel=0.1)
    [region, *_] = regions_of(bad, 0.5 * bad.difference.peak, at_least_one=True)
    assert max(region.box[2] - region.box[0], region.box[3] - region.box[1]) < 40


def test_small_dot_is_overlooked_at_the_size_of_retrieval(workspace: Workspace) -> None:
    good, bad = (compare(workspace, photo(px), "board").difference.score for px in (0, 4))
    assert bad < 2 * good + 0.02


def test_photo_in_tiles_is_also_compared_as_a_whole_and_both_count_alike(fine: Workspace) -> None:
    query = photo(12)
    both, one_by_one = compare(fine, query, "board"), []
    pair = pair_with(fine, Query(query, "photo", both.features), "board", both.hits, Clock())
    tiles, whole = pair.sizes
    assert len(tiles.grid.tiles) == 6
    assert (whole.grid.whole, max(whole.grid.size)) == (True, 160)
    for sized in pair.sizes:
        map_of_one = score_difference(query, [sized], pair.references).anomaly_map
        one_by_one.append(cv2.resize(map_of_one, (160, 120), interpolation=cv2.INTER_AREA))
    mean = cv2.resize(both.difference.anomaly_map, (160, 120), interpolation=cv2.INTER_AREA)
    assert np.abs(mean - np.mean(one_by_one, 0)).max() < 0.05 * both.difference.peak
    assert np.abs(mean - one_by_one[0]).max() > 0.2 * both.difference.peak
    fine.stores.products.set_spec("board", {})
    alone = pair_with(fine, Query(query, "photo", both.features), "board", both.hits, Clock())
    assert [sized.grid.whole for sized in alone.sizes] == [True]


def test_mark_on_a_photo_in_tiles_scores_as_in_an_inspection(fine: Workspace) -> None:
    golden = next(g for g in fine.bank.list("board") if place_of(fine, g).is_anchor)  # its frame is its own pixels
    part = _Part.of(fine, golden, 2)
    assert len(part.sizes) == 2
    clean = compare(fine, fine.golden_image(golden), "board", exclude_ids=[golden.golden_id]).difference.score
    assert part.score_with(Mark(4, 4, 0.0), np.random.default_rng(0)) == pytest.approx(clean, rel=1e-3)
    for size, seed in ((6, 1), (40, 2)):
        mark, rng = Mark(size, size, 0.6), np.random.default_rng(seed)
        ys, xs = np.nonzero(room(mark, part.allowed))
        turn, i = float(rng.uniform(0, np.pi)), int(rng.integers(len(ys)))
        spoiled = drawn(fine.golden_image(golden), mark, (int(xs[i]), int(ys[i])), turn)
        inspected = compare(fine, spoiled, "board", exclude_ids=[golden.golden_id]).difference.score
        assert part.score_with(mark, np.random.default_rng(seed)) == pytest.approx(inspected, rel=0.1)
        assert inspected > 1.5 * clean


def test_good_part_shows_no_seams(fine: Workspace) -> None:
    heat = compare(fine, photo(), "board").difference.anomaly_map
    # the map of a good part changes no faster where tiles meet (every 160 px here) than elsewhere
    step = np.abs(np.diff(heat, axis=1)).mean(0)
    edges = [n + d for n in (320, 160, 480) for d in (-1, 0)]
    assert step[edges].mean() < 2 * step.mean()


def test_photo_that_does_not_register_is_compared_as_a_whole(fine: Workspace) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    result = compare(fine, noise, "board")
    assert not result.alignments[0].ok
    assert result.difference.anomaly_map.shape == SIZE


@pytest.mark.parametrize("least", [340, 500])
def test_any_working_size_of_retrieval_has_tiles(least: int, tmp_path: Path) -> None:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    model = ModelSettings(cache=tmp_path / "cache", working_px=least)
    with Workspace.open(memory, model, ToolsSettings(references=1)) as opened:
        (tmp_path / "0.png").write_bytes(encode_png(render("label", 11, 0, size=SIZE, noise_seed=1).image))
        enroll(opened, "board", [tmp_path / "0.png"])
        opened.stores.products.set_spec("board", {"smallest_defect_px": SMALLEST_PX})
        assert np.isfinite(compare(opened, photo(), "board").difference.score)


def test_regions_are_as_small_as_the_map_can_vouch_for() -> None:
    heat = np.zeros((400, 800), np.float32)
    cv2.circle(heat, (300, 200), 5, 1.0, cv2.FILLED)
    assert find_regions(heat, 0.5) == []  # a speck to a map of one tile
    [region] = find_regions(heat, 0.5, cell=8)
    assert region.box == (295, 195, 306, 206)


# ---- registration as fine as that ----


@pytest.mark.parametrize("shift", [(0.0, 0.0), (3.0, -2.0), (-4.5, 3.5)])
def test_registration_is_refined_at_the_photo_s_own_pixels(shift: tuple[float, float]) -> None:
    image = render("circuit", 7, 1, size=(600, 1000), noise_seed=1).image
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1.0]])
    moved = cv2.warpAffine(image, move[:2], (1000, 600), borderMode=cv2.BORDER_REPLICATE)
    found = refined(np.asarray(moved, np.uint8), image, np.eye(3))
    assert np.abs(found - move)[:2, 2].max() < 0.5
    assert np.abs(found - move)[:2, :2].max() < 2e-3
    if shift == (0.0, 0.0):
        assert np.array_equal(found, np.eye(3)), "what lies still stays as it is"


def test_registration_without_texture_is_left_as_it_is() -> None:
    plain = np.full((500, 700, 3), 90, np.uint8)
    assert np.array_equal(refined(plain, plain, np.eye(3)), np.eye(3))
