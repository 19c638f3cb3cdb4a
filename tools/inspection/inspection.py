"""The canonical inspection of one photo: nearest goldens, calibrated score, regions with sizes. No verdict, no language."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.bank import IN_USE, make_golden_id
from refdiff.memory.records.calibrations import Calibration
from refdiff.memory.records.captures import Capture
from refdiff.model.difference.encoder import Features
from refdiff.model.errors import UnknownRecordError
from refdiff.model.images import RgbImage
from refdiff.tools.context import ToolContext
from refdiff.tools.inspection.calibration import (
    NOTHING_FOUND,
    Progress,
    current_calibration,
    p_value,
    region_confidence,
    unlike_goldens,
)
from refdiff.tools.inspection.comparison import Comparison, compare
from refdiff.tools.inspection.scale import ResolvedScale, resolve_scale
from refdiff.tools.inspection.zones import place_zones, product_spec
from refdiff.tools.score_difference import EVEN_ODDS
from refdiff.tools.vision.measurement import Measurement, measure
from refdiff.tools.vision.regions import Region, find_regions
from refdiff.tools.vision.registration import warp_reference
from refdiff.tools.workspace import Workspace

_COVERED = 0.7
_MIN_JUDGED = 0.6  # part of the photo that references must reach


@dataclass(frozen=True)
class RegionResult:
    """A region of the anomaly map with its size. confidence: 0..1, share of good parts with a weaker strongest place.

    peak_p: conformal p-value of its peak, None without calibration. zones: critical zones that it touches.
    """

    region: Region
    measurement: Measurement
    confidence: float
    peak_p: float | None
    zones: list[str]


@dataclass(frozen=True)
class PhotoInspection:
    comparison: Comparison
    calibration: Calibration | None
    p_value: float | None
    threshold: float
    scale: ResolvedScale
    regions: list[RegionResult]
    problems: list[str] = field(default_factory=list)


def regions_of(comparison: Comparison, threshold: float, *, at_least_one: bool) -> list[Region]:
    """Regions above the threshold; if there is none but one is needed (the score is high), the place of the peak."""
    regions = find_regions(comparison.difference.anomaly_map, threshold, comparison.difference.types)
    if not regions and at_least_one and comparison.difference.peak > 0:
        most = 0.8 * comparison.difference.peak
        regions = find_regions(comparison.difference.anomaly_map, most, comparison.difference.types)[:1]
    return regions


def measure_region(
    workspace: Workspace,
    query: RgbImage,
    comparison: Comparison,
    region: Region,
    scale: ResolvedScale,
) -> Measurement:
    """Size of a region against the nearest golden."""
    return measure(
        query,
        workspace.golden_image(comparison.hits[0].golden),
        comparison.alignments[0],
        comparison.difference.anomaly_map,
        region.box,
        mask=region.mask,
        mm_per_px=scale.mm_per_px,
        scale_uncertainty=scale.uncertainty,
    )


def _covers(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Does `box` hold most of `other`?"""
    w = min(box[2], other[2]) - max(box[0], other[0])
    h = min(box[3], other[3]) - max(box[1], other[1])
    return w > 0 and h > 0 and w * h >= _COVERED * (other[2] - other[0]) * (other[3] - other[1])


def touches(mask: NDArray[np.bool_], region: Region) -> bool:
    x0, y0, x1, y1 = region.box
    return bool((mask[y0:y1, x0:x1] & region.mask).any())


