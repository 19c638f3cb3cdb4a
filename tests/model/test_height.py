"""Height maps: what files mean, planes that are fitted, holes, and differences in mm against known truth."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from refdiff.model.errors import ImageError
from refdiff.model.height.difference import Sensor, compare, largest_patch, measure_place
from refdiff.model.height.plane import fit, fit_plane, height_of
from refdiff.model.height.readers import HeightRules, read_height_map
from refdiff.model.images import F32, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import DEFECTS, SHAPES, SolidPart, depth_png, xyz_tiff

SETTINGS = ModelSettings()
PNG = HeightRules(unit_mm=0.01, offset_mm=-100, values="height")


def surface(seed: int = 1, size: tuple[int, int] = (60, 80)) -> F32:
    rng = np.random.default_rng(seed)
    rough = cv2.GaussianBlur(rng.normal(0, 1, size), (0, 0), 6)
    return np.asarray(rough / rough.std(), np.float32)


def read(data: bytes, rules: HeightRules = PNG) -> F32:
    return read_height_map(data, name="part", rules=rules, settings=SETTINGS).mm


def test_16_bit_png_has_its_stated_scale_and_offset_and_0_is_a_hole() -> None:
    mm = surface()
    mm[10:14, 20:25] = np.nan
    found = read(depth_png(mm))
    assert np.array_equal(np.isnan(found), np.isnan(mm))
    assert np.nanmax(np.abs(found - mm)) <= 0.0051


def test_organised_tiff_of_distances_has_heights_holes_and_its_scale_in_the_plane() -> None:
    mm = surface()
    mm[3:9, 4:8] = np.nan
    rules = HeightRules(unit_mm=1, values="distance", offset_mm=0)
    found = read_height_map(xyz_tiff(mm, 0.25), name="part", rules=rules, settings=SETTINGS)
    assert found.mm_per_px == pytest.approx(0.25, rel=1e-3)
    assert np.array_equal(np.isnan(found.mm), np.isnan(mm))
    assert np.nanmax(np.abs(found.mm + 500 - mm)) < 1e-3
    in_metres = read_height_map(
        xyz_tiff(mm / 1000, 0.25 / 1000, 0.5),
        name="part",
        rules=HeightRules(1000, values="distance"),
        settings=SETTINGS,
    )
    assert in_metres.mm_per_px == pytest.approx(0.25, rel=1e-3)
    assert np.nanmax(np.abs(in_metres.mm - found.mm)) < 1e-2


def test_organised_tiff_marks_holes_by_nan_too() -> None:
    bands = np.random.default_rng(1).uniform(1, 2, (20, 30, 3)).astype(np.float32)
    bands[4, 5, 2] = np.nan
    bands[6, 7, 0] = np.nan
    done, data = cv2.imencode(".tiff", bands[..., ::-1])
    assert done
    found = read(bytes(data), HeightRules(1, values="height"))
    assert np.argwhere(np.isnan(found)).tolist() == [[4, 5], [6, 7]]
    assert np.nanmax(np.abs(found - bands[..., 2])) < 1e-6


def test_float_tiff_and_a_hole_number_of_its_own_are_read() -> None:
    mm = surface()
    values = mm.copy()
    values[0, 0] = -9999
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    found = read(buffer.getvalue(), HeightRules(1, values="height", hole=-9999))
    assert np.isnan(found[0, 0])
    assert np.array_equal(found.ravel()[1:], mm.ravel()[1:])
    zero = np.zeros((20, 20), np.float32)
    zero[2:] = 1
    buffer = io.BytesIO()
    Image.fromarray(zero).save(buffer, "TIFF")
    assert np.isnan(read(buffer.getvalue(), HeightRules(1, values="height"))).sum() == 40
    assert not np.isnan(read(buffer.getvalue(), HeightRules(1, values="height", hole=None))).any()


@pytest.mark.parametrize(
    ("data", "rules", "said"),
    [
        (depth_png(surface()), HeightRules(values="height"), "unit_mm"),
        (depth_png(surface()), HeightRules(unit_mm=1), "values: distance"),
        (encode_png(np.zeros((40, 40, 3), np.uint8)), PNG, "not a height map"),
        (b"ply\nformat ascii 1.0\n", PNG, "not a height map that can be read"),
        (b"", PNG, "empty"),
        (depth_png(np.full((40, 40), np.nan, np.float32)), PNG, "0.0 % of its pixels"),
        (depth_png(surface()), HeightRules(unit_mm=1e6, values="height"), "kilometre"),
        (xyz_tiff(surface(), 0.2)[:300], PNG, "damaged"),
        (depth_png(surface(size=(10, 40))), PNG, "px"),
    ],
)
def test_file_that_says_too_little_or_is_no_height_map_is_refused_by_name(
    data: bytes, rules: HeightRules, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        read(data, rules)


def test_plane_is_that_of_most_of_a_surface_whatever_a_third_of_it_does() -> None:
    true = (3.0, 0.02, -0.01)
    mm = height_of(true, (60, 90)) + np.random.default_rng(1).normal(0, 0.01, (60, 90)).astype(np.float32)
    mm[:, 60:] += 4
    mm[5:9] = np.nan
    assert np.abs(height_of(fit_plane(mm, "plane"), mm.shape) - height_of(true, mm.shape)).max() < 0.01
    assert fit_plane(mm, "none") == (0, 0, 0)
    assert fit_plane(mm, "offset")[1:] == (0, 0)


@pytest.mark.parametrize("removal", ["plane", "plane_and_scale"])
def test_reference_is_fitted_to_the_part_in_height_tilt_and_scale(removal: str) -> None:
    reference = surface(2)
    scale = 1.03 if removal == "plane_and_scale" else 1.0
    query = scale * reference + height_of((0.7, 0.003, -0.002), reference.shape)
    query[20:30, 20:30] += 2
    plane, factor = fit(query, reference, np.ones(query.shape, bool), removal)  # type: ignore[arg-type]
    there = factor * reference + height_of(plane, query.shape)
    off = np.abs(query - there)
    off[20:30, 20:30] = 0
    assert off.max() < 1e-3
    assert factor == pytest.approx(scale, abs=1e-4)


def bumped(height: float, seed: int = 3, noise: float = 0.01) -> tuple[F32, F32, F32]:
    """A part with a bump of 14 px, its reference, and the bump."""
    rng = np.random.default_rng(seed)
    reference = surface(4, (100, 120))
    ys, xs = np.mgrid[0:100, 0:120]
    bump = height * np.exp(-np.log(2) * (np.hypot(ys - 40, xs - 70) / 7) ** 4)
    query = reference + bump + height_of((0.4, 0.002, 0.001), reference.shape) + rng.normal(0, noise, reference.shape)
    seen = reference + rng.normal(0, noise, reference.shape)
    return query.astype(np.float32), seen.astype(np.float32), bump.astype(np.float32)


@pytest.mark.parametrize("height", [1.0, -0.6, 0.2])
def test_bump_is_measured_with_its_height_and_volume_within_its_uncertainty(height: float) -> None:
    query, reference, bump = bumped(height)
    found = compare(query, [reference], [np.ones(query.shape, bool)], removal="plane")
    y, x = np.unravel_index(int(found.deviation.argmax()), query.shape)
    assert np.hypot(y - 40, x - 70) < 7
    mask = np.abs(bump) >= 0.5 * abs(height)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    inside = mask[box[1] : box[3], box[0] : box[2]]
    place = measure_place(query, found, box, inside, Sensor(), 0.0)
    assert place.high == (height > 0)
    assert abs(place.deviation_mm - height) <= place.deviation_uncertainty_mm < 0.3 * abs(height)
    assert place.volume_px_mm == pytest.approx(float(bump[mask].sum()), rel=0.05)
    assert place.lowest_mm <= place.mean_mm <= place.highest_mm
    stated = measure_place(query, found, box, inside, Sensor(accuracy_mm=0.5), 0.0)
    assert stated.deviation_uncertainty_mm == pytest.approx(
        np.hypot(place.deviation_uncertainty_mm, 2 * 0.5 / np.sqrt(3))
    )


def test_holes_are_neither_a_difference_nor_its_absence() -> None:
    query, reference, _ = bumped(0.0)
    query[20:40, 30:50] = np.nan
    reference[60:66, 60:70] = np.nan
    found = compare(query, [reference], [np.ones(query.shape, bool)], removal="plane")
    assert found.deviation[20:40, 30:50].max() == 0
    assert found.deviation.max() < 0.05
    assert int(found.missing.sum()) == 400
    assert int(found.beyond.sum()) == 60
    assert not found.covered[20:40, 30:50].any()
    assert largest_patch(found.missing) == (400, (30, 20, 50, 40))
    assert largest_patch(np.zeros((9, 9), bool)) == (0, None)
    ignored = compare(
        query, [reference], [np.ones(query.shape, bool)], removal="plane", ignore=np.ones(query.shape, bool)
    )
    assert not ignored.missing.any()
    assert ignored.deviation.max() == 0


def test_place_is_measured_where_it_lies_outside_of_all_references() -> None:
    """A step that good parts have to different heights is no part of what a bump beside it deviates by."""
    query, reference, bump = bumped(1.0)
    other = reference.copy()
    query[38:42, 77:79] += 3
    other[38:42, 77:79] += 3
    reach = np.ones(query.shape, bool)
    found = compare(query, [reference, other], [reach, reach], removal="plane")
    mask = bump >= 0.3
    assert np.nanmax(found.signed[mask]) > 3
    place = measure_place(query, found, (0, 0, 120, 100), mask, Sensor(), 0.0)
    assert place.deviation_mm == pytest.approx(1.0, abs=0.15)
    assert place.deviation_uncertainty_mm < 0.3


def test_second_reference_tells_where_the_first_has_a_hole() -> None:
    query, reference, bump = bumped(1.0)
    first = reference.copy()
    first[25:55, 55:85] = np.nan
    reach = np.ones(query.shape, bool)
    assert compare(query, [first], [reach], removal="plane").deviation.max() < 0.2
    both = compare(query, [first, reference], [reach, reach], removal="plane")
    assert both.deviation.max() > 0.8
    assert np.nanmax(both.signed) > 0.9
    assert bump.max() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_rendered_parts_have_the_defects_that_their_truth_says(shape: str) -> None:
    part = SolidPart(shape)  # type: ignore[arg-type]
    for i, name in enumerate(DEFECTS):
        rng = np.random.default_rng((5, i))
        defect = part.defect(name, rng)
        made = part.height_map(rng, defect, holes=False)
        peak = float(np.abs(made.truth).max())
        if name in ("bulge", "dent"):
            assert peak == pytest.approx(defect.height_mm, rel=0.05)
        assert made.mask.any()
        assert 0.5 <= defect.height_mm <= 3.0
    good = part.height_map(np.random.default_rng(1))
    assert not good.mask.any()
    assert np.isnan(good.mm).any()
