"""The difference of a point cloud and its golden samples in millimetres, and what is measured of a place in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from refdiff.model.cloud.atlas import SIZE, VIEW_PX, view_of
from refdiff.model.cloud.difference import CloudDifference, compare, measure_place
from refdiff.model.cloud.points import Cloud, first_in_voxel
from refdiff.model.cloud.registration import refined
from refdiff.model.defect_types import DIFFERENCE_TYPES, MeasuredType
from refdiff.model.images import F32, Mask
from refdiff.tools.inspection.difference import Comparison, Difference, RegisteredGolden
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.kinds.cloud import CloudRules, drawn_of
from refdiff.tools.kinds.reading import Quantity, Reading, Window
from refdiff.tools.vision.measurement import Measurement, of_mask
from refdiff.tools.vision.regions import Region
from refdiff.tools.vision.shape import tight

_CELL_PX = 3.0  # as near as two places can be told apart
_ROOM_PX = 3
_LEVEL_PART = 0.25
_CORE = 0.5  # of a place's deviation: what is measured of it
_SHOWN_POINTS = 60_000
_REACH_PART = 0.02  # of the size: how far the last registration looks


def compare_scan(
    query: Reading, references: Sequence[RegisteredGolden], window: Window, ignore: Mask | None
) -> Difference:
    """The score is how far, in mm, a place of the surface lies outside of what the references show.

    window: of the product. ignore: (H, W) of the atlas, what does not count.
    """
    assert query.scan is not None, "a cloud"
    cloud = query.scan.cloud
    goldens = [_scan_of(r.workspace.golden_reading(r.golden)) for r in references]
    there = [_on(cloud, golden) if r.alignment.ok else golden for golden, r in zip(goldens, references, strict=True)]
    scan = compare(cloud, there, drawn_of(cloud, window), goldens)
    deviation = scan.deviation
    if ignore is not None:
        deviation = np.where(ignore, 0.0, deviation).astype(np.float32)
    counted = scan.covered if ignore is None else scan.covered & ~ignore
    peak = float(deviation.max())
    return Difference(
        anomaly_map=deviation,
        score=peak,
        peak=peak,
        covered=1.0,  # where the golden sample goes on is said apart
        scored=float(counted.mean()),
        types=np.zeros((len(DIFFERENCE_TYPES), 1, 1), np.float32),
        cell=_CELL_PX,
        focus_problem="",
        level=float(np.quantile(np.abs(scan.distances), _LEVEL_PART)),
        scan=scan,
    )


def _scan_of(reading: Reading) -> Cloud:
    assert reading.scan is not None, "a golden sample of a product of clouds is one"
    return reading.scan.cloud


def _on(cloud: Cloud, golden: Cloud) -> Cloud:
    """A golden, which lies nearly right, on a cloud."""
    on_golden = refined(cloud, golden, _REACH_PART * golden.size_mm)
    return golden.moved(np.asarray(np.linalg.inv(on_golden), np.float64))


def measure_scan(scan: CloudDifference, region: Region, scale: ResolvedScale) -> Measurement:
    """The px of a region in which the deviation has at least half its height."""
    x0, y0, x1, y1 = region.box
    core = region.mask & (scan.deviation[y0:y1, x0:x1] >= _CORE * region.peak)
    # between scattered points nothing is drawn, so that a place would look like a line that winds through its points
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(_CELL_PX), round(_CELL_PX)))
    whole = cv2.morphologyEx(np.pad(core, _ROOM_PX).astype(np.uint8), cv2.MORPH_CLOSE, kernel) > 0
    whole = whole[_ROOM_PX:-_ROOM_PX, _ROOM_PX:-_ROOM_PX]
    found = of_mask(region.box, whole, SIZE, scale.mm_per_px, scale.uncertainty)
    return replace(found, mask=tight(core, region.box[:2])[1])


def said_of_scan(
    query: Reading, comparison: Comparison, measurement: Measurement, rules: CloudRules
) -> tuple[MeasuredType | None, tuple[Quantity, ...]]:
    """What a place is (`extra_material`, `missing_material`), and what is measured of it."""
    found = comparison.difference.scan
    assert query.scan is not None, "a cloud"
    assert found is not None, "compared as a cloud"
    mask = np.zeros(SIZE, bool)
    x0, y0, x1, y1 = measurement.box
    mask[y0:y1, x0:x1] = measurement.mask
    place = measure_place(query.scan.cloud, found, mask, rules.accuracy_mm, query.scan.off_mm)
    if place is None:
        return None, ()
    quantities = [
        Quantity(
            "deviation_mm", "Deviation from the golden sample", place.deviation_mm, "mm", place.deviation_uncertainty_mm
        ),
        Quantity("highest_deviation_mm", "Highest deviation", place.highest_mm, "mm"),
        Quantity("lowest_deviation_mm", "Lowest deviation", place.lowest_mm, "mm"),
        Quantity("mean_deviation_mm", "Mean deviation", place.mean_mm, "mm"),
        Quantity("surface_mm2", "Surface that deviates", place.area_mm2, "mm²"),
    ]
    if place.volume_mm3 is not None:
        sure = place.area_mm2 * place.deviation_uncertainty_mm
        word = "Volume of extra material" if place.extra else "Volume of missing material"
        quantities.append(Quantity("volume_mm3", word, place.volume_mm3, "mm³", sure))
    for axis, value in zip("xyz", place.at, strict=True):
        quantities.append(Quantity(f"frame_{axis}_mm", f"{axis} in the golden samples' frame", value, "mm"))
    if found.descriptor is not None and place.descriptor is not None:
        usual = float(np.median(found.descriptor))
        said = f"Unlikeness of the surface's shape (FPFH; median of the part {usual:.0f})"
        quantities.append(Quantity("unlikeness", said, place.descriptor, ""))
    return ("extra_material" if place.extra else "missing_material"), tuple(quantities)


def scan_notes(query: Reading, comparison: Comparison) -> list[str]:
    """What people must know of a comparison, besides its numbers."""
    found = comparison.difference.scan
    assert query.scan is not None, "a cloud"
    assert found is not None, "compared as a cloud"
    cloud = query.scan.cloud
    notes = [
        f"{len(cloud.points):,} points, {cloud.spacing_mm:.2g} mm apart; boxes are in one picture of six sides (top, front, "
        "right; bottom, back, left), x, y and z in the frame of the first golden sample"
    ]
    if found.missing >= 0.001:
        notes.append(
            f"{100 * found.missing:.1f} % of the golden sample's surface was not measured; it counts neither as a defect "
            "nor as good"
        )
    return [*notes, *query.notes]


def scan_problems(query: Reading, comparison: Comparison, rules: CloudRules) -> list[str]:
    """Why a person has to look, whatever the score."""
    found = comparison.difference.scan
    assert found is not None, "compared as a cloud"
    problems = []
    if not comparison.nearest.alignment.ok:
        problems.append("the cloud could not be placed on its golden sample; what was measured means little")
    for part, limit, what, rule in (
        (
            found.missing,
            rules.max_missing_percent,
            "of the golden sample's surface was not measured",
            "max_missing_percent",
        ),
        (found.largest_gap, rules.max_hole_percent, "of it was not measured in one place", "max_hole_percent"),
    ):
        if 100 * part > limit:
            problems.append(f"{100 * part:.0f} % {what}, more than {limit:g} % (`cloud: {rule}`); scan the part again")
            break
    return problems


def view_place(measurement: Measurement) -> str:
    """The view that shows a place: "top view"."""
    x0, y0, x1, y1 = measurement.box
    return f"{view_of((x0 + x1) / 2, (y0 + y1) / 2)} view"


def scan_signed(query: Reading, golden: Reading) -> F32:
    """(H, W) mm, how far each px of a cloud's picture lies outside (+) or inside (-) of the golden's surface; NaN where the
    picture shows nothing."""
    return _against(query, golden).signed


def scan_points(query: Reading, golden: Reading) -> F32:
    """(n, 4) x, y, z and the signed deviation, mm, of at most 60,000 points of a cloud."""
    found, cloud = _against(query, golden), _scan_of(query)
    kept = np.arange(len(cloud.points))
    voxel = cloud.spacing_mm
    while len(kept) > _SHOWN_POINTS:
        kept, voxel = first_in_voxel(cloud.points, voxel), 1.2 * voxel
    return np.column_stack([cloud.points[kept], found.distances[kept]]).astype(np.float32)


def _against(query: Reading, golden: Reading) -> CloudDifference:
    """A cloud against one golden sample."""
    assert query.scan is not None, "a cloud"
    assert query.mm_per_px is not None, "a cloud's picture has a scale"
    cloud, theirs = query.scan.cloud, _scan_of(golden)
    there = _on(cloud, theirs) if query.scan.placed else theirs
    half = query.mm_per_px * VIEW_PX / 2
    return compare(cloud, [there], drawn_of(cloud, (-half, half)))
