"""The canonical inspection of one photo: nearest goldens, calibrated score, regions with sizes. No verdict, no language."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE, GoldenHit, make_golden_id
from refdiff.memory.rows.calibrations import Calibration
from refdiff.memory.rows.captures import Capture
from refdiff.model.errors import UnavailableError, UnknownRecordError
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.tools.framing.photos import Query
from refdiff.tools.inspection.against_golden import AgainstGolden, against_golden
from refdiff.tools.inspection.calibration import (
    attained_alpha,
    calibration_key,
    current_calibration,
    in_doubt,
    is_suspicious,
    p_value,
    peak_p_value,
    region_confidence,
    requested_alpha,
    unlike_goldens,
    with_counts,
    with_pose,
)
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.colour import (
    as_each_stands_out,
    as_one,
    as_photo,
    height_alone,
    places_apart,
    score_without,
)
from refdiff.tools.inspection.comparison import compare_with
from refdiff.tools.inspection.components import Count
from refdiff.tools.inspection.difference import Comparison, Difference
from refdiff.tools.inspection.light import other_light
from refdiff.tools.inspection.methods import Described, Method, Remarks, method_of
from refdiff.tools.inspection.pieces import Extent, extent_of, things
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.scale import ResolvedScale, resolve_scale
from refdiff.tools.inspection.zones import place_zones, product_spec, zones_outside
from refdiff.tools.vision.measurement import Measurement, measured_as_one
from refdiff.tools.vision.regions import MAX_REGIONS, PART_OF_PEAK, Region, find_regions, map_window, merged, place_name
from refdiff.tools.vision.registration import Alignment, turn_in_words
from refdiff.tools.vision.shape import union
from refdiff.tools.workspace import Workspace

_MIN_COVERED = 0.6  # part of the photo that references must reach
_MAX_TRIES = 3  # of an inspection during which golden samples, or the network fitted to them, change
_UNCALIBRATED_THRESHOLD = 0.2  # of the anomaly map: there a clear distance is as likely a defect as not


@dataclass(frozen=True)
class RegionResult:
    """What the anomaly map found, as one thing: a finding once it is reported."""

    region: Region
    measurement: Measurement
    extent: Extent  # what is drawn of it: holds all that was measured
    confidence: float  # 0..1, share of good parts whose strongest place is weaker
    peak_p: float | None  # conformal p-value of its peak, None without calibration
    zones: list[str]  # critical zones that it touches
    places: list[str] = field(default_factory=list)  # zones that limits may be about, these among them
    described: Described = field(default_factory=Described)  # what the kind's own measurement says of it
    golden: AgainstGolden = field(default_factory=AgainstGolden)  # what the nearest golden sample has there


@dataclass(frozen=True)
class PhotoInspection:
    """What is known of a photo before anybody judges it."""

    comparison: Comparison
    calibration: Calibration | None  # None: too few good parts
    p_value: float | None  # conformal p-value of the image score, None without calibration
    threshold: float  # of the anomaly map: regions lie above it
    scale: ResolvedScale
    regions: list[RegionResult]  # strongest first
    crowded: bool  # there may be more: only the strongest of the map were measured
    problems: list[str]  # why a person should look, whatever the score
    # of the image score without the regions and what surrounds them; None where there is no region, or no calibration
    p_rest: float | None = None
    in_doubt: int = 0  # see `calibration.in_doubt`
    counts: list[Count] = field(default_factory=list)  # of each component of the product
    pose: list[str] = field(
        default_factory=list
    )  # that it is mirrored, or does not register, in words; part of the score
    network: str | None = None  # sha256 of the networks fitted to the product that compared it
    remarks: Remarks = field(
        default_factory=Remarks
    )  # what the kind says of the comparison; its problems are in `problems`


def regions_of(comparison: Comparison, threshold: float, *, at_least_one: bool) -> list[Region]:
    """Regions above the threshold; if there is none but one is needed (the score is high), the place of the peak."""
    difference, size = comparison.difference, comparison.nearest.size
    heat, types, cell = difference.anomaly_map, difference.types, difference.cell
    regions = find_regions(heat, threshold, types, size, cell)
    if not regions and at_least_one and difference.peak > 0:
        regions = find_regions(heat, PART_OF_PEAK * difference.peak, types, size, cell)[:1]
    return regions


def touches(mask: NDArray[np.bool_], seen: Extent, size: tuple[int, ...]) -> bool:
    """Does a zone (`mask`, as `place_zones` gives it) reach into a place of a photo of `size` (H, W, ...)?"""
    under = map_window(mask.astype(np.uint8), seen.box, size)
    return bool((under.astype(bool) & seen.mask).any())


def _p_rest(
    difference: Difference, calibration: Calibration | None, regions: Sequence[RegionResult], size: tuple[int, ...]
) -> float | None:
    """See `PhotoInspection.p_rest`. size: (H, W, ...) of the photo."""
    if calibration is None or not regions:
        return None
    found = np.zeros(size[:2], bool)
    for result in regions:
        (x0, y0, x1, y1), mask = union([(seen.box, seen.mask) for seen in (result.region, result.extent)])
        found[y0:y1, x0:x1] |= mask
    return p_value(calibration, score_without(difference, calibration, found))


@dataclass(frozen=True)
class Found:
    """A photo and its nearest golden samples. key: of the calibration that fits the bank as it was searched."""

    photo: Query
    hits: list[GoldenHit]
    key: str

    def as_registered(self) -> Found:
        """The same, which shares no further registration with this one."""
        return replace(self, photo=self.photo.as_registered())


def search(
    workspace: Workspace, photo: Query, product: str, k: int, clock: Clock, without: Collection[str] = ()
) -> Found:
    """The k nearest golden samples of a photo, registered anew. without: ids left out. Raises as `nearest_goldens`."""
    key = calibration_key(workspace, product, workspace.settings.references)
    photo = replace(photo, poses={})
    return Found(photo, nearest_goldens(workspace, photo, product, k, without, clock), key)


def inspect_photo(
    workspace: Workspace,
    capture: Capture,
    *,
    found: Found | None = None,
    clock: Clock | None = None,
    progress: Progress = silent,
) -> PhotoInspection:
    """Inspect a captured photo the canonical way; deterministic for a given bank.

    found: the photo and its nearest goldens, if known; as many as the settings say. Redoes a stale calibration (`progress`).
    Raises UnknownProductError, ImageError, and UnavailableError where golden samples keep changing.
    """
    clock = clock or Clock()
    if found is None:
        image = workspace.image(capture.sha256, capture.product, f"photo of part {capture.part_id}")
        with clock.stage("encode"):
            photo = Query(image, capture.sha256, workspace.encoder.embed(image))
    else:
        photo = found.photo
    query, method = photo.image, method_of(workspace, capture.product)
    itself = _of_same_part(workspace, capture)  # an enrolled photo: by a network that did not see it
    for _ in range(_MAX_TRIES):
        searched = _references(workspace, photo, capture, itself, found, clock)
        photo, hits = searched.photo, searched.hits
        network = workspace.fitted(capture.product)
        comparison = compare_with(workspace, photo, capture.product, hits, clock, itself)
        calibration = current_calibration(workspace, capture.product, progress=progress)
        # the scores of another network would mean something else, and so would those of other golden samples
        if network == workspace.fitted(capture.product) and (calibration is None or calibration.key == searched.key):
            break
        found = None
    else:
        raise UnavailableError(
            f"the golden samples of product {capture.product!r} changed during the inspection; try again when nobody enrols "
            "or retires any"
        )
    comparison = replace(comparison, difference=as_one(comparison.difference, calibration))
    comparison, counts, uncounted = with_counts(comparison, calibration)
    comparison, pose = with_pose(query, comparison, calibration)
    problems, difference = problems_of(comparison), comparison.difference
    problems += [said for said in (uncounted, pose.problem) if said]
    if network is not None and any(d.photo == capture.sha256 for d in network.confirmed):
        problems.append(
            "the network of this product learned from this very photo, as one of a defect: a person has to judge it"
        )
    spec = product_spec(workspace, capture.product)
    if wrong_way := _turned(comparison.alignments, spec.max_turn_deg):
        problems.append(wrong_way)
    scale = resolve_scale(capture, hits[0].golden, comparison.alignments[0], spec.scale_mm_per_px)
    if scale.problem:
        problems.append(scale.problem)
    p = p_value(calibration, difference.score) if calibration else None
    doubted = in_doubt(workspace, calibration)
    attained = attained_alpha(requested_alpha(workspace, calibration), calibration.n if calibration else 0, doubted)
    difference = as_each_stands_out(difference, calibration, lambda score: _stands_out(calibration, score, attained))
    comparison = replace(comparison, difference=difference)
    # what no place shows is no matter of the strongest one, nor of how alike the photo is
    p_compared = p_value(calibration, difference.score - difference.added) if calibration else None
    p_alone = p if pose.mirrored else p_compared
    if method.exposed and (unlike := unlike_goldens(calibration, p_alone, hits[0].similarity, attained)):
        problems.append(unlike)
    remarks = method.remarks(comparison, capture.sha256)
    problems.extend(remarks.problems)
    if not pose.said and (light := _light(method, query, comparison, calibration, p, attained)):
        problems.append(light)
    # good parts of which nothing was looked at have no peak
    threshold = (calibration and calibration.pixel_threshold) or _UNCALIBRATED_THRESHOLD
    suspicious = calibration is None or p_compared is None or is_suspicious(calibration, p_compared, attained)
    places = regions_of(comparison, threshold, at_least_one=suspicious)
    crowded = len(places) >= MAX_REGIONS
    places += places_apart(difference, places, comparison.nearest.size)
    critical, placed = place_zones(workspace, photo, capture.product, "critical")
    if not placed and comparison.zones_placed:
        problems.append("critical zones could not be placed: the photo could not be registered")
    critical = critical if placed else {}  # a place that is not known is no finding's
    if outside := zones_outside(workspace, photo, capture.product, "critical"):
        problems.append(f"{outside} outside of the photo; photograph all of the part")
    named, placed = place_zones(workspace, photo, capture.product, "named")
    if places and not placed and any(limit.zone in named for limit in spec.limits):
        problems.append("zones of limits could not be placed: the photo could not be registered")
    named = named if placed else {}
    measured = [(region, method.measure(query, comparison, region, scale)) for region in places]
    regions: list[RegionResult] = []
    for pieces in things(measured, cell := difference.cell_of(query.shape)):
        region = merged([r for r, _ in pieces], difference.types, query.shape)
        measurement = measured_as_one([m for _, m in pieces], query.shape, scale.mm_per_px, scale.uncertainty)
        extent = extent_of(pieces, measurement, difference.anomaly_map, query.shape, cell)
        # a defect may continue beyond its region: all that is drawn of it counts
        seen = Extent(*union([(region.box, region.mask), (extent.box, extent.mask)]))
        height, width = query.shape[:2]
        described = method.describe(comparison, capture.sha256, region, measurement, scale)
        place = described.place or place_name(extent.box, (height, width))
        regions.append(
            RegionResult(
                region=replace(region, id=f"r{len(regions) + 1}"),
                measurement=replace(measurement, place=place),
                extent=extent,
                confidence=region_confidence(calibration, region.peak) if calibration else 0.0,
                peak_p=peak_p_value(calibration, region.peak) if calibration else None,
                zones=[name for name, mask in critical.items() if touches(mask, seen, query.shape)],
                places=[name for name, mask in (critical | named).items() if touches(mask, seen, query.shape)],
                described=described,
            )
        )
    if method.shapes:
        with clock.stage("golden"):
            there = against_golden(query, comparison, calibration, [(r.region.type, r.measurement) for r in regions])
        regions = [replace(r, golden=g) for r, g in zip(regions, there, strict=True)]
    by = network.sha256 if network else None
    return PhotoInspection(
        comparison,
        calibration,
        p,
        threshold,
        scale,
        regions,
        crowded,
        problems,
        _p_rest(difference, calibration, regions, query.shape),
        doubted,
        counts,
        pose.said,
        by,
        remarks,
    )


def _stands_out(calibration: Calibration | None, score: float, attained: float) -> bool:
    return calibration is not None and is_suspicious(calibration, p_value(calibration, score), attained)


def _light(
    method: Method,
    query: RgbImage,
    comparison: Comparison,
    calibration: Calibration | None,
    p: float | None,
    attained: float,
) -> str:
    """The problem with a photo, or the colour photo of a height map, in another light; "" if there is none, or what was
    measured fails by itself."""
    colour = comparison.difference.colour
    if calibration is None or not (method.networks or colour):
        return ""
    height = height_alone(comparison.difference, calibration)
    if height is not None and p_value(calibration, height) <= attained:
        return ""
    return other_light(colour.query if colour else query, *as_photo(comparison, calibration), p, attained)


def problems_of(comparison: Comparison) -> list[str]:
    """What makes a comparison unreliable, whatever its score."""
    problems = []
    if not comparison.zones_placed:
        problems.append("ignore zones could not be placed: the photo could not be registered")
    if comparison.ignore is not None and not comparison.difference.scored:
        problems.append(
            "nothing was compared: the ignore zones cover all of the photo that the references show; "
            "correct the specification"
        )
    if comparison.format_problem:
        problems.append(comparison.format_problem)
    if comparison.difference.focus_problem:
        problems.append(comparison.difference.focus_problem)
    if (covered := comparison.difference.covered) < _MIN_COVERED:
        problems.append(
            f"the references cover only {100 * covered:.0f} % of the photo; photograph the part like the golden samples"
        )
    return problems


def _turned(alignments: Sequence[Alignment], max_turn_deg: float | None) -> str:
    """The problem with a part that lies turned by more than the specification allows; "" if there is none.

    alignments: of its golden samples, the nearest first.
    """
    if max_turn_deg is None:
        return ""
    if (alignment := next((a for a in alignments if a.ok), None)) is None:
        return (
            f"the part did not register, so nobody knows how it lies; the specification allows {max_turn_deg:g} degrees"
        )
    if abs(alignment.angle_deg) <= max_turn_deg:
        return ""
    return (
        f"the part lies {turn_in_words(alignment.angle_deg)}; the specification allows {max_turn_deg:g}: "
        "mounted or photographed the wrong way round?"
    )


def _of_same_part(workspace: Workspace, capture: Capture) -> list[str]:
    """Golden samples (ids) that show the part of an enrolled photo; [] of any other."""
    try:
        itself = workspace.bank.get(make_golden_id(capture.product, capture.sha256))
    except UnknownRecordError:
        return []
    return [g.golden_id for g in workspace.bank.list(capture.product) if g.group == itself.group]


def _references(
    workspace: Workspace,
    photo: Query,
    capture: Capture,
    itself: Collection[str],
    known: Found | None,
    clock: Clock,
) -> Found:
    """The goldens to compare a photo with. itself: see `_of_same_part`: as in a calibration, an enrolled part must not be
    its own reference, unless it is alone."""
    if known is not None and not any(h.golden.golden_id in itself for h in known.hits):
        return known
    others = any(g.golden_id not in itself for g in workspace.bank.list(capture.product, IN_USE)) if itself else True
    without = itself if others else ()
    return search(workspace, photo, capture.product, workspace.settings.references, clock, without)
