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
from torch import Tensor

from refdiff.memory.golden_bank.bank import Golden
from refdiff.memory.records.captures import Capture
from refdiff.model.difference.encoder import Features, resize_to
from refdiff.model.difference.patch_distance import GRID_STRIDE, ReferenceView, descriptors, image_score, reached_cells
from refdiff.model.difference.patch_distance import anomaly_map as nearest_patch_map
from refdiff.model.difference.scorer import SeenReference
from refdiff.model.images import RgbImage
from refdiff.tools.context import Result, ToolContext, answer, current_capture, latest
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.vision.regions import find_regions
from refdiff.tools.vision.registration import Alignment, Matrix, coverage, warp_reference
from refdiff.tools.workspace import Workspace

if TYPE_CHECKING:
    from refdiff.tools.inspection.comparison import Comparison
    from refdiff.tools.inspection.inspection import PhotoInspection

FINE = 4  # stride of the anomaly map at working size
TOP = 0.005  # the image score is the mean of this part of the cells
_NEVER_BLIND = 0.02  # keeps part of the distance where the network sees nothing
EVEN_ODDS = 0.2  # of the map: where a clear distance is as likely a defect as not; regions begin there uncalibrated
_STILL = 0.25  # cells of displacement that count as lying alike


@dataclass(frozen=True)
class Difference:
    """anomaly_map: (H, W) float32 >= 0 in query px. score: image score, continuous. peak: largest value kept.

    judged: part 0..1 of the photo that some reference reaches; elsewhere the map is 0. types: (T, H/4, W/4) probabilities of
    DIFFERENCE_TYPES at working size. logits: (H/4, W/4) of the network alone.
    """

    anomaly_map: NDArray[np.float32]
    score: float
    peak: float
    judged: float = 1.0
    types: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


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
    return float(np.abs(cv2.perspectiveTransform(corners, work) - corners).max()) > _STILL * GRID_STRIDE


@dataclass(frozen=True)
class Seen:
    """A photo and its references as both halves of the difference see them. size: (H, W) of the photo."""

    picture: Tensor
    features: Features
    size: tuple[int, int]
    patches: list[ReferenceView]
    references: list[SeenReference]


def see(
    workspace: Workspace, query: RgbImage, features: Features, references: Sequence[tuple[Golden, Alignment]]
) -> Seen:
    """Features and pictures of the goldens on the photo's grid, as far as they could be registered."""
    views = [_view(workspace, features, query.shape[:2], golden, alignment) for golden, alignment in references]
    picture = _tensor(resize_to(query, features.work_size))
    return Seen(picture, features, query.shape[:2], [v[0] for v in views], [v[1] for v in views])


def _tensor(image: RgbImage) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)


def _view(
    workspace: Workspace,
    query_features: Features,
    query_size: tuple[int, int],
    golden: Golden,
    alignment: Alignment,
) -> tuple[ReferenceView, SeenReference]:
    reference = workspace.golden_features(golden)
    grid = query_features.maps[GRID_STRIDE].shape[-2:]
    cells = descriptors(reference)
    if not alignment.ok:
        anywhere = torch.ones(cells.shape[-2:], dtype=torch.bool)
        return ReferenceView(cells, anywhere, False), SeenReference(reference.maps, anywhere)
    work_size = query_features.work_size
    work = _in_work_px(alignment.matrix, query_features, reference)
    covered = coverage(work, reference.work_size, work_size)
    valid = torch.from_numpy(cv2.resize(covered.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)) > 0.5
    if not _moves(work, query_features, reference):
        picture = resize_to(workspace.golden_image(golden), work_size)
        view = ReferenceView(cells, valid, True, cells)
        return view, SeenReference(reference.maps, valid, _tensor(picture), torch.from_numpy(covered))
    # interpolating features instead would be cheaper, but blurs them: a good part that lies 2 degrees off then scores high
    warped, _ = warp_reference(workspace.golden_image(golden), alignment.matrix, query_size)
    picture = resize_to(warped, work_size)
    again = workspace.encoder.embed(picture, work_size)
    view = ReferenceView(descriptors(again), valid, True, cells)
    return view, SeenReference(again.maps, valid, _tensor(picture), torch.from_numpy(covered))


