"""The difference of a height map and its golden samples in millimetres, and what is measured of a place in it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.model.defect_types import DIFFERENCE_TYPES, MeasuredType
from refdiff.model.errors import DamagedError
from refdiff.model.height.difference import HeightDifference, Sensor, compare, largest_patch, measure_place
from refdiff.model.height.plane import height_of
from refdiff.model.images import F32, Mask
from refdiff.tools.framing.frames import matrix_of, place_of
from refdiff.tools.inspection.difference import Comparison, Difference, RegisteredGolden
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.on_query import on_query
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.inspection.zones import ignored_on_golden
from refdiff.tools.kinds.depth import DepthRules
from refdiff.tools.kinds.reading import Quantity, Reading
from refdiff.tools.vision.measurement import Measurement, of_mask
from refdiff.tools.vision.regions import Region, place_name
from refdiff.tools.vision.registration import coverage

_CELL_PX = 3.0  # as near as two places can be told apart: what is tolerated, and smoothed, on either side
_LEVEL_PART = 0.25
_CORE = 0.5  # of a place's height: what is measured of it
_RESIDUAL_PX = 0.5  # where the registration cannot say what it left
_FRAMED_BY = 64  # golden samples that say what they show
_SHOWN_BY = 0.75  # of them, that show what counts
_FAR_PX = 100_000.0  # beyond any picture, and small enough to be drawn
_LEAST_HOLE_PX = 25  # a smaller hole asks nobody


def compare_height(
    query: Reading, references: Sequence[RegisteredGolden], ignore: Mask | None, rules: DepthRules
) -> Difference:
    """The score is how far, in mm, the highest (or lowest) place lies outside of what the references show there.

    ignore: (H, W), what does not count. Holes do not count either.
    """
    assert query.values is not None, "a height map has heights"
    there, reaches = [], []
    for one in references:
        values = one.workspace.golden_reading(one.golden).values
        assert values is not None, "a golden sample of a product of height maps has heights"
        there.append(on_query(values, one.alignment.matrix, one.size))
        reaches.append(coverage(one.alignment.matrix, values.shape, one.size))
    height = compare(query.values, there, reaches, removal=rules.remove, ignore=ignore)
    height = replace(height, outside=_outside(query.values, references[0]))
    counted = height.covered if ignore is None else height.covered & ~ignore
    off = np.abs(height.signed[counted & np.isfinite(height.signed)])
    measured = max(1, int(np.isfinite(query.values).sum()))
    peak = float(height.deviation.max())
    return Difference(
        anomaly_map=height.deviation,
        score=peak,
        peak=peak,
        # of what was measured: the rest of the picture may be no part of anything
        covered=float((height.covered | height.beyond).sum()) / measured,
        scored=float(counted.mean()),
        types=np.zeros((len(DIFFERENCE_TYPES), 1, 1), np.float32),
        cell=_CELL_PX,
        focus_problem="",
        level=float(np.quantile(off, _LEVEL_PART)) if off.size else 0.0,
        height=height,
    )


def _outside(query: F32, nearest: RegisteredGolden) -> float:
    """The part of what golden samples of a frame show, without ignore zones, that lies outside of the query's picture; 0
    without registration.

    Nearly all of them: a corner of the table that some turned one shows is no part of the product, and one that was enrolled
    badly hides nothing.
    """
    workspace, golden = nearest.workspace, nearest.golden
    values = workspace.golden_reading(golden).values
    if values is None or not nearest.alignment.ok:
        return 0.0
    own, size = place_of(workspace, golden), (values.shape[0], values.shape[1])
    frames = workspace.stores.frames.of(golden.product)
    goldens = [
        g
        for g in workspace.bank.list(golden.product, IN_USE)
        if frames.get(g.golden_id, own.anchor_id) == own.anchor_id
    ]
    shown, asked = np.zeros(size, np.uint8), 0
    for other in goldens[:: max(1, -(-len(goldens) // _FRAMED_BY))] or [golden]:
        with contextlib.suppress(DamagedError):  # one that was never placed, and cannot be any more
            place = place_of(workspace, other)
            if place.anchor_id == own.anchor_id:
                here = np.linalg.inv(matrix_of(own)) @ matrix_of(place)
                corners = cv2.perspectiveTransform(_rectangle(place.size)[None], here)[0]
                drawn = np.zeros(size, np.uint8)
                cv2.fillConvexPoly(drawn, np.rint(np.clip(corners - 0.5, -_FAR_PX, _FAR_PX)).astype(np.int32), 1)
                shown, asked = shown + drawn, asked + 1
    counted = (shown >= max(1.0, _SHOWN_BY * asked)) & np.isfinite(values) & ~ignored_on_golden(workspace, golden, size)
    lies_in = coverage(np.asarray(np.linalg.inv(nearest.alignment.matrix), np.float64), query.shape, size)
    return float((counted & ~lies_in).sum()) / max(1, int(counted.sum()))


def _rectangle(size: tuple[int, ...]) -> NDArray[np.float64]:
    """(4, 2) corners x, y of a picture of `size` (H, W, ...)."""
    h, w = size[:2]
    return np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float64)


def measure_height(height: HeightDifference, region: Region, scale: ResolvedScale) -> Measurement:
    """The px of a region in which the difference has at least half its height."""
    x0, y0, x1, y1 = region.box
    core = region.mask & (height.deviation[y0:y1, x0:x1] >= _CORE * region.peak)
    return of_mask(region.box, core, height.deviation.shape, scale.mm_per_px, scale.uncertainty)


def said_of_height(
    query: Reading, comparison: Comparison, measurement: Measurement, scale: ResolvedScale, rules: DepthRules
) -> tuple[MeasuredType, tuple[Quantity, ...]]:
    """What a place is (`high_spot`, `low_spot`), and what is measured of it."""
    height, nearest = comparison.difference.height, comparison.nearest
    assert query.values is not None, "a height map has heights"
    assert height is not None, "compared as a height map"
    left = nearest.alignment.residual_px
    place = measure_place(
        query.values, height, measurement.box, measurement.mask, Sensor(rules.accuracy_mm),
        _RESIDUAL_PX if left is None else left,
    )  # fmt: skip
    found = [
        Quantity(
            "deviation_mm", "Deviation from the golden sample", place.deviation_mm, "mm", place.deviation_uncertainty_mm
        ),
        Quantity("highest_deviation_mm", "Highest deviation", place.highest_mm, "mm"),
        Quantity("lowest_deviation_mm", "Lowest deviation", place.lowest_mm, "mm"),
        Quantity("mean_deviation_mm", "Mean deviation", place.mean_mm, "mm"),
    ]
    if scale.mm_per_px is not None:
        area = scale.mm_per_px**2
        volume, px = place.volume_px_mm * area, int(measurement.mask.sum())
        # all of its px are off together by what the deviation is unsure of; and the scale counts twice
        sure = math.hypot(px * area * place.deviation_uncertainty_mm, 4 * scale.uncertainty * abs(volume))
        word = "Volume above the golden sample" if volume >= 0 else "Volume below the golden sample"
        found.append(Quantity("volume_mm3", word, abs(volume), "mm³", sure))
    found += _position(comparison, place.at, scale)
    return "high_spot" if place.high else "low_spot", tuple(found)


def _position(comparison: Comparison, at: tuple[float, float], scale: ResolvedScale) -> list[Quantity]:
    """Where a place of the photo lies in the frame of the golden samples: mm where the scale is known, else px."""
    nearest = comparison.nearest
    if not nearest.alignment.ok:
        return []
    on_anchor = matrix_of(place_of(nearest.workspace, nearest.golden))
    matrix = on_anchor @ np.linalg.inv(nearest.alignment.matrix)
    point = np.array([[at, (at[0] + 1, at[1]), (at[0], at[1] + 1)]], np.float64)
    here, right, down = cv2.perspectiveTransform(point, matrix)[0]
    if scale.mm_per_px is None:
        return [
            Quantity("frame_x_px", "x in the golden samples' frame", float(here[0]), "px"),
            Quantity("frame_y_px", "y in the golden samples' frame", float(here[1]), "px"),
        ]
    per_px = float(np.sqrt(np.linalg.norm(right - here) * np.linalg.norm(down - here)))
    x, y = (float(v) * scale.mm_per_px / per_px for v in here)
    return [
        Quantity("frame_x_mm", "x in the golden samples' frame", x, "mm"),
        Quantity("frame_y_mm", "y in the golden samples' frame", y, "mm"),
    ]


def height_notes(query: Reading, comparison: Comparison, golden: Reading, rules: DepthRules) -> list[str]:
    """What people must know of a comparison, besides its numbers."""
    height = comparison.difference.height
    assert height is not None, "compared as a height map"
    found = []
    if rules.remove != "none":
        offset, tilt = _moved(query, comparison, golden)
        said = f"the part as a whole lies {offset:+.3g} mm against golden sample {comparison.nearest.golden.golden_id}"
        if rules.remove != "offset":
            said += f", tilted by {tilt:.2g}°" if tilt is not None else ", and may be tilted (its scale is unknown)"
        if rules.remove == "plane_and_scale":
            said += f"; heights of the golden sample are multiplied by {height.factor:.4f}"
        found.append(f"{said}; this is removed from all differences")
    missing, beyond, outside = _percent(height.missing, height), _percent(height.beyond, height), 100 * height.outside
    for percent, least, what in (
        (
            missing,
            0.1,
            "of what the golden samples show was not measured (holes); it counts neither as a defect nor as good",
        ),
        (beyond, 0.1, "as much as that was measured where the golden samples have no surface; it is not compared"),
        (outside, 1.0, "of what the golden samples show lies outside of the picture; it was not inspected"),
    ):
        if percent >= least:
            found.append(f"{percent:.1f} % {what}")
    return [*found, *query.notes]


def _moved(query: Reading, comparison: Comparison, golden: Reading) -> tuple[float, float | None]:
    """By how many mm all of the part is higher than its golden sample in the middle of the picture, and by how many degrees
    it is tilted against it; None where no scale says it."""
    height, alignment = comparison.difference.height, comparison.nearest.alignment
    assert height is not None, "compared as a height map"
    h, w = comparison.nearest.size
    points = np.array([[(w / 2, h / 2), (w / 2 + 1, h / 2), (w / 2, h / 2 + 1)]], np.float64)
    theirs = cv2.perspectiveTransform(points, np.linalg.inv(alignment.matrix))[0]

    def on(plane: tuple[float, float, float], at: np.ndarray) -> np.ndarray:
        return np.asarray(plane[0] + at @ np.array(plane[1:]), np.float64)

    off = on(query.level, points[0]) + on(height.plane, points[0]) - height.factor * on(golden.level, theirs)
    pitch = query.mm_per_px or comparison.nearest.golden.scale_mm_per_px
    tilt = None if pitch is None else math.degrees(math.atan(math.hypot(off[1] - off[0], off[2] - off[0]) / pitch))
    return float(off[0]), tilt


def height_problems(query: Reading, comparison: Comparison, golden: Reading, rules: DepthRules) -> list[str]:
    """Why a person has to look, whatever the score."""
    height = comparison.difference.height
    assert height is not None, "compared as a height map"
    found = []
    if not comparison.nearest.alignment.ok:
        found.append("heights were compared without registration")
    elif rules.remove != "none":
        offset, tilt = _moved(query, comparison, golden)
        if rules.max_tilt_deg is not None and tilt is None:
            found.append(
                f"no scale says whether the part is tilted by more than {rules.max_tilt_deg:g}° (`depth: max_tilt_deg`); "
                "state `scale_mm_per_px`, or leave the limit out"
            )
        if rules.max_offset_mm is not None and abs(offset) > rules.max_offset_mm:
            found.append(
                f"the part as a whole lies {offset:+.3g} mm against its golden sample, more than {rules.max_offset_mm:g} mm "
                "(`depth: max_offset_mm`)"
            )
        if rules.max_tilt_deg is not None and tilt is not None and tilt > rules.max_tilt_deg:
            found.append(
                f"the part is tilted by {tilt:.2g}° against its golden sample, more than {rules.max_tilt_deg:g}° (`depth: "
                "max_tilt_deg`)"
            )
    outside = 100 * height.outside
    # of all that the golden samples show, inside and outside of the picture
    missing = outside + (1 - height.outside) * _percent(height.missing, height)
    if missing > rules.max_missing_percent:
        where = f", {outside:.0f} % of it outside of the picture" if outside >= 1 else ""
        found.append(
            f"{missing:.0f} % of what the golden samples show was not measured{where}, more than "
            f"{rules.max_missing_percent:g} % (`depth: max_missing_percent`); measure the part again"
        )
    if (beyond := _percent(height.beyond, height)) > rules.max_missing_percent:
        found.append(
            f"as much as {beyond:.0f} % of what the golden samples show was measured where they have no surface, more than "
            f"{rules.max_missing_percent:g} % (`depth: max_missing_percent`); a person has to look"
        )
    for mask, what in (
        (height.missing, "was not measured, where the golden samples have a surface: a hole, or a place that reflects"),
        (height.beyond, "was measured, where the golden samples have no surface"),
    ):
        area, box = largest_patch(mask)
        if box is not None and area >= _LEAST_HOLE_PX and 100 * area > rules.max_hole_percent * _surface(height):
            size = f"{box[2] - box[0]} x {box[3] - box[1]} px ({place_name(box, comparison.nearest.size)})"
            found.append(f"a place of {size} {what}; a person has to look (`depth: max_hole_percent`)")
    return found


def _surface(height: HeightDifference) -> int:
    """px that the golden samples show."""
    return max(1, int((height.covered | height.missing).sum()))


def _percent(mask: Mask, height: HeightDifference) -> float:
    return 100 * float(mask.sum()) / _surface(height)


def height_planes(query: Reading, golden: Reading, kept: KeptDifference) -> tuple[F32, F32]:
    """The golden's heights on the part's px as they were fitted, and the part minus them: (H, W) mm, NaN in holes."""
    assert query.values is not None, "a height map has heights"
    assert golden.values is not None, "a height map has heights"
    size = query.picture.shape[0], query.picture.shape[1]
    *plane, factor = kept.fit
    there = factor * on_query(golden.values, kept.matrix, size) + height_of((plane[0], plane[1], plane[2]), size)
    return np.asarray(there, np.float32), np.asarray(query.values - there, np.float32)
