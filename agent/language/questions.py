"""Questions about a filed report: what code answers, what the model is told and may answer, and examples to train on.

Where words tell what is asked (`agent.topics`) code answers. Of other questions the model sees the report's facts as short
lines and picks one of the statements that it was trained on and that are true of the report, or "not known": whatever it
picks is true, if not what was asked.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from refdiff.agent.language.topics import COMPARED, FINDING, LIMIT, OF_FINDINGS, asked, elsewhere
from refdiff.agent.prompts import sanitise
from refdiff.agent.report.schema import SeenBefore
from refdiff.agent.report.summary import seen_before_text as seen_words
from refdiff.agent.report.summary import when
from refdiff.agent.report.summary import with_unit as format_number

NOT_KNOWN = "Not known: the report does not say."
NOT_CLEAR = "It is not clear what is asked. The report says:"
_SHOWN = 6  # findings that the model reads; those that a question names always


@dataclass(frozen=True)
class Question:
    """prompt: facts and question as the model reads them. known: the report holds the answer. options: all that
    may be answered."""

    prompt: str
    answer: str
    known: bool
    options: list[str]


def facts(report: Mapping[str, Any], question: str | None = None) -> str:
    """A report (DefectReport as JSON) in short lines: all findings, or the first and those that `question` names."""
    reference, scale = report["reference"], report["scale"]
    p = "none" if report["p_value"] is None else f"{report['p_value']:.3g}"
    lines = [
        f"part {report['part_id']}, product {report['product']}, verdict {report['verdict']}: {report['verdict_reason']}",
        f"score {report['image_score']:.3g}, p {p}, golden {reference['golden_id']}, "
        f"similarity {reference['similarity']:.3g}",
        f"scale {scale['mm_per_px']:.3g} mm/px" if scale["mm_per_px"] else "scale unknown",
        f"findings: {len(report['findings'])}",
    ]
    named = {f"f{int(n)}" for n in FINDING.findall(question)} if question is not None else set()
    for number, finding in enumerate(report["findings"], start=1):
        if question is not None and number > _SHOWN and finding["id"] not in named:
            continue
        lines.append(
            f"{finding['id']}: {finding['type'].replace('_', ' ')}, {finding['location']['region']}, "
            f"length {_size(finding, 'length')}, width {_size(finding, 'width')}, severity {finding['severity']}, "
            f"confidence {finding['confidence']:.2g}, cause {(finding.get('probable_cause') or {}).get('text') or 'unknown'}"
        )
    return "\n".join(lines)


def _size(finding: Mapping[str, Any], name: str) -> str:
    for unit in ("_mm", "_px"):
        if finding.get(name + unit) is not None:
            return format_number(unit, float(finding[name + unit]))
    return "unknown"


def prompt_of(report: Mapping[str, Any], question: str) -> str:
    """Part ids are any printable text: what means something to a chat template is taken out of facts and question alike."""
    return f"{sanitise(facts(report, question))}\nQuestion: {sanitise(question)}"


def _recurs(finding: Mapping[str, Any]) -> str:
    if "seen_before" not in finding:  # filed before anything was remembered
        return NOT_KNOWN
    kind, seen = finding["type"].replace("_", " "), finding["seen_before"]
    if not seen:
        return f"{finding['id']}: {kind} was not confirmed on other parts lately."
    return f"{finding['id']}: {kind} was confirmed on {seen_words(SeenBefore.model_validate(seen))}."


def statements(report: Mapping[str, Any], question: str) -> list[str]:
    """All that the model may answer: true of the report, with a limit in mm that the question names; last, NOT_KNOWN."""
    limit = LIMIT.search(question)
    numbers = range(1, len(report["findings"]) + 1)
    topics = [(topic, n) for topic in _ASKED for n in (numbers if topic in OF_FINDINGS else (1,))]
    found = [_answer(topic, report, n, f"{limit.group(1)} mm" if limit else None) for topic, n in topics]
    return [*dict.fromkeys(s for s in found if s is not None), NOT_KNOWN]


# topic -> phrasings to train on, phrasings for the test; {n} is a finding's number, {limit} a length
_ASKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "verdict": (("what is the verdict?", "did it pass?", "is the part ok?", "Teil in Ordnung?"), ("so, pass or fail?",)),
    "why": (("why?", "why that verdict?", "what is the reason?", "Warum?"), ("how did you come to that verdict?",)),
    "count": (("how many findings are there?", "how many defects?", "Wie viele Befunde?"), ("number of findings?",)),
    "golden": (("which golden was used?", "what was it compared with?", "which reference?"), ("name the golden sample",)),
    "similarity": (("how similar is the golden?", "similarity of the reference?"), ("how close is the reference?",)),
    "score": (("what is the score?", "image score?"), ("tell me the anomaly score",)),
    "scale": (("what is the scale?", "how many mm per pixel?"), ("which scale was used?",)),
    "length": (("how long is finding {n}?", "length of f{n}?", "how large is the defect f{n}?", "Wie lang ist f{n}?",
                "¿Cuánto mide f{n}?"), ("what length does finding {n} have?",)),
    "width": (("how wide is finding {n}?", "width of f{n}?"), ("what about the width of finding {n}?",)),
    "place": (("where is finding {n}?", "where is f{n}?", "Wo ist f{n}?"), ("in which area is f{n}?",)),
    "type": (("what is finding {n}?", "what kind of defect is f{n}?", "type of f{n}?"), ("what sort of defect is f{n}?",)),
    "cause": (("what caused f{n}?", "probable cause of finding {n}?"), ("why did defect {n} happen?",)),
    "severity": (("how severe is f{n}?", "severity of finding {n}?"), ("how bad is finding {n}?",)),
    "within": (("is f{n} within {limit}?", "is finding {n} shorter than {limit}?"), ("does f{n} stay below {limit}?",)),
    "elsewhere": (("what was the temperature?", "who made this part?", "when was it serviced?", "what is the batch?",
                   "what is the operator's name?", "which material is it?", "how deep is the defect?", "what does it cost?",
                   "was the previous part ok?", "Welche Charge ist das?"),
                  ("what is the humidity?", "which supplier delivered it?", "how heavy is the part?")),
}  # fmt: skip


def direct(report: Mapping[str, Any], question: str) -> str | None:
    """The true statements that a question asks for, or NOT_KNOWN, where its words alone say what that is; else None.

    No model is needed then, and none can pick the wrong statement.
    """
    found = asked(report, question)
    if found is None:
        return None
    said = [s for topic in found.topics for s in _said(topic, report, found.findings, found.limit)]
    absent = [f"f{n} is not in the report." for n in found.findings if not 1 <= n <= len(report["findings"])]
    return " ".join(dict.fromkeys([*said, *absent] if said else [NOT_KNOWN]))


def unclear(report: Mapping[str, Any], question: str) -> str:
    """The answer where neither words nor model tell what is asked: NOT_KNOWN if a word tells that much, else the facts."""
    return NOT_KNOWN if elsewhere(question) else f"{NOT_CLEAR}\n{facts(report)}"


def _said(topic: str, report: Mapping[str, Any], named: Sequence[int], limit: str | None) -> list[str]:
    """The statements of a topic: one of the whole report, or one of each finding named, or of all."""
    findings = len(report["findings"])
    if topic not in (*OF_FINDINGS, "list"):
        numbers: Sequence[int] = (1,)
    elif named or findings:
        numbers = named or range(1, findings + 1)
    else:
        return [f"{report['verdict']}, no findings."]
    shown = (
        numbers if topic in COMPARED else numbers[:_SHOWN]
    )  # a limit that the seventh exceeds must not be kept by six
    said = [s for n in shown if (s := _answer(topic, report, n, limit) or _without_scale(topic, report, n))]
    if topic == "list" and not named:
        said.insert(0, f"{report['verdict']}, {findings} finding(s):")
    return [*said, f"And {len(numbers) - len(shown)} more."] if len(shown) < len(numbers) else said


def _without_scale(topic: str, report: Mapping[str, Any], number: int) -> str | None:
    """Why a limit in mm says nothing of a finding."""
    if topic not in COMPARED or not 1 <= number <= len(report["findings"]):
        return None
    name = COMPARED[topic]
    return f"f{number}: {name} {_size(report['findings'][number - 1], name)}, no size in mm is known."


def questions_about(report: Mapping[str, Any], rng: random.Random, *, test: bool = False, n: int = 2) -> list[Question]:
    """Questions with their true answers; among them, as often as chance has it, ones that the report cannot answer."""
    made = []
    for topic in rng.sample(list(_ASKED), n):
        findings = len(report["findings"])
        number = rng.randint(1, max(1, min(_SHOWN, findings)) + int(rng.random() < 0.15))
        limit = f"{rng.choice((0.1, 0.2, 0.5, 1, 2, 3, 5, 10))} mm"
        question = rng.choice(_ASKED[topic][int(test)]).format(n=number, limit=limit)
        answer = _answer(topic, report, number, limit)
        options = statements(report, question)
        made.append(Question(prompt_of(report, question), answer or NOT_KNOWN, answer is not None, options))
    return made


def _goldens(report: Mapping[str, Any]) -> str | None:
    if "n_calibration" not in report:
        return None
    return (
        f"Calibrated with {report['n_calibration']} good part(s), compared with {len(report.get('references') or [1])}."
    )


def _answer(topic: str, report: Mapping[str, Any], number: int, limit: str | None) -> str | None:
    """The true statement, None if the report holds none."""
    whole = {
        "verdict": f"{report['verdict']}.", "why": f"{report['verdict']}: {report['verdict_reason']}.",
        "count": f"{len(report['findings'])} finding(s).", "golden": f"Golden {report['reference']['golden_id']}.",
        "similarity": f"Similarity {report['reference']['similarity']:.3g}.", "score": f"Score {report['image_score']:.3g}.",
        "scale": f"{report['scale']['mm_per_px']:.3g} mm/px." if report["scale"]["mm_per_px"] else "The scale is unknown.",
        "p": "Not calibrated: no p-value." if report["p_value"] is None else f"p {report['p_value']:.3g}.",
        "calibration": _goldens(report),
        "date": f"Inspected {when(datetime.fromisoformat(str(report['created_at'])))}." if "created_at" in report else None,
    }  # fmt: skip
    if topic in whole:
        return whole[topic]
    if topic == "elsewhere" or not 1 <= number <= len(report["findings"]):
        return None
    finding = report["findings"][number - 1]
    if topic in ("length", "width"):
        return f"f{number}: {topic} {_size(finding, topic)}."
    if topic == "size":
        return f"f{number}: length {_size(finding, 'length')}, width {_size(finding, 'width')}."
    if topic == "seen":
        return _recurs(finding)
    if topic in COMPARED:
        name = COMPARED[topic]
        if finding.get(f"{name}_mm") is None or limit is None:
            return None
        fits = float(f"{finding[f'{name}_mm']:.3g}") <= float(limit.split()[0].replace(",", "."))
        return f"f{number}: {name} {_size(finding, name)}, within {limit}: {'yes' if fits else 'no'}."
    if topic == "area":
        return f"f{number}: area {format_number('area_px', finding['area_px'])}."
    if topic == "confidence":
        return f"f{number}: confidence {finding['confidence']:.2g}."
    if topic == "list":
        return (
            f"f{number}: {finding['type'].replace('_', ' ')}, {finding['location']['region']}, "
            f"length {_size(finding, 'length')}."
        )
    said = {
        "place": finding["location"]["region"], "type": finding["type"].replace("_", " "), "severity": finding["severity"],
        "cause": str((finding.get("probable_cause") or {}).get("text") or "").rstrip("."),
    }  # fmt: skip
    return f"f{number}: {said[topic]}." if said[topic] else None
