"""Questions whose words say what is asked are answered by code, others are left to the model."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.agent import questions
from refdiff.agent.topics import asked


def finding(number: int, type_: str, region: str, length: float | None, **more: Any) -> dict[str, Any]:
    scale = 0.1
    return {
        "id": f"f{number}", "type": type_, "location": {"region": region}, "length_mm": length,
        "width_mm": None if length is None else length / 4,
        "length_px": (length or 3) / scale, "width_px": (length or 3) / 4 / scale,
        "area_px": 40 + number, "severity": "minor", "confidence": 0.97,
        "probable_cause": {"text": "A slipped tool.", "basis": "guess"},
        "seen_before": None, **more,
    }  # fmt: skip


REPORT: dict[str, Any] = {
    "part_id": "4412", "product": "bracket", "verdict": "FAIL", "verdict_reason": "differs (p 0.01 <= 0.01)",
    "image_score": 0.8123, "p_value": 0.0099, "reference": {"golden_id": "g-0123456789ab", "similarity": 0.9312},
    "scale": {"mm_per_px": 0.1, "source": "capture"}, "n_calibration": 24, "created_at": "2026-03-04T15:16:17Z",
    "findings": [finding(1, "scratch", "upper left", 2.0), finding(2, "missing_component", "centre", 8.0),
                 finding(3, "contamination", "lower right", 1.0)],
}  # fmt: skip
CLEAN = REPORT | {"verdict": "PASS", "findings": []}
UNSCALED = REPORT | {
    "scale": {"mm_per_px": None, "source": None},
    "findings": [finding(1, "crack", "middle left", None)],
}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What's the verdict, please?", "FAIL."),
        ("so is it OK or not", "FAIL."),
        ("Ist das Teil in Ordnung?", "FAIL."),
        ("¿Está bien la pieza?", "FAIL."),
        ("这个零件合格吗？", "FAIL."),
        ("why did it fail?", "FAIL: differs (p 0.01 <= 0.01)."),
        ("Warum ist es durchgefallen?", "FAIL: differs (p 0.01 <= 0.01)."),
        ("how many defects did you find", "3 finding(s)."),
        ("which golden sample did you use?", "Golden g-0123456789ab."),
        ("how similar is the nearest golden", "Similarity 0.931. Golden g-0123456789ab."),
        ("what's the anomaly score", "Score 0.812."),
        ("p-value?", "p 0.0099."),
        ("how many mm is one pixel", "0.1 mm/px."),
        ("how many good parts is this based on?", "Judged by 24 good part(s)."),
        ("when was it inspected", "Inspected 2026-03-04 15:16 UTC."),
        ("how long is finding 2", "f2: length 8 mm."),
        ("length of f1", "f1: length 2 mm."),
        ("and the third one, how wide?", "f3: width 0.25 mm."),
        ("how big is the last one", "f3: length 1 mm, width 0.25 mm."),
        ("how long is the largest?", "f2: length 8 mm."),
        ("how long is the Kratzer", "f1: length 2 mm."),
        ("Wo ist der Kratzer?", "f1: upper left."),
        ("where's the dirt", "f3: lower right."),
        ("what is in the lower right?", "f3: contamination, lower right, length 1 mm."),
        ("左上角的缺陷有多长？", "f1: length 2 mm."),
        ("¿Dónde está el segundo defecto?", "f2: centre."),
        ("what kind of defect is f2?", "f2: missing component."),
        ("how bad is it in the centre", "f2: minor."),
        ("how sure are you about f1?", "f1: confidence 0.97."),
        ("what caused f3?", "f3: A slipped tool."),
        ("why did defect 2 happen?", "f2: A slipped tool."),
        ("划痕的原因是什么？", "f1: A slipped tool."),
        ("Wo sitzt der größte Fehler?", "f2: centre."),
        ("The one in the upper left - is it below 1 mm?", "f1: length 2 mm, within 1 mm: no."),
        ("Would you be so kind as to state the width of the scratch? I need it for my files.", "f1: width 0.5 mm."),
        ("area of f1", "f1: area 41 px."),
        ("is f2 within 10 mm?", "f2: length 8 mm, within 10 mm: yes."),
        ("is the scratch longer than 0,5mm?", "f1: length 2 mm, within 0,5 mm: no."),
        ("缺陷1超过1毫米了吗", "f1: length 2 mm, within 1 mm: no."),
        ("how long and how wide is f1?", "f1: width 0.5 mm. f1: length 2 mm."),
        ("describe f1", "f1: scratch, upper left, length 2 mm."),
        ("has f1 been seen before?", "f1: scratch was not confirmed on other parts lately."),
        ("how long is finding 77?", questions.NOT_KNOWN),
    ],
)
def test_words_that_say_it_all_need_no_model(question: str, answer: str) -> None:
    assert questions.direct(REPORT, question) == answer


def test_what_is_asked_of_all_findings_is_told_of_all() -> None:
    assert questions.direct(REPORT, "where are they?") == "f1: upper left. f2: centre. f3: lower right."
    summary = questions.direct(REPORT, "summary please")
    assert summary is not None
    assert summary.startswith("FAIL, 3 finding(s): f1: scratch, upper left, length 2 mm. f2: ")


def test_a_clean_part_has_nothing_to_measure() -> None:
    for question in ("how long is the scratch?", "what's wrong with it?", "where is the defect"):
        assert questions.direct(CLEAN, question) == "PASS, no findings."
    assert questions.direct(CLEAN, "how wide is f1?") == questions.NOT_KNOWN
    assert questions.direct(CLEAN, "how many defects?") == "0 finding(s)."


def test_without_a_scale_no_limit_is_kept_or_broken() -> None:
    assert questions.direct(UNSCALED, "is it shorter than 2 mm?") == "f1: length 30 px, the scale is unknown."
    assert questions.direct(UNSCALED, "what's the scale?") == "The scale is unknown."


@pytest.mark.parametrize(
    "question",
    [
        "", "?!", "how deep is f1?", "what was the temperature?", "who made the scratch?", "how long did the casting take?",
        "what is the score of the previous part?", "how many parts failed today?", "where was the part made?",
        "how heavy is it?",
        "what does a good sample cost?", "which shift produced it?", "Welcher Mitarbeiter hat das Teil gefertigt?",
        "¿Quién es el proveedor?", "车间当时的湿度是多少？", "how long is f1 in inches?",
        "is f1 oil or grease?", "when was the golden taken?",
    ],
)  # fmt: skip
def test_any_other_word_leaves_it_to_the_model(question: str) -> None:
    assert questions.direct(REPORT, question) is None


def test_what_the_model_learned_from_is_understood_without_it() -> None:
    """But for what no report holds; some phrasings ask for more than their topic in the training."""
    wider = {
        "length": {"length", "size"},
        "type": {"type", "list"},
        "similarity": {"similarity", "golden"},
    }
    for topic, (learned, _) in questions._ASKED.items():
        for template in learned:
            found = asked(REPORT, template.format(n=2, limit="0.2 mm"))
            if topic == "elsewhere":
                assert found is None, template
            else:
                assert found is not None, template
                assert set(found.topics) <= wider.get(topic, {topic}), template
                assert found.findings == ((2,) if "{n}" in template else ()), template