def inspect_photo(
    workspace: Workspace,
    capture: Capture,
    references: int | None = None,
    progress: Progress | None = None,
    features: Features | None = None,
) -> PhotoInspection:
    """Inspect a captured photo the canonical way; deterministic for a given bank.

    Redoes a stale calibration first (`progress`). features: of the photo, if known.
    Raises UnknownProductError, ImageError, UnavailableError.
    """
    query = workspace.image(capture.sha256, capture.product, f"photo of part {capture.part_id}")
    # a photo that was enrolled itself must not be its own reference, unless it is the only one
    itself = make_golden_id(capture.product, capture.sha256)
    alone = workspace.bank.count(capture.product, IN_USE) < 2
    comparison = compare(
        workspace,
        query,
        capture.product,
        query_key=capture.sha256,
        references=references,
        exclude_ids=() if alone else (itself,),
        features=features,
    )
    calibration = current_calibration(workspace, capture.product, references, progress)
    problems = (
        [] if comparison.zones_placed else ["ignore zones could not be placed: the photo could not be registered"]
    )
    if comparison.difference.judged < _MIN_JUDGED:
        covered = f"{100 * comparison.difference.judged:.0f} %"
        problems.append(
            f"the references cover only {covered} of the photo; photograph the part like the golden samples"
        )
    spec = product_spec(workspace, capture.product)
    scale = resolve_scale(capture, comparison.hits[0].golden, comparison.alignments[0], spec.scale_mm_per_px)
    if scale.problem:
        problems.append(scale.problem)
    p = p_value(calibration, comparison.difference.score) if calibration else None
    if unlike := unlike_goldens(calibration, p, comparison.hits[0].similarity):
        problems.append(unlike)
    threshold = calibration.pixel_threshold if calibration else EVEN_ODDS
    regions = regions_of(comparison, threshold, at_least_one=p is None or p <= NOTHING_FOUND)
    critical, placed = place_zones(workspace, query, capture.sha256, capture.product, "critical")
    if not placed and comparison.zones_placed:
        problems.append("critical zones could not be placed: the photo could not be registered")
    results: list[RegionResult] = []
    for region in regions:
        measurement = measure_region(workspace, query, comparison, region, scale)
        if any(_covers(r.measurement.box, measurement.box) for r in results):
            continue  # in native pixels it is part of a stronger region
        region = replace(region, id=f"r{len(results) + 1}")
        peak_p = None
        if calibration:
            peak_p = (1 + sum(s >= region.peak for s in calibration.extra["peaks"])) / (calibration.n + 1)
        results.append(
            RegionResult(
                region,
                measurement,
                region_confidence(calibration, region.peak) if calibration else 0.0,
                peak_p,
                [name for name, mask in critical.items() if touches(mask, region)],
            )
        )
    return PhotoInspection(comparison, calibration, p, threshold, scale, results, problems)


def registered_reference(bench: ToolContext, capture: Capture) -> RgbImage:
    """The nearest golden on the photo's pixel grid, (H, W, 3) uint8 (merely resized where it did not register)."""
    comparison = bench.inspect(capture).comparison
    golden = bench.workspace.golden_image(comparison.hits[0].golden)
    return warp_reference(golden, comparison.alignments[0].matrix, bench.query(capture).shape[:2])[0]


def open_workbench(
    workspace: Workspace,
    part_id: str,
    product: str | None = None,
    progress: Progress | None = None,
    capture_id: str | None = None,
) -> ToolContext:
    """A workbench whose features and canonical inspections are computed once each.

    capture_id: the photo, default the newest.
    """
    known: dict[str, PhotoInspection] = {}
    encoded: dict[str, Features] = {}

    def features(capture: Capture) -> Features:
        if capture.capture_id not in encoded:
            query = workspace.image(capture.sha256, capture.product, f"photo of part {capture.part_id}")
            encoded[capture.capture_id] = workspace.encoder.embed(query)
        return encoded[capture.capture_id]

    def inspect(capture: Capture) -> PhotoInspection:
        if capture.capture_id not in known:
            known[capture.capture_id] = inspect_photo(workspace, capture, progress=progress, features=features(capture))
        return known[capture.capture_id]

    def compare_with(capture: Capture, golden_ids: list[str]) -> Comparison:
        goldens = [workspace.bank.get(i) for i in golden_ids]
        for golden in goldens:
            if golden.product != capture.product:
                raise UnknownRecordError(
                    f"golden {golden.golden_id} is of product {golden.product!r}, the photo of {capture.product!r}"
                )
        query = workspace.image(capture.sha256, capture.product)
        return compare(
            workspace, query, capture.product, query_key=capture.sha256, goldens=goldens, features=features(capture)
        )

    return ToolContext(workspace, part_id, product, features, inspect, compare_with, capture_id)
