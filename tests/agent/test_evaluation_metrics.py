"""Metrics against scikit-learn, against slow plain definitions, and against numbers worked out by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import ndimage
from sklearn.metrics import f1_score, roc_auc_score

from refdiff.agent.evaluation import metrics
from refdiff.agent.evaluation.layouts import DataSet, Sample
from refdiff.agent.evaluation.metrics import Detection, PixelMetrics
from refdiff.agent.evaluation.results import (
    EvaluationResults,
    ImageResult,
    build_results,
    print_results,
)
from refdiff.agent.report.schema import Alpha, Verdict
from refdiff.model.boards.deeppcb import LabelledBox

P, F, R = Verdict.PASS, Verdict.FAIL, Verdict.REVIEW


def scored(n: int = 60, shift: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, draw.normal(size=n) + shift * labels


def maps(seed: int, scale: float = 1.0) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Anomaly maps of several sizes: good ones, and ones with regions of very different area."""
    draw = np.random.default_rng(seed)
    made: list[tuple[np.ndarray, np.ndarray | None]] = []
    for i in range(6):
        height, width = 20 + 5 * i, 40 - 3 * i
        values = draw.gamma(2, 0.1, (height, width))
        mask = np.zeros((height, width), bool)
        if i % 2:
            mask[2:5, 3:4] = True
            mask[8:16, 5:20] = True
            mask[16, 20] = True  # touches at a corner: one region with the one above
            values = values + 0.3 * mask * draw.random((height, width))
        made.append(((scale * values).astype(np.float32), mask if i % 2 else None))
    return made


def plain_aupro(images: list[tuple[np.ndarray, np.ndarray | None]], limit: float = 0.3) -> float:
    """The definition, one threshold at a time."""
    truth = [np.zeros(m.shape, bool) if mask is None else mask for m, mask in images]
    good = np.concatenate([m[~t] for (m, _), t in zip(images, truth, strict=True)])
    regions = []
    for (values, _), t in zip(images, truth, strict=True):
        numbered, count = ndimage.label(t, structure=np.ones((3, 3)))
        regions += [values[numbered == i + 1] for i in range(count)]
    rates, found = [0.0], [0.0]
    for threshold in np.unique(np.concatenate([m.ravel() for m, _ in images]))[::-1]:
        rates.append(float((good >= threshold).mean()))
        found.append(float(np.mean([(region >= threshold).mean() for region in regions])))
    x = np.linspace(0, limit, 20001)
    return float(np.trapezoid(np.interp(x, rates, found), x) / limit)


def test_image_auroc_and_oracle_f1_agree_with_plain_counting() -> None:
    labels, scores = scored()
    assert metrics.image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    best = max(f1_score(labels, scores >= threshold) for threshold in scores)
    assert metrics.f1_oracle(labels, scores) == pytest.approx(best)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_image_metrics_of_a_single_class_are_none(labels: list[int]) -> None:
    scores = [0.1] * len(labels)
    assert metrics.image_auroc(labels, scores) is None
    assert metrics.f1_oracle(labels, scores) is None
    assert metrics.auroc_interval(labels, scores) is None


def test_invalid_labels_or_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        metrics.image_auroc([0, 1], [0.1, float("nan")])
    with pytest.raises(ValueError, match="one score for every image"):
        metrics.image_auroc([0, 1], [0.1])
    with pytest.raises(ValueError, match="labels must be 0"):
        metrics.image_auroc([0, 2], [0.1, 0.2])


def test_auroc_interval_is_seeded_covers_the_value_and_narrows_with_more_images() -> None:
    labels, scores = scored(60)
    interval = metrics.auroc_interval(labels, scores, seed=3)
    assert interval == metrics.auroc_interval(labels, scores, seed=3)
    assert interval != metrics.auroc_interval(labels, scores, seed=4)
    low, high = interval
    assert low < roc_auc_score(labels, scores) < high
    # Hanley and McNeil's standard error is about .06 here
    assert 0.15 < high - low < 0.35
    more = metrics.auroc_interval(*scored(600), seed=3)
    assert more[1] - more[0] < (high - low) / 2
    assert metrics.auroc_interval([0, 1], [0.1, 0.2]) is None


def test_paired_auroc_interval_is_narrower_than_single_intervals() -> None:
    labels, base = scored(80, shift=1.2)
    noise = np.random.default_rng(9).normal(size=80) * 0.05
    paired = metrics.paired_auroc_difference(labels, base + 0.25 * labels + noise, base, seed=1)
    assert paired is not None
    assert paired.difference > 0.02
    assert paired.interval is not None
    assert 0 < paired.interval[0] < paired.difference < paired.interval[1]
    single = metrics.auroc_interval(labels, base, seed=1)
    assert paired.interval[1] - paired.interval[0] < (single[1] - single[0]) / 2


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5, -1.0])
def test_pixel_metrics_agree_with_scikit_learn_and_the_definition_at_any_scale(scale: float) -> None:
    images = maps(1, scale)
    pixels = PixelMetrics()
    for values, mask in images:
        pixels.add(values, mask)
    flat = np.concatenate([values.ravel() for values, _ in images])
    truth = np.concatenate([(np.zeros(v.shape, bool) if m is None else m).ravel() for v, m in images])
    assert pixels.auroc() == pytest.approx(roc_auc_score(truth, flat), abs=2e-4)
    assert pixels.aupro() == pytest.approx(plain_aupro(images), abs=2e-3)
    assert pixels.regions == 6
    assert pixels.images == 6


