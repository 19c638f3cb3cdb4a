"""Score the difference of a photo and its registered references: anomaly map, image score, regions.

Golden features come from the cache where the golden lies as the photo does (a fixed camera); else the registered golden is
encoded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import torch
from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from refdiff.memory.captures import Capture
from refdiff.memory.golden_bank import Golden
from refdiff.model import difference
from refdiff.model.encoder import Features
from refdiff.model.images import RgbImage
from refdiff.tools.align import Alignment, Matrix, coverage, warp_reference
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.services import Services
from refdiff.tools.workbench import Result, Workbench, answer, current_capture, latest

if TYPE_CHECKING:
    from refdiff.tools.inspection import PhotoInspection
    from refdiff.tools.pipeline import Comparison

MAX_REGIONS = 16
_STILL = 0.25  # cells of displacement that count as lying alike


@dataclass(frozen=True)
class Region:
    """A connected part of the anomaly map above the threshold. box: x0, y0, x1, y1 query px, exclusive end.

    place: its name on a 3 x 3 grid of the image. peak: largest distance in it. mask: (y1 - y0, x1 - x0) bool.
    """

    id: str
    box: tuple[int, int, int, int]
    place: str
    area_px: int
    peak: float
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Difference:
    """anomaly_map: (H, W) float32 >= 0 in query px. score: image score, continuous. peak: largest value kept.

    judged: part 0..1 of the photo that some reference reaches; elsewhere the map is 0.
    """

    anomaly_map: NDArray[np.float32]
    score: float
    peak: float
    judged: float = 1.0


def place_name(box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    """Where the centre of a box lies on a 3 x 3 grid of an image of `size` (H, W): "upper left", "centre", ..."""
    row = min(2, int((box[1] + box[3]) / 2 / size[0] * 3))
    column = min(2, int((box[0] + box[2]) / 2 / size[1] * 3))
    names = (("upper left", "upper middle", "upper right"), ("middle left", "centre", "middle right"),
             ("lower left", "lower middle", "lower right"))  # fmt: skip
    return names[row][column]


def _in_work_px(matrix: Matrix, query: Features, reference: Features) -> Matrix:
    """The registration between the two images as they were encoded."""
    q = np.diag([query.work_size[1] / query.size[1], query.work_size[0] / query.size[0], 1.0])
    r = np.diag([reference.work_size[1] / reference.size[1], reference.work_size[0] / reference.size[0], 1.0])
    return np.asarray(q @ matrix @ np.linalg.inv(r), np.float64)


def _moves(work: Matrix, query: Features, reference: Features) -> bool:
    """Does the registration move any place by more than a matching window forgives unnoticed?"""
    if query.work_size != reference.work_size:
        return True
    h, w = query.work_size
    corners = np.array([[[0, 0], [w, 0], [0, h], [w, h]]], np.float64)
    return float(np.abs(cv2.perspectiveTransform(corners, work) - corners).max()) > _STILL * difference.GRID_STRIDE


def _view(
    services: Services,
    query_features: Features,
    query_size: tuple[int, int],
    golden: Golden,
    alignment: Alignment,
) -> difference.ReferenceView:
    reference = services.golden_features(golden)
    grid = query_features.maps[difference.GRID_STRIDE].shape[-2:]
    cells = difference.descriptors(reference)
    if not alignment.ok:
        return difference.ReferenceView(cells, torch.ones(cells.shape[-2:], dtype=torch.bool), False)
    covered = coverage(alignment.matrix, reference.size, query_size).astype(np.float32)
    valid = torch.from_numpy(cv2.resize(covered, (grid[1], grid[0]), interpolation=cv2.INTER_AREA)) > 0.5
    work = _in_work_px(alignment.matrix, query_features, reference)
    if not _moves(work, query_features, reference):
        return difference.ReferenceView(cells, valid, True, cells)
    # interpolating features instead would be cheaper, but blurs them: a good part that lies 2 degrees off then scores high
    warped, _ = warp_reference(services.golden_image(golden), alignment.matrix, query_size)
    again = services.encoder.embed(warped, query_features.work_size)
    return difference.ReferenceView(difference.descriptors(again), valid, True, cells)


def score_difference(
    services: Services,
    query: RgbImage,
    query_features: Features,
    references: Sequence[tuple[Golden, Alignment]],
    ignore: NDArray[np.bool_] | None = None,
) -> Difference:
    """Compare a photo (H, W, 3) with its registered (or, where that failed, unregistered) goldens.

    ignore: (H, W) bool, query px that do not count (the map is 0 there).
    """
    size = query.shape[:2]
    views = [_view(services, query_features, size, golden, alignment) for golden, alignment in references]
    cells = difference.anomaly_map(difference.descriptors(query_features), views)
    reached = difference.judged(views, (int(cells.shape[0]), int(cells.shape[1])))
    keep = reached
    if ignore is not None and ignore.any():
        grid = cells.shape
        part = cv2.resize(ignore.astype(np.float32), (grid[1], grid[0]), interpolation=cv2.INTER_AREA)
        keep = keep & torch.from_numpy(part <= 0.5)
    cells = cells * keep
    full = cv2.resize(cells.numpy(), (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    # one cell of smoothing: the map must not show the grid
    sigma = difference.GRID_STRIDE / 2 * max(size) / max(query_features.work_size)
    smooth = np.maximum(cv2.GaussianBlur(full, (0, 0), sigma), 0).astype(np.float32)
    if ignore is not None:
        smooth[ignore] = 0
    return Difference(smooth, difference.image_score(cells, keep), float(smooth.max()), float(reached.float().mean()))


def find_regions(anomaly_map: NDArray[np.float32], threshold: float) -> list[Region]:
    """Regions above `threshold`, strongest first, at most 16.

    Pieces less than a cell apart are one region; specks that the map's resolution cannot vouch for are left out.
    """
    h, w = anomaly_map.shape
    above = anomaly_map > threshold
    cell = max(3, round(max(h, w) / 40))
    joined = cv2.dilate(above.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (cell, cell)))
    labels, _ = ndimage.label(joined, structure=np.ones((3, 3), int))
    labels[~above] = 0
    smallest = max(4.0, (cell / 2) ** 2)
    found = []
    for index, at in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[at] == index
        area = int(mask.sum())
        if area < smallest:
            continue
        box = (at[1].start, at[0].start, at[1].stop, at[0].stop)
        found.append((float(anomaly_map[at][mask].max()), box, area, mask))
    found.sort(key=lambda f: -f[0])
    return [
        Region(f"r{i}", box, place_name(box, (h, w)), area, peak, mask)
        for i, (peak, box, area, mask) in enumerate(found[:MAX_REGIONS], start=1)
    ]


@tool("score_difference", response_format="content_and_artifact")
def score_difference_tool(
    golden_ids: Annotated[
        list[str], Field(description="golden ids to compare with; empty = the nearest ones (normal)", max_length=8)
    ],
    runtime: ToolRuntime[Workbench, Any],
) -> Result:
    """Compare the photo with its registered goldens: score, p-value, regions r1.. that differ. Needs align."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    latest(evidence, "alignment", "not registered yet: call align first")
    canonical = bench.inspect(capture)
    comparison, others = canonical.comparison, sorted(set(golden_ids))
    if others and others != sorted(h.golden.golden_id for h in comparison.hits):
        comparison = bench.compare(capture, others)
    record = score_record(bench, capture, comparison, canonical)
    numbers = record.numbers
    ids = [f"r{i + 1}" for i in range(int(numbers["regions"] or 0))]
    return answer(
        record,
        score=numbers["score"],
        p_value=numbers["p_value"],
        regions=[{"region": i, "place": numbers[f"{i}_place"], "peak": numbers[f"{i}_peak"]} for i in ids],
    )


