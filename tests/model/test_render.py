"""The renderer's promise: same arguments same pixels, and the truth is what the pixels say."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.model.defect_types import RenderedType
from refdiff.model.errors import InputError
from refdiff.model.synthesis.render import (
    PART_KINDS,
    DefectSpec,
    Light,
    PartKind,
    Pose,
    Scene,
    applicable_types,
    map_points,
    random_defect,
    random_light,
    random_pose,
    render,
)

EVERY_TYPE_ON_EVERY_KIND = [(k, t) for k in PART_KINDS for t in applicable_types(k)]


def pair(kind: PartKind, specs: list[DefectSpec], **how: object) -> tuple[Scene, Scene]:
    """The good scene and the same one with defects, free of noise."""
    good = render(kind, 3, 5, noise_sigma=0, **how)  # type: ignore[arg-type]
    bad = render(kind, 3, 5, noise_sigma=0, defects=specs, **how)  # type: ignore[arg-type]
    return good, bad


def change(good: Scene, bad: Scene) -> np.ndarray:
    return np.abs(good.image.astype(int) - bad.image.astype(int)).max(-1)


@pytest.mark.parametrize("kind", PART_KINDS)
def test_render_is_deterministic(kind: PartKind) -> None:
    rng = np.random.default_rng(1)
    how = {"pose": random_pose(rng), "light": random_light(rng), "defects": [random_defect(rng, kind)]}
    first, second = render(kind, 1, 2, **how), render(kind, 1, 2, **how)  # type: ignore[arg-type]
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.defect_mask, second.defect_mask)


@pytest.mark.parametrize("kind", PART_KINDS)
def test_seeds_vary_product_more_than_sample_more_than_photo(kind: PartKind) -> None:
    base = render(kind, 1, 0).image.astype(float)
    photo = render(kind, 1, 0, noise_seed=9).image.astype(float)
    sample = render(kind, 1, 1).image.astype(float)
    product = render(kind, 2, 0).image.astype(float)
    by_photo, by_sample, by_product = (np.abs(base - x).mean() for x in (photo, sample, product))
    assert 0 < by_photo < by_sample < by_product


@pytest.mark.parametrize(("kind", "defect"), EVERY_TYPE_ON_EVERY_KIND)
@pytest.mark.parametrize("contrast", [1.0, 0.0])
def test_defect_mask_covers_the_changed_pixels(kind: PartKind, defect: RenderedType, contrast: float) -> None:
    pose = Pose(angle_deg=17, scale=0.95, perspective=(0.02, -0.01))
    for seed in range(2):
        good, bad = pair(kind, [DefectSpec(defect, contrast=contrast, seed=seed)], pose=pose)
        diff, truth = change(good, bad), bad.defects[0]
        assert truth.area_px > 0, "a defect that cannot be seen"
        assert truth.area_px == truth.mask.sum() == bad.defect_mask.sum()
        assert diff[truth.mask].max() >= 4
        assert diff[~truth.mask].max() <= 3
        changed = diff > 0
        iou = (changed & truth.mask).sum() / (changed | truth.mask).sum()
        assert iou > (0.75 if contrast == 1.0 else 0.5)
        ys, xs = np.nonzero(truth.mask)
        assert truth.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


@pytest.mark.parametrize("angle", [0.0, 33.0, 90.0, -140.0])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_scratch_length_in_mm_survives_the_pose(angle: float, scale: float) -> None:
    mm_per_px, length_mm = 0.05, 4.0
    spec = DefectSpec("scratch", size_mm=length_mm, where=(160, 160), contrast=1.0, seed=4, width_px=1.5)
    _, bad = pair("weave", [spec], pose=Pose(angle, scale), mm_per_px=mm_per_px)
    truth = bad.defects[0]
    assert bad.mm_per_px == pytest.approx(mm_per_px / scale)
    assert truth.length_mm == pytest.approx(length_mm, abs=bad.mm_per_px)
    assert truth.length_px * bad.mm_per_px == pytest.approx(length_mm, abs=bad.mm_per_px)
    assert truth.width_px == pytest.approx(1.5 * scale, rel=0.02)
    # and the mask is as long as the line: extents along its chord
    chord = truth.path[-1] - truth.path[0]
    along = np.argwhere(truth.mask)[:, ::-1] @ (chord / np.hypot(*chord))
    on_path = truth.path @ (chord / np.hypot(*chord))
    assert abs(np.ptp(along) - np.ptp(on_path)) <= 3.0


def test_pose_transform_maps_known_points() -> None:
    turned = render("circuit", 0, 0, size=(200, 240), pose=Pose(90, 2.0, (5, -3)), noise_sigma=0)
    # counter-clockwise on the screen: what was right of the centre is above it
    centre = np.array([(119.5, 99.5)])
    assert map_points(turned.transform, centre) == pytest.approx(np.add(centre, (5, -3)))
    assert map_points(turned.transform, np.add(centre, (10, 0))) == pytest.approx(np.add(centre, (5, -23)))
    assert render("circuit", 0, 0).transform == pytest.approx(np.eye(3))


def test_pose_moves_pixels_as_its_transform_says() -> None:
    spot = DefectSpec("blob", size_px=9, where=(120, 200), contrast=1.0, seed=1)
    for pose in (Pose(), Pose(65, 1.1, (12, -7), (0.08, 0.05))):
        _, bad = pair("weave", [spot], pose=pose)
        expected = map_points(bad.transform, np.array([(120.0, 200.0)]))[0]
        ys, xs = np.nonzero(bad.defect_mask)
        assert np.hypot(xs.mean() - expected[0], ys.mean() - expected[1]) < 2.0


@pytest.mark.parametrize("kind", PART_KINDS)
def test_light_and_noise_do_not_change_the_masks(kind: PartKind) -> None:
    spec = [DefectSpec("blob", size_px=12, seed=2)]
    plain = render(kind, 0, 0, defects=spec)
    dark = render(kind, 0, 0, defects=spec, noise_sigma=6, light=Light(gain=0.3, blur_sigma=1, jpeg_quality=70))
    assert dark.image.mean() < 0.5 * plain.image.mean()
    assert np.array_equal(dark.defect_mask, plain.defect_mask)
    assert np.array_equal(dark.foreground, plain.foreground)


@pytest.mark.parametrize("kind", PART_KINDS)
def test_random_defects_are_visible_and_reach_below_a_thousandth_of_the_image(kind: PartKind) -> None:
    rng = np.random.default_rng(0)
    areas = []
    for i in range(24):
        scene = render(kind, i, i, defects=[random_defect(rng, kind)], pose=random_pose(rng))
        areas.append(scene.defect_mask.mean())
    assert min(areas) < 0.001
    assert np.mean(np.array(areas) > 0) > 0.95


def test_several_defects_keep_their_order_and_places() -> None:
    specs = [
        DefectSpec("blob", seed=1),
        DefectSpec("missing_component", seed=2),
        DefectSpec("scratch", seed=3),
    ]
    good, bad = pair("circuit", specs)
    assert [t.type for t in bad.defects] == ["blob", "missing_component", "scratch"]
    assert change(good, bad)[~bad.defect_mask].max() <= 3


@pytest.mark.parametrize("size", [(32, 32), (97, 211), (400, 180)])
@pytest.mark.parametrize("kind", PART_KINDS)
def test_render_of_any_size_has_matching_masks(kind: PartKind, size: tuple[int, int]) -> None:
    scene = render(kind, 0, 0, size=size, defects=[DefectSpec("stain")])
    assert scene.image.shape == (*size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.foreground.shape == scene.defect_mask.shape == size


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: render("spoon", 0, 0), "spoon"),  # type: ignore[arg-type]
        (lambda: render("weave", 0, 0, defects=[DefectSpec("solder_bridge")]), "solder_bridge"),
        (lambda: render("label", 0, 0, size=(8, 8)), "32 to 4096"),
        (lambda: render("label", 0, 0, pose=Pose(scale=0)), "scale must be > 0"),
        (lambda: render("label", 0, 0, mm_per_px=0), "mm_per_px"),
        (lambda: random_defect(np.random.default_rng(0), "weave", types=["crack"]), "applies"),
    ],
)
def test_invalid_render_arguments_are_refused(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]


def test_part_without_remaining_components_still_renders() -> None:
    """A part that lost its only component must still render."""
    for design in range(6):
        defects = [DefectSpec("missing_component", seed=i) for i in range(24)]
        assert render("moulded", design, 0, size=(96, 96), defects=defects).image.shape == (96, 96, 3)
