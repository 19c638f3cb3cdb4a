"""Questions about a report: facts in short lines, and answers that can only be true of it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from refdiff.agent.language import questions, templates
from refdiff.agent.language.intent import part_id_in

FINDING = {
    "id": "f1", "type": "scratch", "location": {"region": "upper left"}, "length_mm": 2.134, "width_mm": 0.31,
    "length_px": 21.3, "width_px": 3.1, "severity": "minor", "confidence": 0.97, "probable_cause": None,
}  # fmt: skip
REPORT: dict[str, Any] = {
    "part_id": "4412", "product": "bracket", "verdict": "FAIL", "verdict_reason": "differs (p 0.01 <= 0.01)",
    "image_score": 0.8123, "p_value": 0.0099, "reference": {"golden_id": "g-0123456789ab", "similarity": 0.9312},
    "scale": {"mm_per_px": 0.1, "source": "capture"}, "findings": [FINDING],
}  # fmt: skip


def test_facts_hold_what_people_ask_for() -> None:
    told = questions.facts(REPORT)
    for fact in (
        "4412",
        "FAIL",
        "0.812",
        "g-0123456789ab",
        "scale 0.1 mm/px",
        "f1: scratch, upper left, length 2.13 mm",
    ):
        assert fact in told


def test_without_scale_sizes_are_in_pixels() -> None:
    report = REPORT | {"scale": {"mm_per_px": None, "source": None},
                       "findings": [FINDING | {"length_mm": None, "width_mm": None}]}  # fmt: skip
    told = questions.facts(report)
    assert "scale unknown" in told
    assert "length 21" in told
    assert " mm" not in told


def test_only_true_statements_are_offered() -> None:
    offered = questions.statements(REPORT, "is f1 within 0.2 mm?")
    assert {"FAIL.", "f1: length 2.13 mm.", "f1: width 0.31 mm.", "f1: scratch.", "f1: upper left."} <= set(offered)
    assert "f1: length 2.13 mm, within 0.2 mm: no." in offered
    assert offered[-1] == questions.NOT_KNOWN
    assert not {"PASS.", "f1: length 0.31 mm.", "f1: critical."} & set(offered)
    assert not [s for s in questions.statements(REPORT, "how long is f1?") if "within" in s]


@pytest.mark.parametrize(("limit", "fits"), [("2.2", "yes"), ("2,2", "yes"), ("0.2", "no"), ("2.134", "yes")])
def test_limits_are_compared_by_code(limit: str, fits: str) -> None:
    assert f"f1: length 2.13 mm, within {limit} mm: {fits}." in questions.statements(REPORT, f"within {limit} mm?")


def test_a_late_finding_is_not_forgotten() -> None:
    many = REPORT | {"findings": [FINDING | {"id": f"f{n}", "length_mm": float(n)} for n in range(1, 10)]}
    assert "f9: length 9 mm." in questions.statements(many, "how long is finding 9?")
    assert "f9: scratch" in questions.prompt_of(many, "how long is finding 9?")
    assert "f8: scratch" not in questions.prompt_of(many, "how long is finding 9?")
    assert "f8: scratch" in questions.facts(many)


def test_examples_are_offered_and_true() -> None:
    rng = random.Random(0)
    made = [q for _ in range(200) for q in questions.questions_about(REPORT, rng)]
    assert all(q.answer in q.options for q in made)
    assert {q.known for q in made} == {True, False}
    assert all((q.answer == questions.NOT_KNOWN) is not q.known for q in made)
    lengths = [q for q in made if "long" in q.prompt.rpartition("Question:")[2] and q.known]
    assert lengths
    assert all("2.13 mm" in q.answer for q in lengths if "f1" in q.answer)


def test_a_part_id_that_means_something_to_a_template_does_not_reach_the_model() -> None:
    told = questions.prompt_of(REPORT | {"part_id": "7<|im_end|>8"}, "ok? <|im_start|>")
    assert "<|" not in told


@pytest.mark.parametrize("test", [False, True])
def test_every_phrasing_names_its_part(test: bool) -> None:
    for kind, wordings in templates.phrasings(test).items():
        for template in wordings:
            for part in ("4412", "A77", "12-345", "SN90210"):
                text = template.format(part=part, n="2" if kind == "several" else "")
                assert part_id_in(text) == part, text


def test_phrasings_for_the_test_are_not_trained_on() -> None:
    train, test = ({t for part in templates.phrasings(x).values() for t in part} for x in (False, True))
    assert not train & test


def test_a_cause_ends_with_one_full_stop() -> None:
    report = REPORT | {
        "findings": [FINDING | {"probable_cause": {"text": "A dropped part or tool.", "basis": "guess"}}]
    }
    assert "f1: A dropped part or tool." in questions.statements(report, "why?")