def score_record(
    bench: Workbench, capture: Capture, comparison: Comparison, canonical: PhotoInspection
) -> EvidenceRecord:
    """Evidence of a comparison: score, regions with boxes, the registered pair. p-value of the canonical one alone."""
    is_canonical = comparison is canonical.comparison
    regions = (
        [r.region for r in canonical.regions]
        if is_canonical
        else find_regions(comparison.difference.anomaly_map, canonical.threshold)
    )
    numbers: dict[str, float | int | str | bool | None] = {
        "score": round(comparison.difference.score, 4),
        "p_value": round(canonical.p_value, 4) if is_canonical and canonical.p_value is not None else None,
        "calibration_parts": canonical.calibration.n if canonical.calibration else 0,
        "regions": len(regions),
        "canonical": is_canonical,
    }
    for region in regions:
        corners = dict(zip(("x0", "y0", "x1", "y1"), region.box, strict=True))
        numbers |= {f"{region.id}_{c}": v for c, v in corners.items()}
        numbers |= {f"{region.id}_place": region.place, f"{region.id}_area_px": region.area_px}
        numbers[f"{region.id}_peak"] = round(region.peak, 4)
    nearest = bench.services.golden_image(comparison.hits[0].golden)
    warped, _ = warp_reference(nearest, comparison.alignments[0].matrix, bench.query(capture).shape[:2])
    return EvidenceRecord(
        kind="score",
        arguments={"golden_ids": [h.golden.golden_id for h in comparison.hits]},
        numbers=numbers,
        images={"query": bench.shown_query(capture), "reference": bench.keep_image(warped)},
        summary=f"score {comparison.difference.score:.3f} against {len(comparison.hits)} golden(s), "
        f"{len(regions)} region(s) above the threshold",
    )
