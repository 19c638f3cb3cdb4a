"""Questions about a report: facts in short lines, answers that may hold no number of their own."""

from __future__ import annotations

import random
from typing import Any

import pytest

from refdiff.agent import phrasings, questions
from refdiff.agent.request import part_id_in

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


@pytest.mark.parametrize(
    ("said", "fine"),
    [("f1: length 2.13 mm.", True), ("It is 2,13 mm long.", True), ("No.", True), ("It is 2.5 mm long.", False),
     ("f2 is a crack.", False), ("limit 0.2 mm: no", True)],
)  # fmt: skip
def test_answers_bring_no_numbers_of_their_own(said: str, fine: bool) -> None:
    assert questions.grounded(said, questions.prompt_of(REPORT, "is it within 0.2 mm?").replace("f2", "")) is fine


def test_examples_are_true_and_grounded() -> None:
    rng = random.Random(0)
    made = [q for _ in range(200) for q in questions.questions_about(REPORT, rng)]
    assert all(questions.grounded(q.answer, q.prompt) for q in made)
    assert {q.known for q in made} == {True, False}
    assert all((q.answer == questions.NOT_KNOWN) is not q.known for q in made)
    lengths = [q for q in made if "long" in q.prompt.rpartition("Question:")[2] and q.known]
    assert lengths
    assert all("2.13 mm" in q.answer for q in lengths if "f1" in q.answer)


@pytest.mark.parametrize("test", [False, True])
def test_every_phrasing_names_its_part(test: bool) -> None:
    for kind, templates in phrasings.phrasings(test).items():
        for template in templates:
            for part in ("4412", "A77", "12-345", "SN90210"):
                text = template.format(part=part, n="2" if kind == "several" else "")
                assert part_id_in(text) == part, text


def test_phrasings_for_the_test_are_not_trained_on() -> None:
    train, test = ({t for part in phrasings.phrasings(x).values() for t in part} for x in (False, True))
    assert not train & test
