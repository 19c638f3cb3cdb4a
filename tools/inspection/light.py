"""Whether a photo fails because of its light: it differs from the golden samples as a whole, and nothing stands out of that.

Another lamp, exposure or camera changes the features of every place; a defect changes few. So the level is looked at: the
lower quartile of the anomaly map's cells. A defect that is as large as the part has a high level, too, and no single photo
tells it from another light (a dead solar cell is darker as a whole): so nothing passes for its level. What fails, but not
by more than its level explains, goes to a person with that reason. Light leaves edges where they are: what has its edges
elsewhere than good parts, such as another label, is no matter of light.
"""

from __future__ import annotations

import numpy as np

from refdiff.memory.rows.calibrations import Calibration
from refdiff.model.difference.features import resize_to
from refdiff.model.images import RgbImage
from refdiff.tools.inspection.calibration import (
    edge_correlation,
    is_suspicious,
    score_threshold,
    unlike_goldens,
    unusual_level,
)
from refdiff.tools.inspection.difference import Comparison, RegisteredGolden
from refdiff.tools.inspection.robust import MIN_VALUES
from refdiff.tools.vision.regions import map_size
from refdiff.tools.vision.registration import coverage, scaling

# the score grows faster than the level does; measured (docs/measured.md, "Another light")
_GROWTH = 2
# of the edge correlation of the good part whose edges fit least. Under other lamps rendered parts kept .87 of it and more,
# other designs of label, circuit and moulded part had .74 at most (docs/measured.md, "Another label")
_LEAST_EDGES = 0.8
_TOLD_BRIGHTNESS, _TOLD_COLOUR = 0.05, 0.03  # changes of gain that are worth telling
_READABLE = (8, 247)  # grey values that are neither black nor clipped
_LEAST_READABLE = 0.1  # part of the photo


def other_light(
    photo: RgbImage, comparison: Comparison, calibration: Calibration | None, p: float | None, attained: float
) -> str:
    """The problem with a photo (H, W, 3) that does not pass because all of it differs; "" if there is none.

    A score stays suspicious by itself where it exceeds that of good parts by more than the square of what the level does.
    """
    if calibration is None or p is None or len(known := calibration.levels) < MIN_VALUES:
        return ""
    if comparison.format_problem or comparison.difference.focus_problem:
        return ""  # the reason is known more exactly
    highest, level, similarity = float(known[-1]), comparison.difference.level, comparison.hits[0].similarity
    if not unusual_level(calibration, level):
        return ""
    if calibration.edges and edge_correlation(comparison) < _LEAST_EDGES * max(calibration.edges[0], 0):
        return ""
    if not is_suspicious(calibration, p, attained) and not unlike_goldens(calibration, p, similarity, attained):
        return ""  # it passes
    # another light also changes what is counted
    score = comparison.difference.score - comparison.difference.added
    limit = score_threshold(calibration.scores, attained)
    if limit is None or score > limit * (level / max(highest, 1e-9)) ** _GROWTH:
        return ""
    return (
        "the whole photo differs from the golden samples: even what fits them best differs "
        f"{level / max(highest, 1e-9):.1f} times as much as in any of {calibration.n} good parts "
        f"({_change(photo, comparison.nearest)}); photograph the part as the golden samples were, or add its "
        "photo to them if it is good"
    )


def _change(photo: RgbImage, golden: RegisteredGolden) -> str:
    """What changed from a golden sample to a photo as a whole, in words."""
    unknown = "another light, exposure or camera?"
    if not golden.alignment.ok:
        return unknown
    ours, theirs = resize_to(photo, map_size(photo.shape)), golden.reduced
    low, high = _READABLE
    readable = ((np.minimum(ours, theirs) >= low) & (np.maximum(ours, theirs) <= high)).all(2)
    on_map = scaling(golden.size, ours.shape) @ golden.alignment.matrix
    readable &= coverage(on_map, golden.workspace.golden_image(golden.golden).shape[:2], ours.shape[:2])
    if readable.mean() < _LEAST_READABLE:
        return unknown
    gains = np.median(np.log(ours[readable].astype(np.float32) / theirs[readable]), 0)
    brighter, tints = float(np.expm1(gains.mean())), np.expm1(gains - gains.mean())
    said = []
    if abs(brighter) >= _TOLD_BRIGHTNESS:
        said.append(f"{100 * abs(brighter):.0f} % {'brighter' if brighter > 0 else 'darker'}")
    said += [
        f"{100 * abs(tint):.0f} % {'more' if tint > 0 else 'less'} {colour}"
        for colour, tint in zip(("red", "green", "blue"), tints, strict=True)
        if abs(tint) >= _TOLD_COLOUR
    ]
    return (
        f"{', '.join(said)} than the nearest"
        if said
        else "as bright as the nearest: lit from another direction, or another variant?"
    )
