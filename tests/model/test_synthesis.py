"""Synthetic defects and nuisances: masks match the changed pixels, and options have their effect."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage
from refdiff.model.synthesis.photo_pairs import (
    SYNTHETIC_TYPES,
    SyntheticDefect,
    _glints,
    add_defect,
    foreground_of,
    is_grey,
    jitter,
    nuisance,
)
from refdiff.model.synthesis.render import PART_KINDS, PartKind, render

STRUCTURAL = {"missing_component", "added_component", "wrong_component", "misplaced_component"}


@lru_cache
def base(kind: PartKind, size: int = 160) -> RgbImage:
    image = render(kind, 1, 0, size=(size, size)).image
    image.flags.writeable = False  # a defect painted in place is an error
    return image


def grey(image: RgbImage) -> RgbImage:
    return np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2).astype(np.uint8)


def defect(image: RgbImage, seed: int, **how: object) -> SyntheticDefect:
    """The first visible defect, as a caller gets one: by trying again."""
    rng = np.random.default_rng(seed)
    for _ in range(6):
        if (made := add_defect(image, rng, **how)) is not None:  # type: ignore[arg-type]
            return made
    raise AssertionError(f"six times invisible: {how}")


def change(a: RgbImage, b: RgbImage) -> NDArray[np.int64]:
    return np.abs(a.astype(int) - b.astype(int)).max(-1)


@pytest.mark.parametrize("part", PART_KINDS)
@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_mask_covers_the_changed_pixels(kind: str, part: PartKind) -> None:
    image, donor = base(part), base("circuit" if part == "weave" else "weave")
    for seed in range(3):
        made = defect(image, seed, kind=kind, donor=donor)
        diff = change(image, made.image)
        assert made.type == kind
        assert made.structural == (kind in STRUCTURAL)
        assert made.image.dtype == np.uint8
        assert made.image.shape == image.shape
        assert made.mask.dtype == np.bool_
        assert made.mask.sum() >= 6
        assert diff[~made.mask].max(initial=0) < 4
        assert np.mean(diff[made.mask] >= 4) > 0.45  # the rest are gaps closed
        near = cv2.dilate(made.mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert not diff[~near].any()


@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_depends_on_the_seed_only(kind: str) -> None:
    first, second, other = (defect(base("circuit"), seed, kind=kind) for seed in (7, 7, 8))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_on_a_grey_image_is_grey(kind: str) -> None:
    image = grey(base("label"))
    for seed in range(3):  # even with a coloured donor
        assert is_grey(defect(image, seed, kind=kind, donor=base("circuit")).image)


@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_size_is_its_extent(kind: str) -> None:
    def areas(size: float) -> NDArray[np.float64]:
        made = [defect(base("circuit", 320), s, kind=kind, size=size, contrast=0.8) for s in range(5)]
        for one in made:
            ys, xs = np.nonzero(one.mask)
            # a moved piece marks two places; a line is told by its length, a fibre may be curled, both have a width
            assert max(np.ptp(xs), np.ptp(ys)) <= 2.2 * size * 320 + 12
        return np.array([one.mask.mean() for one in made])

    small, large = areas(0.01), areas(0.4)
    assert small.max() < 0.001
    assert np.median(large) > 8 * np.median(small)


@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_contrast_sets_its_visibility(kind: str) -> None:
    def shown(contrast: float) -> float:
        made = [
            (image, defect(image, seed, kind=kind, size=0.2, contrast=contrast))
            for seed in range(4)
            for image in (base("circuit"), base("label"), base("moulded"))
        ]
        return float(np.mean([change(image, one.image)[one.mask].mean() for image, one in made]))

    assert 4 <= shown(0.0) < 0.8 * shown(1.0)


@pytest.mark.parametrize("size", [(32, 48), (64, 64), (70, 300)])
@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_synthetic_defect_fits_any_image_size(kind: str, size: tuple[int, int]) -> None:
    image = render("circuit", 2, 0, size=size).image
    for seed in range(2):
        made = defect(image, seed, kind=kind, donor=base("label", 64)[:40, :25])
        assert made.image.shape == image.shape
        assert made.mask.shape == size


@pytest.mark.parametrize("level", [0, 128, 255])
def test_plain_surface_takes_surface_defects_only(level: int) -> None:
    image = np.full((64, 64, 3), level, np.uint8)
    assert foreground_of(image).all()
    shown = {k for k in SYNTHETIC_TYPES if add_defect(image, np.random.default_rng(1), kind=k) is not None}
    # nothing to bend and no piece to take: no defect, and no error
    assert not shown & {"deformation", "missing_component", "wrong_component", "misplaced_component"}
    assert len(shown) >= len(SYNTHETIC_TYPES) - 5
    for kind in ("scratch", "stain", "hole"):
        assert defect(image, 1, kind=kind).mask.any()


def test_default_defects_are_varied_mostly_small_and_on_the_part() -> None:
    scene = render("moulded", 1, 0)
    rng = np.random.default_rng(0)
    made = [d for _ in range(250) if (d := add_defect(scene.image, rng, foreground=scene.foreground)) is not None]
    assert len(made) > 230
    assert {d.type for d in made} >= set(SYNTHETIC_TYPES) - {"broken_yarn", "uneven_dye"}
    assert np.mean([d.mask.mean() < 0.001 for d in made]) > 0.3
    assert max(d.mask.mean() for d in made) > 0.02
    # chance alone would put under half of them on the part
    assert np.mean([scene.foreground[d.mask].mean() > 0.5 for d in made]) > 0.8


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        (np.zeros((64, 64), np.uint8), None, r"\(64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), None, "float32"),
        (np.zeros((64, 64, 3), np.uint8), "rust", "rust"),
    ],
)
def test_invalid_synthesis_input_is_refused(image: RgbImage, kind: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_defect(image, np.random.default_rng(0), kind=kind)


@pytest.mark.parametrize("part", PART_KINDS)
def test_foreground_mask_covers_the_part(part: PartKind) -> None:
    scene = render(part, 1, 0)
    found = foreground_of(scene.image)
    if part == "weave":
        assert found.all()
    else:
        assert found[scene.foreground].mean() > 0.95
        assert (found & scene.foreground).sum() / found.sum() > 0.7  # a cast shadow may pass for part


@pytest.mark.parametrize("part", PART_KINDS)
def test_nuisance_keeps_position_and_grey(part: PartKind) -> None:
    image = base(part)
    window = cv2.createHanningWindow(image.shape[1::-1], cv2.CV_32F)
    before = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    for seed in range(8):
        other = nuisance(image, np.random.default_rng(seed))
        assert other.shape == image.shape
        assert other.dtype == np.uint8
        assert np.array_equal(other, nuisance(image, np.random.default_rng(seed)))
        (dx, dy), _ = cv2.phaseCorrelate(before, cv2.cvtColor(other, cv2.COLOR_RGB2GRAY).astype(np.float32), window)
        assert np.hypot(dx, dy) < 0.25
        assert is_grey(nuisance(grey(image), np.random.default_rng(seed)))


def test_nuisance_grows_with_strength() -> None:
    def moved(strength: float) -> float:
        image = base("label")
        made = [nuisance(image, np.random.default_rng(s), strength) for s in range(20)]
        return float(np.mean([change(image, one).mean() for one in made]))

    assert moved(0) == 0 < moved(0.3) < 0.6 * moved(1.0)


def test_jitter_moves_pixels_as_its_matrix_says() -> None:
    image = np.zeros((120, 160, 3), np.uint8)
    spots = np.array([(30, 25), (130, 30), (80, 95)])
    for x, y in spots:
        cv2.circle(image, (int(x), int(y)), 4, (255, 255, 255), -1)
    image.flags.writeable = False
    for seed in range(6):
        moved, m = jitter(image, np.random.default_rng(seed), max_shift_px=5, max_angle_deg=4, max_scale=0.03)
        assert m.shape == (3, 3)
        for x, y in spots:
            nx, ny = (m @ (x, y, 1))[:2]
            x0, y0 = round(nx) - 9, round(ny) - 9
            near = moved[y0 : y0 + 19, x0 : x0 + 19, 0].astype(float)
            cy, cx = (np.arange(19) @ near.sum(1), np.arange(19) @ near.sum(0)) / near.sum()
            assert (x0 + cx, y0 + cy) == pytest.approx((nx, ny), abs=0.15)
    still, m = jitter(image, np.random.default_rng(0), max_shift_px=0, max_angle_deg=0, max_scale=0)
    assert np.array_equal(still, image)
    assert m == pytest.approx(np.eye(3))


def test_glints_change_what_is_brighter_than_its_surroundings_alone() -> None:
    flat = np.full((160, 160, 3), 90, np.float32)
    assert np.array_equal(_glints(flat, np.random.default_rng(0), 1.0), flat)
    shiny = flat.copy()
    shiny[40:52, 100:112] = 200
    grown, faded, most = 0, 0, []
    for seed in range(12):
        diff = (_glints(shiny, np.random.default_rng(seed), 1.0) - shiny)[..., 0]
        spot = diff[40:52, 100:112]
        away = diff.copy()
        away[30:62, 90:122] = 0
        assert np.abs(away).max() < 0.15 * np.abs(spot).max() + 1
        grown, faded = grown + (spot.mean() > 1), faded + (spot.mean() < -1)
        most.append(float(np.abs(spot).max()))
        weak = _glints(shiny, np.random.default_rng(seed), 0.1) - shiny
        assert np.abs(weak).max() < 0.2 * most[-1] + 1
    assert grown >= 2
    assert faded >= 2  # a highlight may also vanish
    assert max(most) > 20
