"""Height and colour of one part together: each compared by itself, and both as one map and one score.

The colour photo lies on the px of the height map. It is compared as photos are, by the networks, but in the pose that the
heights were registered in; so a hole of the height map is compared in colour all the same.

Either map has its own unit. Together they are in units of what good parts show: the map in its threshold, the score in
robust standard deviations above the median of the good parts. The larger of the two counts, and good parts are scored the
same way: so one p-value is of both, and the false-reject rate that is promised holds for height and colour together, with
no more good parts than for one of them. (Two p-values at half the rate each would need twice as many.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import cv2
import numpy as np

from refdiff.memory.rows.calibrations import Calibration, OfMap
from refdiff.model.defect_types import COLOUR_CHANGE, MeasuredType
from refdiff.model.images import F32, Box, Mask, RgbImage
from refdiff.tools.framing.photos import Query
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import (
    ColourDifference,
    Comparison,
    Difference,
    RegisteredGolden,
    score_difference,
)
from refdiff.tools.inspection.fineness import working_px
from refdiff.tools.inspection.pairs import sizes_of
from refdiff.tools.inspection.pixel_format import format_problem
from refdiff.tools.inspection.robust import robust_spread
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.inspection.zones import product_spec
from refdiff.tools.kinds.reading import Quantity
from refdiff.tools.vision.measurement import Measurement, measure, of_mask
from refdiff.tools.vision.regions import PART_OF_PEAK, Region, find_regions, highest_without
from refdiff.tools.workspace import Workspace

FOUND_IN_HEIGHT, FOUND_IN_COLOUR = "height", "colour"
_PIXEL_QUANTILE = 0.975  # of each map: of both together, .95 of the good parts show no region, as with one
_CORE = 0.5  # of a place's strength: what is measured of it
_PLAIN = OfMap(0.0, 1.0, 1.0)  # without calibration, values are what they are
_LEAST = 1e-9  # instead of dividing by 0


def compare_colour(
    query: RgbImage, query_key: str, references: Sequence[RegisteredGolden], ignore: Mask | None, clock: Clock
) -> ColourDifference:
    """How a colour photo (H, W, 3) differs from those of golden samples, which lie on it as their heights do.

    query_key: sha256 of the file that it is of. ignore: (H, W), what does not count.
    """
    workspace = references[0].workspace.in_colour
    with clock.stage("align"):
        there = [_in_colour(workspace, query, query_key, one) for one in references]
    golden = there[0].golden
    with clock.stage("encode"):
        photo = Query(query, query_key, workspace.encoder.embed(query))
        px = working_px(workspace, product_spec(workspace, golden.product), golden)
        sizes = sizes_of(photo, there, px)
    with clock.stage("score"):
        found = score_difference(query, sizes, there, ignore, workspace.network(golden.product))
    problem = format_problem(query, workspace.golden_image(golden), deep=False)
    alignments = [one.alignment for one in there]
    return ColourDifference(on_photo(found, query.shape), query, there[0], alignments, problem)


def _in_colour(workspace: Workspace, query: RgbImage, query_key: str, golden: RegisteredGolden) -> RegisteredGolden:
    """The colour photo of a golden sample on that of a part, as their heights lie on each other."""
    ncc = workspace.edge_correlation(query, query_key, golden.golden, golden.alignment.matrix)
    return replace(golden, workspace=workspace, alignment=replace(golden.alignment, ncc=ncc))


def on_photo(found: Difference, size: tuple[int, ...]) -> Difference:
    """A difference whose map has a px for each of a photo of `size` (H, W, ...), as that of heights does: of large photos it
    is smaller."""
    small, (h, w) = found.anomaly_map, (size[0], size[1])
    if small.shape == (h, w):
        return found
    large = np.asarray(cv2.resize(small, (w, h), interpolation=cv2.INTER_LINEAR), np.float32)
    return replace(found, anomaly_map=large, cell=found.cell_of(size))


def as_one(difference: Difference, calibration: Calibration | None) -> Difference:
    """Height and colour as one map and one score; a difference of anything else as it is.

    Of the raw maps that it holds, so it may be called again, with another calibration.
    """
    if difference.colour is None or difference.height is None:
        return difference
    colour, scored = difference.colour.found, (calibration.maps if calibration else []) or [_PLAIN, _PLAIN]
    difference = replace(difference, thresholds=(scored[0].threshold, scored[1].threshold), least=(None, None))
    both = np.maximum(*_planes(difference))
    return replace(
        difference,
        anomaly_map=both,
        score=_joint(raw_scores(difference), scored),
        peak=float(both.max()),
        scored=max(difference.scored, colour.scored),
        focus_problem=colour.focus_problem,
        level=colour.level,  # another light shows in the colour alone
    )


def as_photo(comparison: Comparison, calibration: Calibration | None) -> tuple[Comparison, Calibration | None]:
    """What the colour alone says, for what is asked of photos: the comparison of the colour photos, and a calibration with
    their scores. Both as they are where no colour was compared."""
    if (colour := comparison.difference.colour) is None:
        return comparison, calibration
    if calibration is not None:
        # similarities are of the heights
        calibration = replace(calibration, scores=calibration.maps[1].scores, similarities=[])
    alone = replace(comparison, difference=colour.found, nearest=colour.nearest, alignments=colour.alignments)
    return alone, calibration


def height_alone(difference: Difference, calibration: Calibration) -> float | None:
    """The image score that the height would have alone; None where no colour was compared."""
    scores = raw_scores(difference)
    return calibration.maps[0].standing(scores[0][0]) if scores else None


def score_without(difference: Difference, calibration: Calibration, found: Mask) -> float:
    """The image score if what was `found`, bool on the photo, and what surrounds it did not count."""
    if (colour := difference.colour) is not None:
        assert difference.height is not None, "compared in height, too"
        height, seen = calibration.maps[0], colour.found.cells
        rest = height.standing(highest_without(difference.height.deviation, found, difference.cell))
        return rest if seen is None else max(rest, calibration.maps[1].standing(seen.score_without(found)))
    if difference.cells is not None:
        return difference.cells.score_without(found)
    return highest_without(difference.anomaly_map, found, difference.cell)


def as_each_stands_out(
    difference: Difference, calibration: Calibration | None, stands_out: Callable[[float], bool]
) -> Difference:
    """A difference as one, of which height and colour each have a place to be found where the image score of that alone
    stands out, however spread it is: else a limit that accepts a finding of one would pass what the other shows.

    stands_out: asked of an image score.
    """
    if calibration is None or not calibration.maps or difference.colour is None:
        return difference
    height, colour = (
        (1.0 if peak >= of.threshold else PART_OF_PEAK * peak / of.threshold)
        if peak > 0 and stands_out(of.standing(score))
        else None
        for (score, peak), of in zip(raw_scores(difference), calibration.maps, strict=True)
    )
    return replace(difference, least=(height, colour))


def places_apart(difference: Difference, found: Sequence[Region], size: tuple[int, int]) -> list[Region]:
    """The places of `as_each_stands_out` that are not among those that were found. size: (H, W) of the photo."""
    if difference.colour is None:
        return []
    apart: list[Region] = []
    for plane, least in zip(_planes(difference), difference.least, strict=True):
        if least is not None and not any(_shows(plane, region) for region in found):
            own = np.asarray(plane * np.float32(least), np.float32)
            apart += find_regions(own, least, difference.types, size, difference.cell)[:1]
    return apart


def _shows(plane: F32, region: Region) -> bool:
    x0, y0, x1, y1 = region.box
    return bool((plane[y0:y1, x0:x1][region.mask] >= 1).any())


def raw_scores(difference: Difference) -> list[tuple[float, float]]:
    """Image score and highest value of each map, of height and of colour; [] where there is only one map."""
    if difference.colour is None or difference.height is None:
        return []
    highest, colour = float(difference.height.deviation.max()), difference.colour.found
    return [(highest, highest), (colour.score, colour.peak)]


def _joint(scores: Sequence[tuple[float, float]], maps: Sequence[OfMap]) -> float:
    """The image score of both maps together. scores: `raw_scores`."""
    return max(of.standing(score) for (score, _), of in zip(scores, maps, strict=True))


def maps_of(good: Sequence[Sequence[tuple[float, float]]]) -> list[OfMap]:
    """What good parts show in each map. good: `raw_scores` of each part."""
    return [_of_map([s for s, _ in part], [p for _, p in part]) for part in zip(*good, strict=True)]


def joint_scores(good: Sequence[Sequence[tuple[float, float]]]) -> tuple[list[float], list[float]]:
    """Image score and peak of each good part, of both maps as one.

    A part's score is in the spread of the others, as a new part's is in the spread of all of them: else the part that
    stands out most would stand out less than a new one like it does, and more than the promised rate of them would fail.
    """
    of_all, scores, peaks = maps_of(good), [], []
    for i, part in enumerate(good):
        scores.append(_joint(part, maps_of([*good[:i], *good[i + 1 :]])))
        peaks.append(max(p / of.threshold for (_, p), of in zip(part, of_all, strict=True)))
    return scores, peaks


def _of_map(scores: Sequence[float], peaks: Sequence[float]) -> OfMap:
    middle = float(np.median(scores))
    # of one other part nothing is known of how they spread; no part fails by so few
    spread = robust_spread(scores) or abs(middle) or 1.0
    return OfMap(middle, spread, max(float(np.quantile(peaks, _PIXEL_QUANTILE)), _LEAST), sorted(scores))


def measure_either(comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    """The size of a region: where its height differs, or both do, of the px that differ at least half as much as the place
    does; where its colour alone does, as of a photo."""
    difference = comparison.difference
    assert difference.colour is not None, "compared in colour, too"
    planes, found = _planes(difference), difference.colour.found
    x0, y0, x1, y1 = region.box
    if found_in(difference, region) == (FOUND_IN_COLOUR,):
        nearest, query = difference.colour.nearest, difference.colour.query
        return measure(
            query, nearest.workspace.golden_image(nearest.golden), nearest.alignment, planes[1], region.box,
            mask=region.mask, cell=found.cell_of(query.shape), mm_per_px=scale.mm_per_px,
            scale_uncertainty=scale.uncertainty,
        )  # fmt: skip
    there = [np.where(region.mask, plane[y0:y1, x0:x1], 0.0) for plane in planes]
    cores = [plane >= _CORE * plane.max() for plane in there if plane.max() >= 1]
    core = region.mask & np.logical_or.reduce(cores or [there[0] >= _CORE * there[0].max()])
    return of_mask(region.box, core, difference.anomaly_map.shape, scale.mm_per_px, scale.uncertainty)


def found_in(difference: Difference, region: Region) -> tuple[str, ...]:
    """Which maps a region was found in: those above their threshold there, else the higher one."""
    x0, y0, x1, y1 = region.box
    height, colour = (float(plane[y0:y1, x0:x1][region.mask].max()) for plane in _planes(difference))
    if height >= 1 and colour >= 1:
        return FOUND_IN_HEIGHT, FOUND_IN_COLOUR
    return (FOUND_IN_HEIGHT,) if height >= colour else (FOUND_IN_COLOUR,)


def _planes(difference: Difference) -> list[F32]:
    """(H, W) of height and colour, 1 from where a place is one of that."""
    assert difference.height is not None, "compared in height"
    assert difference.colour is not None, "compared in colour"
    raw = difference.height.deviation, difference.colour.found.anomaly_map
    units = [
        threshold * (least or 1.0) for threshold, least in zip(difference.thresholds, difference.least, strict=True)
    ]
    return [np.asarray(p / np.float32(unit), np.float32) for p, unit in zip(raw, units, strict=True)]


def said_of_colour(difference: Difference, measurement: Measurement) -> tuple[MeasuredType, Quantity]:
    """What a place is called whose colour differs, and by how much: of the mean colour of its px, CIELAB (1976)."""
    colour = difference.colour
    assert colour is not None, "compared in colour"
    ours, theirs = (_mean_lab(p, measurement.box, measurement.mask) for p in (colour.query, colour.nearest.picture))
    apart = float(np.linalg.norm(ours - theirs))
    return COLOUR_CHANGE, Quantity("colour_difference", "Colour difference from the golden sample", apart, "ΔE")


def _mean_lab(picture: RgbImage, box: Box, mask: Mask) -> F32:
    x0, y0, x1, y1 = box
    lab = cv2.cvtColor(picture[y0:y1, x0:x1].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray(lab[mask].mean(0) if mask.any() else lab.mean((0, 1)), np.float32)


def colour_notes(difference: Difference) -> list[str]:
    """What people must know of the score."""
    (height, _), (colour, _) = raw_scores(difference)
    return [
        "height and colour are scored together: by how many robust standard deviations of the good parts the larger of the "
        f"two lies above their median (height alone {height:.3g} mm, colour alone {colour:.3g})"
    ]
