"""Questions whose words say what is asked are answered by code, others are left to the model."""

from __future__ import annotations

import time
from typing import Any

import pytest

from refdiff.agent.language import questions, topic_words
from refdiff.agent.language.topics import asked
from refdiff.model.defect_types import DEFECT_TYPES


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
        ("how many good parts is this based on?", "Calibrated with 24 good part(s), compared with 1."),
        ("when was it inspected", "Inspected 2026-03-04 15:16:17 UTC."),
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
        ("area of f1", "f1: area 41 px²."),
        ("is f2 within 10 mm?", "f2: length 8 mm, within 10 mm: yes."),
        ("is the scratch longer than 0,5mm?", "f1: length 2 mm, within 0,5 mm: no."),
        ("缺陷1超过1毫米了吗", "f1: length 2 mm, within 1 mm: no."),
        ("how long and how wide is f1?", "f1: width 0.5 mm. f1: length 2 mm."),
        ("describe f1", "f1: scratch, upper left, length 2 mm."),
        ("has f1 been seen before?", "f1: scratch was not confirmed on other parts lately."),
        ("how long is finding 77?", questions.NOT_KNOWN),
        ("how long is finding 0?", questions.NOT_KNOWN),
        ("how long are f1 and f9?", "f1: length 2 mm. f9 is not in the report."),
        ("how long are f1,f3?", "f1: length 2 mm. f3: length 1 mm."),
        ("缺陷1和缺陷2有多长？", "f1: length 2 mm. f2: length 8 mm."),
        ("how long is the largest scratch?", "f1: length 2 mm."),
        ("where is the last scratch?", "f1: upper left."),
        ("wait a second, where is the scratch?", "f1: upper left."),
        ("one last thing: how long is the scratch?", "f1: length 2 mm."),
        ("where are the scratch and the dirt?", "f1: upper left. f3: lower right."),
        ("where are the 3 defects?", "f1: upper left. f2: centre. f3: lower right."),
        ("how long is finding number 2 of 3?", "f2: length 8 mm."),
        ("how long is the scratch on part 4412?", "f1: length 2 mm."),
        ("is the width of f1 below 1 mm?", "f1: width 0.5 mm, within 1 mm: yes."),
        ("why did the first part fail?", "FAIL: differs (p 0.01 <= 0.01)."),
        ("what caused it to fail?", "FAIL: differs (p 0.01 <= 0.01)."),
        ("how sure are you that it failed?", "FAIL. p 0.0099."),
        ("how many scratches are there?", "f1: scratch, upper left, length 2 mm."),
        ("is it all right?", "FAIL."),
        ("what is in the upper left?", "f1: scratch, upper left, length 2 mm."),
        ("how long is finding #2", "f2: length 8 mm."),
        ("did 4412 pass?", "FAIL."),
        ("is #4412 ok?", "FAIL."),
        (
            "Our contract tolerates 12 mm. Does the missing component come in under that?",
            "f2: length 8 mm, within 12 mm: yes.",
        ),
        ("How many of these sit in the lower right?", "f3: contamination, lower right, length 1 mm."),
        ("is the bigger spot under 10 mm?", "f2: length 8 mm, within 10 mm: yes."),
        ("零件上的缺陷在哪里？", "f1: upper left. f2: centre. f3: lower right."),
        ("帮我看一下缺陷有多长", "f1: length 2 mm. f2: length 8 mm. f3: length 1 mm."),
        ("右下角的污染有多长？", "f3: length 1 mm."),
        (
            "did this happen before?",
            " ".join(
                f"f{n}: {kind} was not confirmed on other parts lately."
                for n, kind in enumerate(("scratch", "missing component", "contamination"), start=1)
            ),
        ),
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
    assert questions.direct(UNSCALED, "is it shorter than 2 mm?") == "f1: length 30 px, no size in mm is known."
    assert questions.direct(UNSCALED, "what's the scale?") == "The scale is unknown."


@pytest.mark.parametrize(
    "question",
    [
        "", "?!", "how deep is f1?", "what was the temperature?", "who made the scratch?", "how long did the casting take?",
        "what is the score of the previous part?", "how many parts failed today?", "where was the part made?",
        "how heavy is it?",
        "what does a good sample cost?", "which shift produced it?", "Welcher Mitarbeiter hat das Teil gefertigt?",
        "¿Quién es el proveedor?", "车间当时的湿度是多少？", "how long is f1 in inches?",
        "is f1 oil or grease?", "when was the golden taken?", "how long is the scratch on part 2?", "did 70049 pass?",
        "is #4413 ok?",
        "上一个零件合格吗？", "上周的零件合格吗？", "where was the defect on the last part?", "how long is the part?",
        "how wide is the bracket?", "where is the report?", "how long is the defect in the upper right?",
        "is f1 over 1 mm and f2 under 5 mm?", "is it below 1/2 mm?", "is it below 1,000 mm?", "is f1's area below 3 mm?",
        "why is f1 minor?", "was it approved by a person?", "when will it be inspected again?", "second largest defect",
        "can we ship it?", "which findings are not in the centre?", "list all findings but the scratch",
        "where is the scratch on the golden?", "what is the average length?",
    ],
)  # fmt: skip
def test_what_words_do_not_tell_is_left_to_the_model(question: str) -> None:
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


def test_of_many_findings_none_is_forgotten() -> None:
    many = REPORT | {"findings": [finding(n, "scratch", "centre", float(n)) for n in range(1, 13)]}
    places = questions.direct(many, "where are they?")
    assert places is not None
    assert places.endswith("f6: centre. And 6 more.")
    kept = questions.direct(many, "are they all shorter than 7 mm?")
    assert kept is not None
    assert "f12: length 12 mm, within 7 mm: no." in kept


def test_a_word_of_a_type_that_was_not_found_is_told_what_was() -> None:
    counted = questions.direct(REPORT, "how many cracks are there?")
    assert counted is not None
    assert counted.startswith("FAIL, 3 finding(s): f1: scratch")


def test_an_old_report_is_asked_without_harm() -> None:
    old = {k: v for k, v in REPORT.items() if k not in ("n_calibration", "created_at")}
    old["findings"] = [
        {k: v for k, v in f.items() if k not in ("seen_before", "probable_cause")} for f in REPORT["findings"]
    ]
    assert questions.direct(old, "how many good parts is this based on?") == questions.NOT_KNOWN
    assert questions.direct(old, "when was it inspected?") == questions.NOT_KNOWN
    assert questions.direct(old, "seen before?") == questions.NOT_KNOWN
    assert questions.direct(old, "what caused f1?") == questions.NOT_KNOWN


def test_types_are_called_what_reports_call_them() -> None:
    assert set(topic_words.CALLED) - {""} <= set(DEFECT_TYPES)


def test_long_questions_are_read_quickly() -> None:
    for word in ("how ", "mm ", "1 ", "probable ", "seen this ", "？", "缺陷", "f1,"):
        started = time.perf_counter()
        questions.direct(REPORT, word * (2000 // len(word)))
        assert time.perf_counter() - started < 1


def test_what_is_not_clear_is_not_said_to_be_unknown() -> None:
    assert questions.unclear(REPORT, "what exposure time was the camera set to?") == questions.NOT_KNOWN
    assert questions.unclear(REPORT, "is it wonky?").startswith(f"{questions.NOT_CLEAR}\npart 4412")
