"""Measured sizes against rendered ground truth, in native pixels."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.model.defect_types import RenderedType
from refdiff.model.difference import patch_distance
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.errors import InputError
from refdiff.model.synthesis.render import DefectSpec, DefectTruth, Light, PartKind, Pose, Scene, render
from refdiff.tools.vision.measurement import Measurement, _explained, measure
from refdiff.tools.vision.regions import find_regions
from refdiff.tools.vision.registration import Alignment, align

DIM = Light(gain=0.6)
SOFT = Light(gain=0.9, gradient=0.3, temperature=0.4, blur_sigma=0.7, jpeg_quality=85)
TURNED = Pose(angle_deg=25, scale=0.97, shift_px=(4, -3))
MOVED = Pose(shift_px=(0.8, -0.6))
LINES = ("scratch", "crack")

# kind, type, size px, pose, light, seed
Case = tuple[PartKind, RenderedType, float | None, Pose, Light, int]
OBVIOUS: list[Case] = [
    ("circuit", "scratch", 45, MOVED, Light(), 0),
    ("circuit", "scratch", 60, TURNED, DIM, 1),
    ("label", "scratch", 50, MOVED, SOFT, 1),
    ("moulded", "scratch", 40, MOVED, DIM, 8),
    ("bottle", "scratch", 35, MOVED, SOFT, 9),
    ("circuit", "crack", 45, MOVED, Light(), 0),
    ("label", "crack", 50, TURNED, Light(), 1),
    ("moulded", "crack", 35, MOVED, DIM, 2),
    ("bottle", "crack", 25, MOVED, SOFT, 3),
    ("circuit", "blob", 25, TURNED, Light(), 0),
    ("label", "blob", 24, MOVED, DIM, 1),
    ("moulded", "blob", 16, MOVED, Light(), 3),
    ("bottle", "blob", 14, MOVED, SOFT, 9),
    ("circuit", "hole", 24, MOVED, Light(), 0),
    ("label", "hole", 18, MOVED, DIM, 6),
    ("moulded", "hole", 22, MOVED, Light(), 2),
    ("circuit", "stain", 26, MOVED, DIM, 0),
    ("label", "stain", 26, TURNED, Light(), 1),
    ("bottle", "stain", 18, MOVED, Light(), 4),
    ("bottle", "missing_component", None, MOVED, Light(), 2),
    ("circuit", "missing_component", None, MOVED, DIM, 0),
    ("circuit", "missing_component", None, TURNED, Light(), 3),
]


@dataclass(frozen=True)
class Pair:
    query: Scene
    reference: Scene
    alignment: Alignment
    anomaly_map: NDArray[np.float32]
    box: tuple[int, int, int, int]
    region: NDArray[np.bool_]

    @property
    def truth(self) -> DefectTruth:
        return self.query.defects[0]


def coarse_map(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """What a network with a stride of 8 px at 320 px would show for a defect: a soft spot larger than it."""
    h, w = mask.shape
    step = max(1, round(8 * max(h, w) / 320))
    cells = cv2.resize(mask.astype(np.float32), (w // step, h // step), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(np.sqrt(cells), (0, 0), 1.0)
    return np.asarray(np.maximum(cv2.resize(soft, (w, h), interpolation=cv2.INTER_CUBIC), 0), np.float32)


def known_registration(query: Scene, reference: Scene, error_px: float = 0.4) -> Alignment:
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # pixel corners at integers, the renderer has centres
    matrix = half @ query.transform @ np.linalg.inv(reference.transform) @ np.linalg.inv(half)
    matrix[:2, 2] += error_px / math.sqrt(2)
    return Alignment("known", True, matrix, error_px, 1.0, 0.9, 0.0, 1.0, "from the renderer")


def unregistered(size: tuple[int, int]) -> Alignment:
    return Alignment("none", False, np.eye(3), None, 1.0, 0.1, 0.0, 1.0, f"no honest registration at {size}")


@lru_cache(maxsize=64)
def pair(case: Case, size: tuple[int, int] = (320, 320)) -> Pair:
    kind, kind_of, size_px, pose, light, seed = case
    spec = DefectSpec(kind_of, size_px=size_px, contrast=0.9, seed=seed)
    query = render(kind, seed % 5, seed + 100, size=size, defects=[spec], pose=pose, light=light, noise_seed=1)
    reference = render(kind, seed % 5, seed + 101, size=size)
    heat = coarse_map(query.defect_mask)
    region = find_regions(heat, 0.35 * float(heat.max()))[0]
    return Pair(query, reference, known_registration(query, reference), heat, region.box, region.mask)


def measured(p: Pair, **how: object) -> Measurement:
    given = {"mask": p.region, **how}
    return measure(p.query.image, p.reference.image, p.alignment, p.anomaly_map, p.box, **given)  # type: ignore[arg-type]


def placed(m: Measurement, size: tuple[int, int]) -> NDArray[np.bool_]:
    full = np.zeros(size, bool)
    full[m.box[1] : m.box[3], m.box[0] : m.box[2]] = m.mask
    return full


def overlap(m: Measurement, truth: NDArray[np.bool_]) -> float:
    full = placed(m, truth.shape)  # type: ignore[arg-type]
    return float((full & truth).sum() / (full | truth).sum())


def test_obvious_defects_are_measured_to_two_pixels_or_ten_percent() -> None:
    length_error, covered, iou, width_error = [], [], [], []
    rows = []
    for case in OBVIOUS:
        p = pair(case)
        m, t = measured(p), p.truth
        length_error.append(abs(m.length_px - t.length_px) / max(2.0, 0.1 * t.length_px))
        covered.append(abs(m.length_px - t.length_px) <= 3 * m.uncertainty_px)
        width_error.append(abs(m.width_px - t.width_px))
        # the truth of a line is every pixel it touches, wider than the line is: overlap says little there
        if t.type not in LINES:
            iou.append(overlap(m, p.query.defect_mask))
        rows.append(
            f"{case[0]:8}{t.type:18} length {t.length_px:6.1f} {m.length_px:6.1f}  width {t.width_px:5.1f} "
            f"{m.width_px:5.1f}  u {m.uncertainty_px:5.2f}  area {t.area_px:5d} {m.area_px:5d}  "
            f"IoU {overlap(m, p.query.defect_mask):.2f}  {m.method}"
        )
    table = "\n".join(rows)
    print(table)  # shown on failure, or with -rP
    assert np.median(length_error) <= 1.0, table
    assert np.mean(covered) >= 0.9, table
    assert np.median(width_error) <= 2.5, table
    assert np.median(iou) >= 0.6, table


@pytest.mark.parametrize("case", [c for c in OBVIOUS if c[1] in LINES and c[3] is MOVED], ids=str)
def test_line_defect_is_measured_thin_and_on_the_defect(case: Case) -> None:
    p = pair(case)
    m = measured(p)
    assert m.method == "difference"
    assert m.length_px > 4 * m.width_px
    assert m.width_px <= p.truth.width_px + 3.5
    # far tighter than the map's region, and on the defect
    assert m.area_px < 0.5 * p.region.sum()
    assert (placed(m, (320, 320)) & p.query.defect_mask).sum() >= 0.7 * m.area_px


def test_arc_length_is_measured_along_the_arc() -> None:
    query = np.full((200, 200, 3), 120, np.uint8)
    reference = query.copy()
    cv2.ellipse(query, (100, 100), (50, 50), 0, 0, 180, (230, 230, 230), 2, cv2.LINE_AA)
    drawn = np.abs(query.astype(int) - 120).max(-1) > 20
    m = measure(query, reference, identity(), coarse_map(drawn), (40, 90, 160, 160))
    assert m.length_px == pytest.approx(math.pi * 50, rel=0.06)
    assert m.width_px == pytest.approx(2.5, abs=1)  # OpenCV draws 2 px a little fat
    assert m.box == pytest.approx((49, 99, 152, 152), abs=3)


def test_line_with_gaps_is_measured_as_one() -> None:
    query = np.full((200, 200, 3), 120, np.uint8)
    reference = query.copy()
    cv2.line(query, (40, 60), (150, 130), (30, 30, 30), 2, cv2.LINE_AA)
    drawn = np.abs(query.astype(int) - 120).max(-1) > 20
    query[:, 80:86] = 120
    query[:, 110:114] = 120
    m = measure(query, reference, identity(), coarse_map(drawn), (30, 50, 160, 140))
    assert m.length_px == pytest.approx(math.hypot(110, 70) + 2, abs=4)
    assert m.width_px <= 4


def identity(residual_px: float = 0.0) -> Alignment:
    return Alignment("identity", True, np.eye(3), residual_px, 1.0, 0.9, 0.0, 1.0, "identity")


def striped(shift: float = 0.0) -> NDArray[np.uint8]:
    x = np.arange(240, dtype=np.float64) - shift
    stripes = np.where((x // 20) % 2 < 1, 60.0, 190.0)
    picture = cv2.GaussianBlur(np.tile(stripes, (240, 1)), (0, 0), 0.8)
    noise = np.random.default_rng(int(shift * 10)).normal(0, 1.5, picture.shape)
    return np.repeat(np.clip(picture + noise, 0, 255).astype(np.uint8)[..., None], 3, 2)


def test_misregistered_edges_do_not_enlarge_the_measured_defect() -> None:
    query, reference = striped(1.0), striped(0.0)
    cv2.circle(query, (110, 120), 7, (120, 120, 120), -1)
    drawn = np.zeros((240, 240), bool)
    drawn[113:128, 103:118] = True
    m = measure(query, reference, identity(1.0), coarse_map(drawn), (90, 100, 131, 141))
    assert m.method == "difference"
    assert m.length_px == pytest.approx(15, abs=3)
    assert overlap(m, drawn) > 0.6


def test_defect_without_registration_is_measured_by_contrast() -> None:
    rng = np.random.default_rng(3)
    for grey in (40, 210):
        query = np.clip(rng.normal(125, 3, (240, 240, 3)), 0, 255).astype(np.uint8)
        cv2.ellipse(query, (120, 110), (14, 9), 30, 0, 360, (grey, grey, grey), -1)
        drawn = np.abs(query[..., 0].astype(int) - 125) > 40
        m = measure(query, None, unregistered((240, 240)), coarse_map(drawn), (90, 80, 150, 140))
        assert m.method == "contrast"
        assert abs(m.length_px - 29) <= 3 * m.uncertainty_px
        assert m.length_px == pytest.approx(29, abs=3)
        assert m.width_px == pytest.approx(19, abs=3)
        assert m.uncertainty_px >= 0.1 * m.length_px


def test_region_without_visible_pixels_is_measured_from_the_map() -> None:
    rng = np.random.default_rng(4)
    query, reference = (np.clip(rng.normal(125, 6, (240, 240, 3)), 0, 255).astype(np.uint8) for _ in range(2))
    there = np.zeros((240, 240), bool)
    there[100:130, 100:140] = True
    m = measure(query, reference, identity(), coarse_map(there), (90, 90, 150, 140))
    assert m.method == "map"
    assert m.uncertainty_px >= 0.4 * m.length_px
    assert m.area_px == m.mask.sum() > 0


def test_measurement_without_a_scale_has_no_millimetres() -> None:
    m = measured(pair(OBVIOUS[0]))
    assert (m.length_mm, m.width_mm, m.area_mm2, m.uncertainty_mm) == (None, None, None, None)


def test_millimetres_are_pixels_times_the_scale() -> None:
    p = pair(OBVIOUS[0])
    plain, m = measured(p), measured(p, mm_per_px=0.05, scale_uncertainty=0.02)
    assert m.length_mm == pytest.approx(plain.length_px * 0.05, rel=1e-12)
    assert m.width_mm == pytest.approx(plain.width_px * 0.05, rel=1e-12)
    assert m.area_mm2 == pytest.approx(plain.area_px * 0.05**2, rel=1e-12)
    assert m.uncertainty_mm == pytest.approx(math.hypot(plain.uncertainty_px * 0.05, plain.length_px * 0.05 * 0.02))
    assert m.length_px == plain.length_px


def test_measured_millimetres_match_the_rendered_defect() -> None:
    p = pair(OBVIOUS[1])  # turned and scaled: the photo's own scale counts
    m = measured(p, mm_per_px=p.query.mm_per_px)
    assert m.length_mm is not None
    assert m.uncertainty_mm is not None
    assert abs(m.length_mm - p.truth.length_mm) <= 3 * m.uncertainty_mm
    assert m.length_mm == pytest.approx(p.truth.length_mm, rel=0.1)


def test_measurement_is_deterministic() -> None:
    p = pair(OBVIOUS[5])
    a, b = measured(p), measured(p)
    assert replace(a, mask=None) == replace(b, mask=None)  # type: ignore[arg-type]
    assert np.array_equal(a.mask, b.mask)


def test_measured_mask_box_and_area_agree() -> None:
    for case in OBVIOUS[::4]:
        m = measured(pair(case))
        x0, y0, x1, y1 = m.box
        assert m.mask.dtype == bool
        assert m.mask.shape == (y1 - y0, x1 - x0)
        assert m.area_px == int(m.mask.sum())
        assert m.mask.any(0)[[0, -1]].all()
        assert m.mask.any(1)[[0, -1]].all()
        assert m.length_px >= m.width_px > 0


def test_defect_beyond_its_box_is_measured_whole() -> None:
    p = pair(OBVIOUS[0])
    x0, y0, x1, y1 = p.box
    half = (x0, y0, x1, (y0 + y1) // 2)
    m = measure(p.query.image, p.reference.image, p.alignment, p.anomaly_map, half)
    assert m.length_px == pytest.approx(p.truth.length_px, rel=0.15)


def test_measurement_does_not_change_its_inputs() -> None:
    p = pair(OBVIOUS[3])
    before = [a.copy() for a in (p.query.image, p.reference.image, p.anomaly_map, p.region)]
    measured(p)
    after = (p.query.image, p.reference.image, p.anomaly_map, p.region)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("box", "mask", "scale", "message"),
    [
        ((400, 10, 420, 30), None, None, "320 x 320"),
        ((10, 10, 10, 30), None, None, "320 x 320"),
        ((10, 10, 30, 30), np.ones((5, 5), bool), None, "does not fit the box"),
        ((10, 10, 30, 30), None, 0.0, "above 0"),
        ((10, 10, 30, 30), None, float("nan"), "above 0"),
    ],
)
def test_invalid_measurement_arguments_are_refused(
    box: tuple[int, int, int, int], mask: NDArray[np.bool_] | None, scale: float | None, message: str
) -> None:
    image, heat = np.zeros((320, 320, 3), np.uint8), np.zeros((320, 320), np.float32)
    with pytest.raises(InputError, match=message):
        measure(image, image, identity(), heat, box, mask=mask, mm_per_px=scale)


def test_measurement_with_a_map_of_another_size_is_refused() -> None:
    image = np.zeros((64, 80, 3), np.uint8)
    with pytest.raises(InputError, match="does not fit the photo"):
        measure(image, image, identity(), np.zeros((80, 64), np.float32), (1, 1, 9, 9))


@pytest.mark.parametrize("shape", [(16, 16), (17, 200), (64, 48)])
def test_defect_in_a_small_flat_image_is_measured(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 90, np.uint8)
    image[4:8, 5:9] = 200
    m = measure(image, np.full_like(image, 90), identity(), coarse_map(image[..., 0] > 100), (2, 2, 14, 14))
    assert abs(m.length_px - 4) <= 3 * m.uncertainty_px


def test_large_photo_takes_less_than_600_ms_of_cpu_time() -> None:
    rng = np.random.default_rng(5)
    query = np.clip(rng.normal(125, 3, (2000, 2000, 3)), 0, 255).astype(np.uint8)
    reference = np.clip(rng.normal(125, 3, (2000, 2000, 3)), 0, 255).astype(np.uint8)
    cv2.line(query, (900, 950), (1100, 1050), (30, 30, 30), 4, cv2.LINE_AA)
    heat = coarse_map(query[..., 0] < 100)
    box = find_regions(heat, 0.35 * float(heat.max()))[0].box
    spent = []
    for _ in range(3):
        start = time.thread_time()  # CPU time: other load on the machine does not count
        m = measure(query, reference, identity(), heat, box)
        spent.append(time.thread_time() - start)
    assert m.length_px == pytest.approx(math.hypot(200, 100) + 4, abs=4)
    assert min(spent) < 0.6  # about 0.1 s


@pytest.mark.parametrize("case", [OBVIOUS[0], OBVIOUS[9], OBVIOUS[18]], ids=str)
def test_defect_is_measured_with_the_real_encoder_and_registration(case: Case) -> None:
    kind, kind_of, size_px, _, light, seed = case
    spec = DefectSpec(kind_of, size_px=size_px, contrast=0.9, seed=seed)
    query = render(kind, seed % 5, seed + 100, defects=[spec], light=light, noise_seed=1)
    reference = render(kind, seed % 5, seed + 101)
    encoder = Encoder()
    maps, others = (encoder.embed(s.image).maps for s in (query, reference))
    view = ReferenceView(others, others[8].new_ones(others[8].shape[-2:]).bool())
    coarse = patch_distance.anomaly_map(maps, [view]).numpy()
    heat = np.maximum(cv2.resize(coarse, (320, 320), interpolation=cv2.INTER_CUBIC), 0).astype(np.float32)
    truth = query.defects[0]
    regions = find_regions(heat, 0.6 * float(heat[truth.mask].max()))
    hit = [
        r for r in regions
        if (query.defect_mask[r.box[1] : r.box[3], r.box[0] : r.box[2]] & r.mask).any()
    ]  # fmt: skip
    alignment = align(query.image, reference.image)
    assert alignment.ok
    m = measure(query.image, reference.image, alignment, heat, hit[0].box, mask=hit[0].mask)
    assert m.method == "difference"
    assert abs(m.length_px - truth.length_px) <= max(3 * m.uncertainty_px, 3.0)
    assert m.length_px == pytest.approx(truth.length_px, rel=0.25)


@pytest.mark.parametrize("grey", [0, 127, 255], ids=["black", "grey", "overexposed"])
@pytest.mark.parametrize("side", [256, 512, 900])
def test_plain_photo_is_measured_from_the_map(grey: int, side: int) -> None:
    plain = np.full((side, side, 3), grey, np.uint8)
    unregistered = align(plain, plain)
    everywhere = np.ones((side, side), np.float32)
    m = measure(plain, plain, unregistered, everywhere, (0, 0, side, side))
    assert not unregistered.ok
    assert m.method == "map"
    assert m.uncertainty_px > 0


def test_explained_share_is_the_part_of_the_region_near_the_measured_mask() -> None:
    region = np.zeros((20, 100), bool)
    region[5:15, 10:90] = True
    inside = (200, 50, 300, 70)  # where the region's array lies in the photo
    whole = np.ones((10, 80), bool)
    assert _explained(region, inside, whole, (210, 55, 290, 65), 3) == 1.0
    half = np.ones((10, 40), bool)
    assert _explained(region, inside, half, (210, 55, 250, 65), 0.5) == pytest.approx(0.5)
    assert _explained(region, inside, half, (210, 55, 250, 65), 8) == pytest.approx(0.6, abs=0.02)
    assert _explained(region, inside, half, (500, 55, 540, 65), 8) == 0.0  # all of it lies elsewhere
    assert _explained(region, inside, np.zeros((10, 40), bool), (210, 55, 250, 65), 8) == 0.0
    partly = np.ones((10, 80), bool)  # begins left of the region's array
    assert _explained(region, inside, partly, (170, 55, 250, 65), 0.5) == pytest.approx(0.5)