def test_pixel_metrics_of_perfect_blind_and_maskless_maps() -> None:
    mask = np.zeros((10, 10), bool)
    mask[2:4, 2:4] = True
    perfect = PixelMetrics()
    perfect.add(mask.astype(np.float32), mask)
    assert perfect.auroc() == pytest.approx(1.0)
    assert perfect.aupro() == pytest.approx(1.0)
    blind = PixelMetrics()
    blind.add(np.zeros((10, 10), np.float32), mask)
    assert blind.auroc() == pytest.approx(0.5)
    nothing = PixelMetrics()
    nothing.add(np.zeros((10, 10), np.float32), None)
    assert nothing.auroc() is None
    assert nothing.aupro() is None


def test_aupro_weighs_small_regions_like_large_ones() -> None:
    mask = np.zeros((50, 50), bool)
    mask[0:20, 0:20] = True
    mask[40:42, 40:42] = True
    found_large = np.zeros((50, 50), np.float32)
    found_large[0:20, 0:20] = 1
    pixels = PixelMetrics()
    pixels.add(found_large, mask)
    # half of the regions at FPR 0, rising evenly to all of them at FPR 1: mean height to .3 is .5 + .5 * .15
    assert pixels.aupro() == pytest.approx(0.575, abs=1e-6)


def test_pixel_map_of_wrong_shape_or_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        PixelMetrics().add(np.zeros((4, 4), np.float32), np.zeros((4, 5), bool))
    with pytest.raises(ValueError, match="not finite"):
        PixelMetrics().add(np.full((4, 4), np.inf, np.float32), None)


BOX = LabelledBox(0, 0, 10, 10, "open")


@pytest.mark.parametrize(
    ("found", "ap", "f1"),
    [
        ([Detection(0, 0, 10, 10, 0.9, "open")], 1.0, 1.0),
        ([Detection(0, 0, 10, 10, 0.4, "open")], 1.0, 0.0),  # right, but not sure enough for F1
        ([Detection(0, 0, 10, 10, 0.9, "short")], 0.0, 0.0),  # another type
        ([Detection(0, 0, 10, 3.3, 0.9, "open")], 0.0, 0.0),  # IoU .33 is not above .33
        ([Detection(0, 0, 10, 3.4, 0.9, "open")], 1.0, 1.0),
        ([Detection(0, 0, 10, 10, 0.9, "open"), Detection(0, 0, 10, 9, 0.8, "open")], 1.0, 2 / 3),  # counts once
        ([Detection(50, 50, 60, 60, 0.95, "open"), Detection(0, 0, 10, 10, 0.9, "open")], 0.5, 2 / 3),
        ([], 0.0, 0.0),
    ],
)
def test_detection_counts_by_overlap_type_and_confidence(found: list[Detection], ap: float, f1: float) -> None:
    result = metrics.detection_metrics({"a": found}, {"a": [BOX]})
    assert result.ap["open"] == pytest.approx(ap)
    assert result.mean_ap == pytest.approx(ap)
    assert result.f1 == pytest.approx(f1)


def test_detection_metrics_combine_images_and_types() -> None:
    truth = {"a": [BOX, LabelledBox(20, 20, 30, 30, "spur")], "b": [BOX], "c": []}
    found = {
        "a": [Detection(0, 0, 10, 10, 0.9, "open")],
        "b": [Detection(40, 40, 50, 50, 0.8, "open"), Detection(1, 0, 10, 10, 0.7, "open")],
        "c": [Detection(0, 0, 9, 9, 0.95, "spur")],
    }
    result = metrics.detection_metrics(found, truth)
    assert result.ap == {"open": pytest.approx((1 + 2 / 3) / 2), "spur": 0.0}
    assert result.mean_ap == pytest.approx((1 + 2 / 3) / 4)
    assert (result.precision, result.recall) == (pytest.approx(2 / 4), pytest.approx(2 / 3))
    assert (result.n_true, result.n_detections) == (3, 4)
    with pytest.raises(ValueError, match="no ground truth"):
        metrics.detection_metrics({"z": []}, truth)
    assert metrics.detection_metrics({}, {"a": []}).mean_ap is None


