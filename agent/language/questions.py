"""Questions about a filed report: its facts as statements, the statement that a model chooses, and the answer in words.

A language model picks the statement that answers, or none. What another model picks is the answer. Our own sometimes picks a
wrong one, however sure it is (docs/measured.md): all facts are the answer then, what it is sure of first. Without a model
what the question names comes first. Every sentence is true of the report, whatever the question or the model says.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from refdiff.agent.drivers.driver import MIN_CONFIDENCE, OWN_MODEL, Driver
from refdiff.agent.language.facts import Fact, Line, compared, facts
from refdiff.agent.language.statements import FUNCTION_WORDS
from refdiff.agent.prompts import ANSWER, sanitise
from refdiff.agent.report.schema import DefectReport
from refdiff.memory.records.dispositions import Disposition

NOT_KNOWN = "Not known: the report does not say."  # the choice that our own model was trained on

# topic -> the wordings by which our own model was trained to choose it
_TRAINED = {
    "verdict": ("{verdict}", "{verdict}: {reason}"),
    "count": ("{n} finding(s)",),
    "golden": ("Golden {golden}",),
    "similarity": ("Similarity {similarity}",),
    "score": ("Score {score}",),
    "scale": ("{scale} mm/px",),
    "unscaled": ("The scale is unknown",),
    "length": ("length {length}",),
    "width": ("width {width}",),
    "place": ("{place}",),
    "type": ("{type}",),
    "cause": ("{cause}",),
    "severity": ("{severity}",),
    "within": ("length {length}, within {limit}: {fits}",),
}
_IN_PROMPT = {*_TRAINED, "part", "product", "p", "confidence", "unknown_cause"}
_QUOTED = {"reasoning", "request", "capture"}  # prose, whose words say little
_SHOWN = 6  # findings that the model reads; those that a question names always

_CJK = r"\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_CJK}]+|[^\W\d_{_CJK}]+")
_FINDING = re.compile(
    rf"(?:(?<![^\W{_CJK}])f|(?:finding|defect|befund|fund|fehler|defekt|hallazgo|defecto|缺陷) ?(?:number|no\.?|nr\.?)? ?#?)"
    rf"(\d{{1,2}})(?![\d.,]*\d|[^\W\d{_CJK}])",
    re.IGNORECASE,
)
_LIMIT = re.compile(rf"(?<![\d.,])(\d+(?:[.,]\d+)?) ?(?:mm(?![^\W{_CJK}])|毫米)", re.IGNORECASE)

_FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in FUNCTION_WORDS.items()}


def answer(
    report: DefectReport, question: str, decided: Disposition | None = None, driver: Driver | None = None
) -> str:
    """The statement of the report that answers the question, or all its facts, in the language of the question.

    decided: what a person made of the report since. driver: the model that chooses, ours of the statements that it was
    trained on, another of all. Raises LLMError.
    """
    language, lines = language_of(question), facts(report, decided)
    opening, first = "says", None
    if driver is not None:
        own_model = driver.model == OWN_MODEL
        offered = choices(lines, question, own_model)
        chosen, sure = driver.choose(ANSWER, prompt_of(report, question), [*offered, NOT_KNOWN])
        if sure is None or sure >= MIN_CONFIDENCE:
            first = offered.get(chosen)
            if not own_model:
                if first:
                    return first.sentence(language)
                opening = "none_found"  # ours reads only some facts: its "not known" says nothing about the others
    listed = [_in_words(_compared(line, question), language) for line in in_order(lines, question, first)]
    return "\n".join([Fact(opening, "", {}).text(language), *listed])


def choices(lines: Sequence[Line], question: str, own_model: bool = True) -> dict[str, Fact]:
    """What a model may choose of, and the fact behind it: all true, with a limit in mm that the question names."""
    stated = [fact for line in lines for fact in line]
    offered: dict[str, Fact] = {}
    for fact in [*stated, *_compared(stated, question)]:
        for choice in trained_choices(fact) or ([] if own_model else [fact.sentence()]):
            offered.setdefault(choice, fact)
    return offered


def trained_choices(fact: Fact) -> list[str]:
    """The wordings by which our own model was trained to choose a fact; none for what it was not trained on."""
    head = f"{fact.finding}: " if fact.finding else ""
    return [f"{head}{c.format(**fact.slots).rstrip('.')}." for c in _TRAINED.get(fact.topic, ())]


def prompt_of(report: DefectReport, question: str) -> str:
    """Facts and question as our own model was trained to read them: the first findings, and those that the question names.

    Part ids are any printable text: what means something to a chat template is taken out of facts and question alike.
    """
    read = _named(question) | {"", *(f.id for f in report.findings[:_SHOWN])}
    lines = [[f for f in line if f.topic in _IN_PROMPT and f.finding in read] for line in facts(report)]
    stated = "\n".join(_in_words(line, "en") for line in lines if line)
    return f"{sanitise(stated)}\nQuestion: {sanitise(question)}"


def in_order(lines: Sequence[Line], question: str, first: Fact | None = None) -> list[Line]:
    """The line of the first fact, those of findings that the question names, then those that share more words with it."""
    language, named = language_of(question), _named(question)
    absent = [[Fact("absent", name, {})] for name in sorted(named - {line[0].finding for line in lines})]

    def rank(line: Line) -> tuple[bool, bool, int]:
        holds = first is not None and line[0].finding == first.finding and (first.finding != "" or first in line)
        return not holds, line[0].finding not in named, -sum(_shares_words(question, fact, language) for fact in line)

    return absent + sorted(lines, key=rank)


def language_of(text: str) -> str:
    """The one of LANGUAGES that a text is written in, as its characters and its short words tell it; else English."""
    if re.search(f"[{_CJK}]", text):
        return "zh"
    words = _WORDS.findall(text.casefold())
    counts = {language: sum(word in known for word in words) for language, known in _FUNCTION_WORDS.items()}
    counts["de"] += len(re.findall("[äöüß]", text.casefold()))
    counts["es"] += len(re.findall("[¿¡ñáéíóú]", text.casefold()))
    return max(counts, key=lambda language: counts[language])  # the first of equals: English


def _shares_words(question: str, fact: Fact, language: str) -> bool:
    if fact.topic in _QUOTED:
        return False
    asked = set(_WORDS.findall(question.casefold())) - _FUNCTION_WORDS.get(language, frozenset())
    said = _WORDS.findall(fact.text(language).casefold())
    if language == "zh":  # it has no blanks between words
        return any(len(word) > 1 and word in run for word in said for run in asked)
    return any(len(word) > 2 and word in asked for word in said)


def _in_words(line: Line, language: str) -> str:
    """Facts in one line: "f1: scratch, upper left, length 2.13 mm"."""
    text = ("，" if language == "zh" else ", ").join(fact.text(language) for fact in line)
    return f"{line[0].finding}: {text}" if line[0].finding else text


def _compared(line: Line, question: str) -> Line:
    """The facts, lengths compared with a limit in mm that the question names."""
    limit = _LIMIT.search(question)
    return [compared(fact, limit[1]) for fact in line] if limit else line


def _named(question: str) -> set[str]:
    return {f"f{int(n)}" for n in _FINDING.findall(question)}
