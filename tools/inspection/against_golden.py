"""What the golden sample has where a finding is: an edge that has moved since, something that is not there any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from refdiff.memory.rows.calibrations import Calibration
from refdiff.model.defect_types import WRONG_FILL_LEVEL
from refdiff.model.images import Box, RgbImage
from refdiff.tools.inspection.component_names import names_of
from refdiff.tools.inspection.components import Count, count, look_of
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.vision.edges import MovedEdge, moved_edge
from refdiff.tools.vision.measurement import Measurement
from refdiff.tools.vision.outlines import Outline, outline_of


@dataclass(frozen=True)
class AgainstGolden:
    """A finding against the nearest golden sample, where that is registered."""

    moved: MovedEdge | None = None  # the edge of the golden whose move explains the finding
    outline: Outline | None = None  # how clear the finding's outline is in both
    component: Count | None = None  # what of the counted components the golden shows there


def against_golden(
    query: RgbImage,
    comparison: Comparison,
    calibration: Calibration | None,
    findings: Sequence[tuple[str, Measurement]],
) -> list[AgainstGolden]:
    """Of each finding (type, size) of a photo, what the nearest golden sample says; nothing where it is not registered."""
    nearest = comparison.nearest
    if not nearest.alignment.ok or not findings:
        return [AgainstGolden()] * len(findings)
    golden = nearest.workspace.golden_image(nearest.golden)
    counted = _counted(comparison, calibration, golden.shape[:2])
    return [
        AgainstGolden(
            moved_edge(query, golden, nearest.alignment, m.box, m.mask, may_be_hidden=kind == WRONG_FILL_LEVEL),
            outline_of(query, golden, nearest.alignment, m.box, m.mask),
            _there(counted, m.box),
        )
        for kind, m in findings
    ]


def _counted(comparison: Comparison, calibration: Calibration | None, size: tuple[int, int]) -> list[tuple[Box, Count]]:
    """What is counted on the nearest golden sample, each with its box on the photo. size: of the golden, (H, W)."""
    if calibration is None or not calibration.components:
        return []
    # parts that lie loosely register to one golden sample or another by chance: then its places say nothing of the photo
    if 2 * sum(a.ok for a in comparison.alignments) <= len(comparison.alignments):
        return []
    nearest = comparison.nearest
    look = look_of(nearest.workspace.golden_features(nearest.golden))
    names, _ = names_of(nearest.workspace.stores, calibration.product, calibration.components)
    found = []
    for counts, name in zip(count(calibration.components, look, None, size), names, strict=True):
        for one in counts.instances:
            x0, y0, x1, y1 = one.box
            corners = np.array([[(x0, y0), (x1, y0), (x1, y1), (x0, y1)]], np.float64)
            on_photo = cv2.perspectiveTransform(corners, nearest.alignment.matrix)[0]
            (a, b), (c, d) = on_photo.min(0), on_photo.max(0)
            box = round(float(a)), round(float(b)), round(float(c)), round(float(d))
            found.append((box, Count(counts.number, counts.expected, [one], name)))
    return found


def _there(counted: Sequence[tuple[Box, Count]], place: Box) -> Count | None:
    """The one that shares most with a box, if that is more than half of the smaller of the two."""
    shared = [_shared(box, place) for box, _ in counted]
    return counted[int(np.argmax(shared))][1] if max(shared, default=0.0) > 0.5 else None


def _shared(one: Box, other: Box) -> float:
    """What two boxes share, as a part 0..1 of the smaller."""
    w, h = (max(0, min(one[i + 2], other[i + 2]) - max(one[i], other[i])) for i in (0, 1))
    return w * h / max(1, min((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)))