def test_detections_file_is_written_for_every_image(tmp_path: Path) -> None:
    found = {"001": [Detection(1, 2, 3, 4, 0.25, "spur"), Detection(5.4, 6, 7, 8.6, 0.75, "pin-hole")], "002": []}
    metrics.write_detections(tmp_path / "d", found)
    assert (tmp_path / "d" / "001.txt").read_text() == "5,6,7,9,0.7500,pin-hole\n1,2,3,4,0.2500,spur\n"
    assert (tmp_path / "d" / "002.txt").read_text() == ""


@pytest.mark.parametrize("found", [{"a": [Detection(0, 0, 1, 1, 1, "scratch")]}, {"../a": []}, {"": []}, {"..": []}])
def test_detections_that_deeppcb_could_not_read_are_refused(tmp_path: Path, found: dict[str, list[Detection]]) -> None:
    with pytest.raises(ValueError, match=r"DeepPCB knows|not a plain file name"):
        metrics.write_detections(tmp_path, found)


# ---- results.json ----

CONTRACT = {
    "n_good", "n_bad", "image_auroc", "pixel_auroc", "aupro", "false_reject_rate", "escape_rate", "review_rate", "f1",
    "f1_oracle", "alpha", "ms_per_image", "references", "goldens", "weights_sha256", "per_image",
}  # fmt: skip


def results(n_bad: int = 2, pixels: PixelMetrics | None = None) -> EvaluationResults:
    sample = Sample(Path("a"), "a", "a", False, "good")
    data = DataSet("bottle", "mvtec", Path(), test=(sample,), notes=("a note [brackets]",))
    rows = [
        ImageResult(path=f"{i}.png", label=int(i < n_bad), score=1.0 - i / 10, p_value=0.1, verdict=F if i == 0 else P,
                    reference="g-1", ms=10.0 * (i + 1))
        for i in range(5)
    ]  # fmt: skip
    return build_results(
        data, rows, alpha=Alpha(requested=0.01, attained=0.02), references=1, goldens=40, weights_sha256="ab", weights={},
        version="0.1.0", pixels=pixels, n_calibration=40,
    )  # fmt: skip


def test_results_json_has_the_documented_keys_and_values() -> None:
    document = json.loads(results().model_dump_json())
    assert set(document) >= CONTRACT
    assert set(document["per_image"][0]) >= {"path", "label", "score", "p_value", "verdict", "reference", "ms"}
    assert (document["n_good"], document["n_bad"]) == (3, 2)
    assert document["image_auroc"] == 1.0
    assert document["escape_rate"] == 0.5
    assert document["false_reject_rate"] == 0.0
    assert document["f1"] == pytest.approx(2 / 3)
    assert document["f1_oracle"] == 1.0
    assert document["pixel_auroc"] is None
    assert document["ms_per_image"] == {"p50": 30.0, "p95": pytest.approx(48.0)}
    assert document["alpha"] == {"requested": 0.01, "attained": 0.02}
    assert document["per_image"][0]["verdict"] == "FAIL"
    assert document["intervals"]["escape_rate"] == pytest.approx([0.0945, 0.9055], abs=1e-3)
    assert EvaluationResults.model_validate(document).n_bad == 2


def test_reading_is_compared_with_the_score_where_the_score_passes() -> None:
    def row(label: int, score: float, reading: float, passes: bool = True) -> ImageResult:
        return ImageResult(path="a", label=label, score=score, p_value=0.5, verdict=P, reference=None, ms=1.0,
                           score_passes=passes, reading=reading)  # fmt: skip

    rows = [row(0, 0.1, 0.2), row(0, 0.3, 0.1), row(1, 0.2, 0.9), row(1, 0.25, 0.15), row(1, 9.0, 0.0, passes=False)]
    data = DataSet("bottle", "mvtec", Path(), test=())
    read = build_results(
        data, rows, alpha=Alpha(requested=0.01, attained=0.02), references=1, goldens=40, weights_sha256="ab", weights={},
        version="0.1.0",
    ).reading  # fmt: skip
    assert read is not None
    assert (read.n_good, read.n_bad, read.score, read.reading, read.both) == (2, 2, 0.5, 0.75, 0.875)
    assert read.gain is not None
    assert read.gain[0] <= 0.375 <= read.gain[1]
    assert results().reading is None


def test_results_without_defective_images_are_null() -> None:
    document = json.loads(results(n_bad=0).model_dump_json())
    for key in ("image_auroc", "f1", "f1_oracle", "escape_rate", "aupro"):
        assert document[key] is None, key


def test_results_table_shows_values_intervals_and_notes() -> None:
    stream = io.StringIO()
    print_results(results(), Console(file=stream, width=120))
    text = stream.getvalue()
    for expected in (
        "Escape rate",
        "0.500",
        "0.095 to 0.905",
        "not applicable",
        "40 golden samples",
        "a note [brackets]",
    ):
        assert expected in text, expected
