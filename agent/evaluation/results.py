"""`results.json` of `refdiff evaluate` [contract], built from what happened to each image, and its table for people.

Adding fields is fine, changing them is not. A value that does not apply is null.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from refdiff.agent.evaluation.layouts import DataSet
from refdiff.agent.evaluation.metrics import (
    DetectionMetrics,
    Interval,
    PixelMetrics,
    auroc_interval,
    f1_oracle,
    image_auroc,
    paired_auroc_difference,
)
from refdiff.agent.report.schema import Alpha, Verdict
from refdiff.agent.verdict.rates import verdict_rates


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Milliseconds(_Model):
    p50: float
    p95: float


class ImageResult(_Model):
    """One test image. `label`: 0 good, 1 defective; `kind`: name of the defect or "good"; `reference`: golden id
    (or the path of the reference that the layout gives)."""

    path: str
    label: int = Field(ge=0, le=1)
    score: float
    p_value: float | None
    verdict: Verdict
    reference: str | None
    ms: float
    kind: str | None = None
    score_passes: bool | None = None  # PASS without the language model's reading; null without --judge
    reading: float | None = Field(default=None, ge=0, le=1, description="The language model's probability of a defect")


class ReadingEffect(_Model):
    """What the language model's reading adds on the images that the score passes: image AUROC of each, and of the sum of
    their ranks (`both`). gain: 95 % interval (paired bootstrap) of `both` minus `score`. Null with one class only."""

    n_good: int
    n_bad: int
    score: float | None
    reading: float | None
    both: float | None
    gain: Interval | None


class Changed(_Model):
    path: str
    label: int
    before: Verdict
    after: Verdict


class LearnedEffect(_Model):
    """What references learned from people changed: the same test images without them (`before`) and with them.

    left_out: test images that are learned references themselves, measured in neither run.
    """

    product: str
    references: list[str]
    left_out: list[str]
    before: dict[str, float | None]
    changed: list[Changed]


class EvaluationResults(_Model):
    n_good: int
    n_bad: int
    image_auroc: float | None
    pixel_auroc: float | None
    aupro: float | None
    false_reject_rate: float | None
    escape_rate: float | None
    review_rate: float | None
    f1: float | None
    f1_oracle: float | None
    alpha: Alpha
    ms_per_image: Milliseconds | None
    references: int
    goldens: int
    weights_sha256: str
    per_image: list[ImageResult]
    # beyond the contract
    data: str = ""
    format: str = ""
    split: str | None = None
    seed: int = 0
    n_calibration: int | None = None
    version: str = ""
    weights: dict[str, str] = Field(default={}, description="sha256 of every file of weights in use")
    created_at: datetime
    intervals: dict[str, Interval | None] = Field(default={}, description="95 %: bootstrap for AUROC, Wilson for rates")
    detection: DetectionMetrics | None = None
    learned: LearnedEffect | None = None
    reading: ReadingEffect | None = None
    notes: list[str] = []


def build_results(
    data: DataSet,
    per_image: Sequence[ImageResult],
    *,
    alpha: Alpha,
    references: int,
    goldens: int,
    weights_sha256: str,
    weights: Mapping[str, str],
    version: str,
    pixels: PixelMetrics | None = None,
    detection: DetectionMetrics | None = None,
    n_calibration: int | None = None,
    seed: int = 0,
    notes: Sequence[str] = (),
) -> EvaluationResults:
    """All metrics of one run. pixels: None where the layout has no masks; seed: of the bootstrap."""
    labels = [result.label for result in per_image]
    scores = [result.score for result in per_image]
    rates = verdict_rates([label == 1 for label in labels], [result.verdict for result in per_image])
    times = [result.ms for result in per_image]
    return EvaluationResults(
        n_good=rates.n_good,
        n_bad=rates.n_bad,
        image_auroc=image_auroc(labels, scores),
        pixel_auroc=pixels.auroc() if pixels else None,
        aupro=pixels.aupro() if pixels else None,
        false_reject_rate=rates.false_reject.value,
        escape_rate=rates.escape.value,
        review_rate=rates.review.value,
        f1=rates.f1,
        f1_oracle=f1_oracle(labels, scores),
        alpha=alpha,
        ms_per_image=Milliseconds(p50=float(np.percentile(times, 50)), p95=float(np.percentile(times, 95)))
        if times
        else None,
        references=references,
        goldens=goldens,
        weights_sha256=weights_sha256,
        weights=dict(weights),
        per_image=list(per_image),
        data=data.name,
        format=data.format,
        split=data.split,
        seed=seed,
        n_calibration=n_calibration,
        version=version,
        created_at=datetime.now(UTC),
        intervals={
            "image_auroc": auroc_interval(labels, scores, seed=seed),
            "false_reject_rate": rates.false_reject.interval,
            "escape_rate": rates.escape.interval,
            "review_rate": rates.review.interval,
        },
        detection=detection,
        reading=_reading_effect(per_image, seed),
        notes=[*data.notes, *notes],
    )


def _reading_effect(per_image: Sequence[ImageResult], seed: int) -> ReadingEffect | None:
    """None where nothing was read."""
    passed = [(r.label, r.score, r.reading) for r in per_image if r.score_passes and r.reading is not None]
    if not passed:
        return None
    labels, scores, readings = zip(*passed, strict=True)
    both = rankdata(scores) + rankdata(readings)
    gain = paired_auroc_difference(labels, both, rankdata(scores), seed=seed)
    return ReadingEffect(
        n_good=labels.count(0),
        n_bad=labels.count(1),
        score=image_auroc(labels, scores),
        reading=image_auroc(labels, readings),
        both=image_auroc(labels, both),
        gain=None if gain is None else gain.interval,
    )


def print_results(results: EvaluationResults, console: Console | None = None) -> None:
    """A short table to stderr (stdout is the JSON's)."""
    console = console or Console(stderr=True)
    split = f", {results.split}" if results.split else ""
    table = Table(title=f"{results.data} ({results.format}{split})", title_justify="left")
    table.add_column("Metric")
    table.add_column("Value", justify="right")
    table.add_column("95 % interval")
    table.add_column("Over")
    good, bad = f"{results.n_good} good", f"{results.n_bad} defective"
    rows: list[tuple[str, float | None, str | None, str]] = [
        ("Image AUROC", results.image_auroc, "image_auroc", f"{good}, {bad}"),
        ("Pixel AUROC", results.pixel_auroc, None, "native pixels"),
        ("AUPRO, FPR to 0.3", results.aupro, None, "native pixels"),
        ("False-reject rate", results.false_reject_rate, "false_reject_rate", good),
        ("Escape rate", results.escape_rate, "escape_rate", bad),
        ("Review rate", results.review_rate, "review_rate", f"{results.n_good + results.n_bad} images"),
        ("F1 (not PASS)", results.f1, None, f"{good}, {bad}"),
        ("F1, best threshold", results.f1_oracle, None, f"{good}, {bad}"),
    ]
    if results.detection:
        boxes = f"{results.detection.n_true} boxes"
        rows += [("Detection mAP", results.detection.mean_ap, None, boxes)]
        rows += [("Detection F1", results.detection.f1, None, boxes)]
    for name, value, key, over in rows:
        interval = results.intervals.get(key) if key else None
        table.add_row(
            name,
            "–" if value is None else f"{value:.3f}",
            f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "",
            over if value is not None else "not applicable",
        )
    console.print(table)
    console.print(
        f"alpha {results.alpha.requested:g} requested, {results.alpha.attained:g} attained"
        + (f", calibrated on {results.n_calibration} good parts" if results.n_calibration is not None else "")
        + f"; {results.goldens} golden samples, {results.references} compared per image"
        + (
            f"; {results.ms_per_image.p50:.0f} ms (p50), {results.ms_per_image.p95:.0f} ms (p95)"
            if results.ms_per_image
            else ""
        ),
        highlight=False,
        markup=False,
    )
    if results.learned is not None:
        _print_learned(results, results.learned, console)
    if (read := results.reading) is not None:
        aurocs = (("score", read.score), ("reading", read.reading), ("both", read.both))
        told = ", ".join(f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in aurocs)
        if read.gain is not None:
            told += f" (both minus score {read.gain[0]:+.3f} to {read.gain[1]:+.3f}, 95 %)"
        console.print(
            f"on the {read.n_good} good and {read.n_bad} defective images that the score passes, image AUROC: {told}",
            highlight=False,
        )
    for note in results.notes:
        console.print(f"note: {note}", highlight=False, markup=False)


COMPARED = ("image_auroc", "false_reject_rate", "escape_rate", "review_rate", "f1")


def learned_effect(
    product: str,
    references: Sequence[str],
    left_out: Sequence[str],
    before: EvaluationResults,
    after: EvaluationResults,
) -> LearnedEffect:
    """Two runs over the same test images, side by side."""
    pairs = zip(before.per_image, after.per_image, strict=True)
    changed = [(b, a) for b, a in pairs if b.verdict != a.verdict]
    return LearnedEffect(
        product=product,
        references=list(references),
        left_out=list(left_out),
        before={name: getattr(before, name) for name in COMPARED},
        changed=[Changed(path=a.path, label=a.label, before=b.verdict, after=a.verdict) for b, a in changed],
    )


def _print_learned(results: EvaluationResults, learned: LearnedEffect, console: Console) -> None:
    table = Table(
        title=f"With {len(learned.references)} references learned for {learned.product}", title_justify="left"
    )
    for column in ("Metric", "Before", "After"):
        table.add_column(column, justify="left" if column == "Metric" else "right")
    for name in COMPARED:
        values = (learned.before[name], getattr(results, name))
        table.add_row(name.replace("_", " "), *("–" if v is None else f"{v:.3f}" for v in values))
    console.print(table)
    for label, what in ((0, "good"), (1, "defective")):
        moved = Counter((str(c.before), str(c.after)) for c in learned.changed if c.label == label)
        said = ", ".join(f"{n} from {b} to {a}" for (b, a), n in sorted(moved.items())) or "no verdict changed"
        console.print(f"{what}: {said}", highlight=False, markup=False)
