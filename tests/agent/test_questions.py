"""Questions about a report: its facts in four languages, the statement that a model chooses, and examples to train on."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Sequence

import pytest

from refdiff.agent.drivers.driver import MIN_CONFIDENCE, OWN_MODEL
from refdiff.agent.drivers.endpoint import EndpointDriver
from refdiff.agent.language import questions
from refdiff.agent.language.facts import Word, facts
from refdiff.agent.language.parts import parts_in
from refdiff.agent.language.questions import NOT_KNOWN, answer, choices, in_order, language_of, prompt_of
from refdiff.agent.language.statements import FUNCTION_WORDS, LANGUAGES, STATEMENTS, WORDS
from refdiff.agent.recording import templates
from refdiff.agent.recording.questions import TEMPLATES, questions_about
from refdiff.agent.report.schema import DefectReport, Severity, VerdictBasis
from refdiff.memory.records.dispositions import Disposition
from refdiff.model.defect_types import DEFECT_TYPES

from .test_report import finding, report

CRACK = finding(type="crack", length_mm=2.134, width_mm=0.31, seen_before={"parts": 3, "days": 30}, zone="edge",
                probable_cause={"text": "A dropped tool.", "basis": "guess"})  # fmt: skip
HOLE = finding(2, type="hole", length_mm=8.0, width_mm=7.5, severity="critical", within_limits=True,
               location={"x0": 80, "y0": 70, "x1": 90, "y1": 75, "region": "lower right"})  # fmt: skip
REPORT = report(findings=[CRACK, HOLE], p_value=0.0099, image_score=0.8123, verdict_reason="differs (p 0.01 <= 0.01)")
UNSCALED = report(
    scale={"mm_per_px": None, "source": None}, findings=[finding(length_mm=None, width_mm=None, uncertainty_mm=None)]
)
MANY = report(findings=[finding(n, length_mm=float(n)) for n in range(1, 10)])
DECIDED = Disposition("i-1", "override", "bob", "dust on the lens", "2026-03-02T08:00:00+00:00", "good")


class Chooser(EndpointDriver):
    """A driver that answers with what it is given, if that is offered."""

    def __init__(self, said: str, sure: float | None, model: str = OWN_MODEL) -> None:
        self.said, self.sure, self.model = said, sure, model

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        assert self.said in options
        return self.said, self.sure


def listed(filed: DefectReport = REPORT, question: str = "", language: str = "en") -> str:
    return "\n".join(questions._in_words(line, language) for line in in_order(facts(filed), question))


# ---- the facts ----


@pytest.mark.parametrize("topic", STATEMENTS)
def test_statement_templates_have_the_same_slots_in_every_language(topic: str) -> None:
    slots = [sorted(name for _, name, _, _ in string.Formatter().parse(row) if name) for row in STATEMENTS[topic]]
    assert len(slots) == len(LANGUAGES)
    assert slots == [slots[0]] * len(slots)


def test_report_vocabulary_covers_every_type_severity_and_place() -> None:
    places = {f"{y} {x}" for y in ("upper", "middle", "lower") for x in ("left", "middle", "right")}
    types = {name.replace("_", " ") for name in DEFECT_TYPES}
    assert {f"basis_{basis}" for basis in VerdictBasis} <= set(STATEMENTS)
    assert types | {*Severity} | {"centre", *places} - {"middle middle"} <= set(WORDS)


@pytest.mark.parametrize(
    "fact",
    [
        "part 4412", "product cell", "verdict FAIL: differs (p 0.01 <= 0.01)",
        "decided by the score against the calibration",
        "not reviewed by a person yet", "score 0.812", "threshold 0.131", "p 0.0099",
        "alpha 0.01 requested, 0.0244 attained", "time of total: 1391 ms",
        "reasoning: A line that the golden does not have.",
        "calibrated with 40 good parts", "golden g-1", "similarity 0.94", "scale 0.52 mm/px", "given with the photo",
        "registration SIFT + ECC, residual 0.42 px, overlap 98 %", "findings: 2", "f1: crack, upper left, length 2.13 mm",
        "width 0.31 mm", "severity major", "confidence 0.91", "cause A dropped tool.", "± 0.11 mm", "40 × 4.6 px",
        "area 1234 px²", "box 20, 30, 60, 50 px", "zone edge", "the same on 3 other parts, last 30 days",
        "reported by: system", "reasoning: The golden is even here.", "f2: hole, lower right, length 8 mm",
        "cause unknown", "within the limits of the specification", "language model: defect, crack, confidence 0.8",
        "language model refdiff (endpoint)", "dropped for lack of evidence: 1", "dropped: a second crack",
        "inspection i-1", "2026-03-01 14:05:09 UTC", "requested by weber", "request: inspect part #4412", "refdiff 0.1.0",
    ],
)  # fmt: skip
def test_facts_of_a_report_include(fact: str) -> None:
    assert fact in listed()


@pytest.mark.parametrize("filed", [REPORT, UNSCALED, MANY], ids=["scaled", "unscaled", "many"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_numbers_of_facts_are_the_same_in_every_language(filed: DefectReport, language: str) -> None:
    for line in facts(filed, DECIDED):
        for fact in line:
            numbers = re.findall(r"\d+(?:\.\d+)?", fact.text("en"))
            assert sorted(re.findall(r"\d+(?:\.\d+)?", fact.text(language))) == sorted(numbers)


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("de", "f1: Riss, oben links, Länge 2.13 mm, Breite 0.31 mm, Schwere erheblich, Konfidenz 0.91, Ursache A dropped"),
        ("es", "f1: grieta, arriba a la izquierda, longitud 2.13 mm, anchura 0.31 mm, gravedad mayor, confianza 0.91"),
        ("zh", "f1: 裂纹，左上，长度 2.13 mm，宽度 0.31 mm，严重程度 严重，置信度 0.91，原因 A dropped tool."),
    ],
)  # fmt: skip
def test_facts_translate_vocabulary_words_and_quote_free_text(language: str, told: str) -> None:
    assert told in listed(language=language)


def test_type_outside_the_vocabulary_is_not_translated() -> None:
    assert "f1: odd kind, " in listed(report(findings=[finding(type="odd_kind")]), language="de")
    assert not isinstance(facts(report(product="hole"))[0][1].slots["product"], Word)


def test_facts_without_a_scale_give_sizes_in_pixels() -> None:
    told = listed(UNSCALED)
    assert "scale unknown" in told
    assert "length 40 px, width 4.6 px" in told
    assert " mm" not in told


def test_facts_omit_what_the_report_does_not_hold() -> None:
    old = report(findings=[finding()], threshold=None, request="", n_calibration=0)
    for word in ("threshold", "calibrated", "request:", "zone", "within", "other parts", "references"):
        assert word not in listed(old)
    assert "not confirmed on other parts lately" in listed(report(findings=[finding(seen_before=None)]))


def test_facts_include_the_capture_summary() -> None:
    taken = {"id": "e2", "kind": "capture", "summary": "photo of 20 x 10 px",
             "arguments": {"part_id": "4412", "capture_id": "c-1", "product": "cell"},
             "numbers": {"width_px": 20, "height_px": 10, "scale_mm_per_px": None}}  # fmt: skip
    assert "capture: photo of 20 x 10 px" in listed(report(evidence=[taken]))


def test_facts_of_an_open_review_say_that_a_person_decides() -> None:
    assert facts(report(verdict="REVIEW"))[0][-1].text() == "a person has to decide: accept or override"


def test_facts_include_the_disposition_with_its_reason() -> None:
    assert facts(REPORT, DECIDED)[0][-1].text() == (
        "verdict overridden by bob on 2026-03-02T08:00:00+00:00: dust on the lens"
    )


# ---- their order ----


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("tell me", "part 4412"),
        ("how long is finding 2?", "f2: hole"),
        ("and f2", "f2: hole"),
        ("what of defect no. 2 then", "f2: hole"),
        ("Wie lang ist Fund 2?", "f2: Loch"),
        ("¿Cuánto mide el defecto 2?", "f2: agujero"),
        ("缺陷2有多长？", "f2: 孔洞"),
        ("anything about a hole?", "f2: hole"),
        ("Wo ist das Loch?", "f2: Loch"),
        ("孔洞在哪里？", "f2: 孔洞"),
        ("what is in the lower right?", "f2: hole"),
        ("the overlap of the registration?", "registration"),
        ("Welcher Maßstab?", "Maßstab 0.52"),
        ("¿Cuál es el umbral?", "puntuación"),
        ("相似度是多少？", "异常分数"),
        ("how long is finding 77?", "f77: not in the report"),
        ("is it 2.5 mm or f2.5?", "part 4412"),
    ],
)
def test_fact_named_in_the_question_comes_first(question: str, first: str) -> None:
    language = language_of(question)
    told = answer(REPORT, question).splitlines()
    assert told[0] == STATEMENTS["says"][LANGUAGES.index(language)]
    assert told[1].startswith(first)


@pytest.mark.parametrize("question", ["", "?!", "f2 and f1", "is the hole critical?", "x" * 2000, "f1 " * 700])
def test_facts_are_complete_whatever_the_question(question: str) -> None:
    assert sorted(listed(question=question).splitlines()) == sorted(listed().splitlines())


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("how long is f1?", "en"), ("length", "en"), ("", "en"), ("4412?", "en"), ("what was the die made of", "en"),
        ("Wie lang ist f1?", "de"), ("Wo ist der Kratzer", "de"), ("Länge", "de"), ("ist das Teil gut", "de"),
        ("¿Cuánto mide f1?", "es"), ("donde esta el defecto", "es"), ("longitud de la grieta", "es"),
        ("f1有多长？", "zh"), ("score 是多少", "zh"),
    ],
)  # fmt: skip
def test_language_of_a_question_is_detected(text: str, language: str) -> None:
    assert language_of(text) == language


def test_function_words_are_lower_case() -> None:
    assert all(words == words.lower() for words in FUNCTION_WORDS.values())


# ---- what a model chooses ----


@pytest.mark.parametrize(
    ("said", "question", "told"),
    [
        ("FAIL.", "did it pass?", "Verdict FAIL: differs (p 0.01 <= 0.01)."),
        ("f1: length 2.13 mm.", "how long is f1?", "f1: length 2.13 mm."),
        ("f1: length 2.13 mm.", "Wie lang ist f1?", "f1: Länge 2.13 mm."),
        ("f2: hole.", "¿Qué es f2?", "f2: agujero."),
        ("f2: lower right.", "f2 在哪里？", "f2: 右下."),
        ("f1: A dropped tool.", "why?", "f1: cause A dropped tool."),
        ("f1: length 2.13 mm, within 2,2 mm: yes.", "Ist f1 kürzer als 2,2mm?",
         "f1: Länge 2.13 mm, innerhalb von 2,2 mm: ja."),
        ("Inspected on 2026-03-01 14:05:09 UTC.", "Wann wurde es geprüft?", "Geprüft am 2026-03-01 14:05:09 UTC."),
    ],
)  # fmt: skip
def test_choice_of_a_general_model_is_told_in_the_language_of_the_question(said: str, question: str, told: str) -> None:
    assert answer(REPORT, question, None, Chooser(said, None, "qwen")) == told


def test_facts_are_told_when_a_general_model_chooses_none() -> None:
    told = answer(REPORT, "Wie warm war es?", None, Chooser(NOT_KNOWN, None, "qwen")).splitlines()
    assert told[0] == "Es fand sich keine Aussage, die das beantwortet. Der Bericht sagt:"
    assert told[1:] == answer(REPORT, "Wie warm war es?").splitlines()[1:]


@pytest.mark.parametrize(
    ("said", "sure", "first"),
    [
        ("Score 0.812.", MIN_CONFIDENCE, "score 0.812, p 0.0099"),
        ("Score 0.812.", 0.89, "part 4412"),
        ("f2: hole.", 0.99, "f2: hole, lower right"),
        ("f2: hole.", 0.5, "part 4412"),
        ("2 finding(s).", 0.95, "findings: 2"),
        (NOT_KNOWN, 0.99, "part 4412"),  # it was not told of everything
    ],
)
def test_choice_of_a_sure_own_model_comes_before_the_other_facts(said: str, sure: float, first: str) -> None:
    told = answer(REPORT, "and?", None, Chooser(said, sure)).splitlines()
    assert told[0] == "The report says:"
    assert told[1].startswith(first)
    assert sorted(told) == sorted(answer(REPORT, "and?").splitlines())


def test_general_model_chooses_from_more_statements_than_our_own() -> None:
    assert set(choices(facts(REPORT), "when?")) < set(choices(facts(REPORT), "when?", own_model=False))


def test_choices_hold_only_true_statements() -> None:
    offered = choices(facts(REPORT), "is f1 within 0.2 mm?")
    assert {"FAIL.", "f1: length 2.13 mm.", "f1: width 0.31 mm.", "f1: crack.", "f1: upper left."} <= set(offered)
    assert not {"PASS.", "f1: length 0.31 mm.", "f1: critical."} & set(offered)
    assert not [s for s in choices(facts(REPORT), "how long is f1?") if "within" in s]
    assert not [s for s in choices(facts(UNSCALED), "is f1 within 0.2 mm?") if "within" in s]


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("is the crack longer than 0.5 mm?", "f1: crack, upper left, length 2.13 mm, within 0.5 mm: no, width"),
        ("Ist f2 kürzer als 8,5mm?", "f2: Loch, unten rechts, Länge 8 mm, innerhalb von 8,5 mm: ja, Breite"),
        ("缺陷1超过1毫米了吗", "f1: 裂纹，左上，长度 2.13 mm，在 1 mm 以内：否，宽度"),
    ],
)
def test_answer_without_a_model_compares_the_limit_in_the_question(question: str, told: str) -> None:
    assert told in answer(REPORT, question)


@pytest.mark.parametrize(("limit", "fits"), [("2.2", "yes"), ("2,2", "yes"), ("0.2", "no"), ("2.134", "yes")])
def test_choices_compare_the_limit_in_the_question(limit: str, fits: str) -> None:
    assert f"f1: length 2.13 mm, within {limit} mm: {fits}." in choices(facts(REPORT), f"within {limit} mm?")


def test_question_prompt_has_the_trained_form() -> None:
    assert prompt_of(REPORT, "how long is f1?") == (
        "part 4412, product cell, verdict FAIL: differs (p 0.01 <= 0.01)\n"
        "score 0.812, p 0.0099, golden g-1, similarity 0.94\n"
        "scale 0.52 mm/px\n"
        "findings: 2\n"
        "f1: crack, upper left, length 2.13 mm, width 0.31 mm, severity major, confidence 0.91, cause A dropped tool.\n"
        "f2: hole, lower right, length 8 mm, width 7.5 mm, severity critical, confidence 0.91, cause unknown\n"
        "Question: how long is f1?"
    )


def test_finding_named_in_the_question_is_in_prompt_and_choices() -> None:
    assert "f9: length 9 mm." in choices(facts(MANY), "how long is finding 9?")
    assert "f9: crack" in prompt_of(MANY, "how long is finding 9?")
    assert "f8: crack" not in prompt_of(MANY, "how long is finding 9?")


def test_control_tokens_in_part_id_and_question_are_stripped_from_the_prompt() -> None:
    told = prompt_of(report(part_id="7<|im_end|>8"), "ok? <|im_start|>")
    assert "<|" not in told


# ---- examples to train on ----


def test_training_questions_have_true_answers_among_their_options() -> None:
    rng = random.Random(0)
    filed = REPORT.model_dump(mode="json")
    made = [q for test in (False, True) for _ in range(100) for q in questions_about(filed, rng, test=test)]
    assert all(q.answer in q.options for q in made)
    assert {q.known for q in made} == {True, False}
    assert all((q.answer == NOT_KNOWN) is not q.known for q in made)
    lengths = [q for q in made if re.search(r"length of f1\?$", q.prompt)]
    assert lengths
    assert {q.answer for q in lengths} == {"f1: length 2.13 mm."}


@pytest.mark.parametrize("topic", TEMPLATES)
def test_question_templates_cover_four_languages_and_keep_test_wordings_apart(topic: str) -> None:
    learned, kept = TEMPLATES[topic]
    assert not set(learned) & set(kept)
    assert {language_of(text) for text in learned} == set(LANGUAGES)


@pytest.mark.parametrize("test", [False, True])
def test_part_id_is_read_from_every_phrasing(test: bool) -> None:
    for kind, wordings in templates.phrasings(test).items():
        for template in wordings:
            for part in ("4412", "A77", "12-345", "SN90210"):
                text = template.format(part=part, n="2" if kind == "several" else "")
                assert list(parts_in(text).ids) == [part], text


def test_phrasings_of_training_and_test_do_not_overlap() -> None:
    train, test = ({t for part in templates.phrasings(x).values() for t in part} for x in (False, True))
    assert not train & test
