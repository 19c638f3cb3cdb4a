"""Metrics of `refdiff evaluate`: image, pixel and detection level, with intervals.

Labels are 0 (good) and 1 (defective), a larger score is more anomalous. A metric that does not apply (one class only,
no masks) is None. scikit-learn and scipy do what they have; here are the streamed pixel curves, AUPRO and the
matching of boxes. Knows nothing about files but the detections that DeepPCB's own script reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, rankdata
from sklearn.metrics import precision_recall_curve, roc_auc_score

from refdiff.agent.verdict.rates import LEVEL
from refdiff.model.boards.deeppcb import LabelledBox
from refdiff.model.defect_types import BOARD_TYPES

Interval = tuple[float, float]  # low, high
_Positions = NDArray[np.intp]  # (..., n) of the images drawn

RESAMPLES = 2000
AUPRO_FPR = 0.3
DETECTION_IOU = 0.33
DETECTION_CONFIDENCE = 0.5


# ---- image level ----


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Area under the ROC curve; None with one class only. Raises ValueError for scores that are not finite."""
    truth, values = _checked(labels, scores)
    return float(roc_auc_score(truth, values)) if _two_classes(truth) else None


def f1_oracle(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The best F1 that any threshold on the score could give; None with one class only."""
    truth, values = _checked(labels, scores)
    if not _two_classes(truth):
        return None
    precision, recall, _ = precision_recall_curve(truth, values)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-12)))


def auroc_interval(
    labels: ArrayLike, scores: ArrayLike, *, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval | None:
    """Bootstrap percentile interval of the image AUROC, good and defective images resampled separately.

    None with fewer than two images of a class. Where the classes are separated completely it is [1, 1]:
    no resampling can show what was never seen.
    """
    truth, values = _checked(labels, scores)
    if not _two_classes(truth):
        return None
    return _bootstrap(truth, lambda bad, good: _auroc_of_samples(values[bad], values[good]), seed, level, resamples)


@dataclass(frozen=True)
class PairedDifference:
    """AUROC of A minus AUROC of B on the same images, and its interval."""

    difference: float
    interval: Interval | None


def paired_auroc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> PairedDifference | None:
    """Stratified paired bootstrap: every resample draws the same images for A and B. None with one class only."""
    truth, a = _checked(labels, scores_a)
    _, b = _checked(labels, scores_b)
    if not _two_classes(truth):
        return None

    def statistic(bad: _Positions, good: _Positions) -> NDArray[np.float64]:
        return _auroc_of_samples(a[bad], a[good]) - _auroc_of_samples(b[bad], b[good])

    difference = float(roc_auc_score(truth, a) - roc_auc_score(truth, b))
    return PairedDifference(difference, _bootstrap(truth, statistic, seed, level, resamples))


# ---- pixel level ----


class PixelMetrics:
    """Pixel AUROC and AUPRO over a stream of anomaly maps; memory does not grow with the number of images.

    Scores go into bins that are the leading bits of their float32 form: 4,096 bins per power of two at any scale
    of scores, so their range need not be known. 48 MB in all.

    AUPRO (Bergmann et al. 2021): the mean over true regions (8-connected components of the masks) of the share of
    the region found, against the false-positive rate over all good pixels, integrated to 0.3 and divided by it.
    """

    _SHIFT = 11
    _BINS = 1 << (32 - _SHIFT)

    def __init__(self) -> None:
        self._good = np.zeros(self._BINS)
        self._bad = np.zeros(self._BINS)
        self._overlap = np.zeros(self._BINS)  # every region weighs 1 in all, whatever its area
        self.regions = 0
        self.images = 0

    def add(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        """One image. anomaly_map: (H, W) float32; mask: (H, W) bool, None for a good image.

        Raises ValueError: another shape, or values that are not finite.
        """
        values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
        truth = np.zeros(values.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if values.ndim != 2 or truth.shape != values.shape:
            raise ValueError(f"anomaly map is {values.shape}, mask {truth.shape}; both must be (H, W)")
        if not np.isfinite(values).all():
            raise ValueError("the anomaly map has values that are not finite")
        bins = self._bin(values)
        self._good += np.bincount(bins[~truth], minlength=self._BINS)
        self.images += 1
        if not truth.any():
            return
        labels, regions = cv2.connectedComponents(truth.astype(np.uint8), connectivity=8)
        areas = np.bincount(regions.ravel(), minlength=labels)  # label 0 is the background
        inside = bins[truth]
        self._bad += np.bincount(inside, minlength=self._BINS)
        self._overlap += np.bincount(inside, weights=1.0 / areas[regions[truth]], minlength=self._BINS)
        self.regions += labels - 1

    def auroc(self) -> float | None:
        """None without defective pixels (or without good ones)."""
        curves = self._curves(self._bad)
        return None if curves is None else float(np.trapezoid(curves[1], curves[0]))

    def aupro(self, limit: float = AUPRO_FPR) -> float | None:
        """0..1; None without regions."""
        curves = self._curves(self._overlap)
        if curves is None:
            return None
        rate, found = curves
        below = rate < limit
        x = np.append(rate[below], limit)
        y = np.append(found[below], np.interp(limit, rate, found))
        return float(np.trapezoid(y, x) / limit)

    def _curves(self, hits: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """False-positive rate and hit rate at falling thresholds, both from 0 to 1."""
        if not self.regions or not self._good.any():
            return None
        used = np.flatnonzero((self._good > 0) | (hits > 0))[::-1]
        rate = np.concatenate([[0.0], np.cumsum(self._good[used])])
        found = np.concatenate([[0.0], np.cumsum(hits[used])])
        return rate / rate[-1], found / found[-1]

    @classmethod
    def _bin(cls, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Bin of each value; larger values never get a smaller bin.

        The order of IEEE floats is that of their bits once the negative ones are flipped.
        """
        bits = (values + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
        negative = bits >> 31 == 1
        ordered = np.where(negative, ~bits, bits | np.uint32(1 << 31))
        return (ordered >> cls._SHIFT).astype(np.int64)


# ---- detections ----


@dataclass(frozen=True)
class Detection:
    """A found defect: x0, y0, x1, y1 in px of the image, confidence 0..1, type."""

    x0: float
    y0: float
    x1: float
    y1: float
    confidence: float
    type: str


@dataclass(frozen=True)
class DetectionMetrics:
    """mean_ap over the types that occur; f1, precision and recall at the confidence limit; boxes counted."""

    mean_ap: float | None
    ap: dict[str, float]
    f1: float | None
    precision: float | None
    recall: float | None
    n_true: int
    n_detections: int


def detection_metrics(
    detections: Mapping[str, Sequence[Detection]],
    truth: Mapping[str, Sequence[LabelledBox]],
    *,
    iou: float = DETECTION_IOU,
    confidence: float = DETECTION_CONFIDENCE,
) -> DetectionMetrics:
    """DeepPCB's measures: a detection is right if its IoU with a true box of the same type is above 0.33.

    Each true box counts once, the most confident detection first. AP of a type is the ICDAR script's, the sum of
    the precisions at each right detection over the number of true boxes; F1 takes confidence >= 0.5, over all
    types. Keys are image ids. Raises ValueError for detections on an image that the truth does not have.
    """
    unknown = sorted(set(detections) - set(truth))
    if unknown:
        raise ValueError(f"detections for {unknown[0]!r}, which has no ground truth; provide it for every image")
    hits: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    totals: dict[str, int] = defaultdict(int)
    for image, boxes in truth.items():
        for box in boxes:
            totals[box.type] += 1
        for found, right in _match(detections.get(image, ()), boxes, iou):
            hits[found.type].append((found.confidence, right))
    ap = {kind: _average_precision(hits[kind], n) for kind, n in sorted(totals.items())}
    sure = [right for found in hits.values() for value, right in found if value >= confidence]
    n_true, n_right = sum(totals.values()), sum(sure)
    return DetectionMetrics(
        mean_ap=float(np.mean(list(ap.values()))) if ap else None,
        ap=ap,
        f1=2 * n_right / (len(sure) + n_true) if n_true else None,
        precision=n_right / len(sure) if sure else None,
        recall=n_right / n_true if n_true else None,
        n_true=n_true,
        n_detections=len(sure),
    )


def write_detections(folder: Path, detections: Mapping[str, Sequence[Detection]]) -> None:
    """One `<id>.txt` per image, also when empty; lines `x1,y1,x2,y2,confidence,type`, most confident first.

    Raises ValueError for a type that DeepPCB does not have, or an id that is not a plain file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for image, found in detections.items():
        if Path(image).name != image or image in ("", ".", ".."):
            raise ValueError(f"image id {image!r} is not a plain file name")
        for d in found:
            if d.type not in BOARD_TYPES:
                raise ValueError(f"{image}: type {d.type!r}; DeepPCB knows {', '.join(BOARD_TYPES)}")
        lines = [
            f"{round(d.x0)},{round(d.y0)},{round(d.x1)},{round(d.y1)},{d.confidence:.4f},{d.type}\n"
            for d in sorted(found, key=lambda d: -d.confidence)
        ]
        (folder / f"{image}.txt").write_text("".join(lines), encoding="utf-8")


# ---- pieces ----


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    truth, values = np.asarray(labels, dtype=np.intp), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise ValueError(f"{truth.shape} labels but {values.shape} scores; give one score for every image")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 (good) or 1 (defective)")
    if not np.isfinite(values).all():
        raise ValueError("some scores are not finite")
    return truth, values


def _two_classes(truth: NDArray[np.intp]) -> bool:
    return bool(truth.any()) and not bool(truth.all())


def _auroc_of_samples(bad: NDArray[np.float64], good: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., n_bad) and (..., n_good) scores -> (...) AUROC, as the Mann-Whitney statistic (ties count half)."""
    n_bad, n_good = bad.shape[-1], good.shape[-1]
    ranks = rankdata(np.concatenate([bad, good], axis=-1), axis=-1)
    return (ranks[..., :n_bad].sum(axis=-1) - n_bad * (n_bad + 1) / 2) / (n_bad * n_good)


def _bootstrap(
    truth: NDArray[np.intp],
    statistic: Callable[[_Positions, _Positions], NDArray[np.float64]],
    seed: int,
    level: float,
    resamples: int,
) -> Interval | None:
    """Bad and good images are two samples for scipy, which resamples each on its own: that is stratified.

    They go in as positions, so a paired statistic can look up both scores of the same images.
    """
    bad, good = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    if min(bad.size, good.size) < 2:  # nothing can be said from a single observation
        return None
    result = bootstrap(
        (bad, good),
        lambda bad, good, axis: statistic(bad, good),
        n_resamples=resamples,
        batch=max(1, 2_000_000 // truth.size),
        vectorized=True,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _match(found: Sequence[Detection], boxes: Sequence[LabelledBox], iou: float) -> list[tuple[Detection, bool]]:
    free = set(range(len(boxes)))
    result: list[tuple[Detection, bool]] = []
    for detection in sorted(found, key=lambda d: -d.confidence):
        best = max(
            (i for i in free if boxes[i].type == detection.type),
            key=lambda i: _iou(detection, boxes[i]),
            default=None,
        )
        right = best is not None and _iou(detection, boxes[best]) > iou
        if right and best is not None:
            free.discard(best)
        result.append((detection, right))
    return result


def _iou(a: Detection, b: LabelledBox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a.x1 - a.x0) * (a.y1 - a.y0) + (b.x1 - b.x0) * (b.y1 - b.y0) - both)


def _average_precision(hits: Sequence[tuple[float, bool]], total: int) -> float:
    right = np.array([r for _, r in sorted(hits, key=lambda h: -h[0])], dtype=float)
    if not right.size:
        return 0.0
    precision = np.cumsum(right) / np.arange(1, right.size + 1)
    return float((precision * right).sum() / total)