def score_difference(
    workspace: Workspace,
    query: RgbImage,
    query_features: Features,
    references: Sequence[tuple[Golden, Alignment]],
    ignore: NDArray[np.bool_] | None = None,
) -> Difference:
    """Compare a photo (H, W, 3) with its registered (or, where that failed, unregistered) goldens.

    ignore: (H, W) bool, query px that do not count (the map is 0 there).
    """
    size = query.shape[:2]
    seen = see(workspace, query, query_features, references)
    grid = (query_features.work_size[0] // FINE, query_features.work_size[1] // FINE)
    reached = reached_cells(seen.patches, (grid[0] * FINE // GRID_STRIDE, grid[1] * FINE // GRID_STRIDE))
    keep = cv2.resize(reached.numpy().astype(np.uint8), grid[::-1], interpolation=cv2.INTER_NEAREST) > 0
    if ignore is not None and ignore.any():
        keep &= cv2.resize(ignore.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA) <= 0.5
    learned = workspace.difference.compare(seen.picture, seen.features.maps, seen.references)
    cells = fuse(patch_distance(seen), learned.logits.numpy()) * keep
    full = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_LINEAR)
    # half a cell of smoothing: the map must not show the grid
    sigma = FINE / 2 * max(size) / max(query_features.work_size)
    smooth = cv2.GaussianBlur(full, (0, 0), sigma).astype(np.float32)
    if ignore is not None:
        smooth[ignore] = 0
    score = image_score(torch.from_numpy(cells), torch.from_numpy(keep), TOP)
    judged = float(reached.float().mean())
    return Difference(smooth, score, float(smooth.max()), judged, learned.types.numpy(), learned.logits.numpy())


def patch_distance(seen: Seen) -> NDArray[np.float32]:
    """(h8, w8) float32 >= 0: the training-free half, distance to the nearest patch."""
    return nearest_patch_map(descriptors(seen.features), seen.patches).numpy()


def fuse(patches: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h4, w4) float32 >= 0: the distance to the nearest patch, weighted by what the network makes of the place.

    The distance alone takes every natural variation for a defect, the network alone overlooks what it was not trained on;
    their product (of powers) was better than either on products that neither had seen.
    """
    fine = cv2.resize(patches, logits.shape[::-1], interpolation=cv2.INTER_CUBIC)
    weight = np.sqrt(np.logaddexp(0, logits) + _NEVER_BLIND)
    return np.asarray(weight * np.maximum(fine, 1e-3), np.float32)


@tool("score_difference", response_format="content_and_artifact")
def score_difference_tool(
    golden_ids: Annotated[
        list[str], Field(description="golden ids to compare with; empty = the nearest ones (normal)", max_length=8)
    ],
    runtime: ToolRuntime[ToolContext, Any],
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
        regions=[
            {"region": i, "place": numbers[f"{i}_place"], "type": numbers[f"{i}_type"], "peak": numbers[f"{i}_peak"]}
            for i in ids
        ],
    )


def score_record(
    bench: ToolContext, capture: Capture, comparison: Comparison, canonical: PhotoInspection
) -> EvidenceRecord:
    """Evidence of a comparison: score, regions with boxes, the registered pair. p-value of the canonical one alone."""
    is_canonical = comparison is canonical.comparison
    regions = (
        [r.region for r in canonical.regions]
        if is_canonical
        else find_regions(comparison.difference.anomaly_map, canonical.threshold, comparison.difference.types)
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
        numbers |= {f"{region.id}_peak": round(region.peak, 4), f"{region.id}_type": region.type}
    nearest = bench.workspace.golden_image(comparison.hits[0].golden)
    warped, _ = warp_reference(nearest, comparison.alignments[0].matrix, bench.query(capture).shape[:2])
    return EvidenceRecord(
        kind="score",
        arguments={"golden_ids": [h.golden.golden_id for h in comparison.hits]},
        numbers=numbers,
        images={"query": bench.shown_query(capture), "reference": bench.keep_image(warped)},
        summary=f"image score {comparison.difference.score:.3f}; golden samples compared: {len(comparison.hits)}, "
        f"regions above the threshold: {len(regions)}",
    )
