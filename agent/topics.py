"""What a question about a filed report asks for, where its words alone say so (`agent.topic_words`).

A question with a word of what no report tells is left to the language model: "where was the part made?" must not be taken
for one about the place of a defect. So is one that names no more than a finding, or findings in general, unless each of its
other words says nothing: "is f1 oil or grease?".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refdiff.agent import topic_words as words

_CJK = r"\u4e00-\u9fff"
# Chinese has no spaces, so beside its characters words and numbers need none
_START, _END = rf"(?<![^\W{_CJK}])(?<![.,])", rf"(?![^\W{_CJK}])"
LIMIT = re.compile(rf"{_START}(\d+(?:[.,]\d+)?) ?(?:mm|millimet(?:er|re|ern)s?|milímetros?|毫米){_END}", re.IGNORECASE)
FINDING = re.compile(rf"{_START}f?(\d{{1,2}})(?![\w.,]*\d| ?mm)", re.IGNORECASE)
OF_FINDINGS = (
    "length", "width", "size", "place", "type", "cause", "severity", "within", "thinner", "confidence", "area", "seen",
)  # fmt: skip
_LIMITED = {"within", "thinner"}
_SENTENCES = re.compile(r"(?<=[?!.;？！。；])\s+|(?<=[？！。；])")
_SHORTENED = re.compile(r"[’'](?:s|d|m|re|ve|ll|t)\b")  # what's, didn't
# Words that only go along with others are no topic of their own: the verdict of "why did it fail?".
_GOES_ALONG = (
    ("cause", "why"), ("why", "verdict"), ("within", "length"), ("within", "size"),
    ("within", "verdict"), ("thinner", "width"), ("thinner", "within"), ("count", "list"), ("count", "verdict"),
    ("date", "verdict"), ("date", "seen"), ("confidence", "score"), ("confidence", "verdict"), ("scale", "count"),
    ("scale", "size"), ("seen", "count"), ("seen", "list"), ("severity", "verdict"), ("list", "verdict"),
    ("calibration", "verdict"), ("calibration", "golden"), ("calibration", "count"), ("golden", "verdict"),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """topics: in the order of `topic_words.TOPICS`. findings: numbers that the question names, empty for all of them.
    limit: a length such as "0.2 mm"."""

    topics: tuple[str, ...]
    findings: tuple[int, ...]
    limit: str | None


def asked(report: Mapping[str, Any], question: str) -> Asked | None:
    """Topics and findings of a question about `report` (DefectReport as JSON), None if a word of it means anything else."""
    text = " ".join(_SHORTENED.sub("", _questions(question.lower())).split())
    limit = LIMIT.search(text)
    text = _without(LIMIT, text)
    topics = []
    named: list[int] | None = None
    specific = False
    for topic, pattern in _TOPICS.items():
        if topic == "verdict":  # by then "right" can only mean a side, and "bigger" a finding
            named, specific, text = _named(report, text)
        if pattern.search(text):
            topics.append(topic)
            text = _without(pattern, text)
    if named is None or _ELSEWHERE.search(text):
        return None
    if not topics and named:
        topics = ["list"]
    topics = _narrowed(topics, specific, limit is not None)
    if topics == ["list"] and re.search(r"\w", _without(_NOTHING, text)):
        return None
    if not topics or (named and not set(topics) <= {*OF_FINDINGS, "list"}):
        return None
    return Asked(tuple(topics), tuple(named), f"{limit.group(1)} mm" if limit else None)


def _questions(text: str) -> str:
    """The sentences that ask, all of them if none has a question mark: people add what they need the answer for."""
    sentences = [s for s in _SENTENCES.split(text) if s]
    asking = [s for s in sentences if s.rstrip().endswith(("?", "？"))]
    return " ".join(asking or sentences)


def _narrowed(topics: list[str], of_finding: bool, limited: bool) -> list[str]:
    found = dict.fromkeys(topics)
    for stronger, weaker in _GOES_ALONG:
        if stronger in found and (stronger not in _LIMITED or limited):
            found.pop(weaker, None)
    if len(found) > 1:
        found.pop("list", None)
    if "why" in found and of_finding:  # why did defect 2 happen?
        found["cause"] = found.pop("why")
    if "date" in found and len(found) > 1:  # when was the golden taken?
        return []
    if not limited:  # "under examination"
        found = dict.fromkeys(t for t in found if t not in _LIMITED)
    return list(found) if bool(_LIMITED & set(found)) == limited else []


def _named(report: Mapping[str, Any], text: str) -> tuple[list[int], bool, str]:
    """Numbers of the findings that a question names, whether it speaks of one at all, and what is left of it.

    They are named by number, by rank, by what they are called, by the place where they are: f2, the second one, the largest,
    the scratch, the spot in the upper left.
    """
    findings = report["findings"]
    numbers = []
    for n, pattern in enumerate(_ORDINALS, start=1):
        if pattern.search(text):
            numbers.append(n)
            text = _without(pattern, text)
    if _LAST.search(text) and findings:
        numbers.append(len(findings))
        text = _without(_LAST, text)
    numbers += [int(n) for n in FINDING.findall(text)]
    text = _without(FINDING, text)
    for pattern, best in ((_LARGEST, max), (_SMALLEST, min)):
        if findings and pattern.search(text):
            sizes = [f["length_px"] or 0 for f in findings]
            numbers.append(sizes.index(best(sizes)) + 1)
            text = _without(pattern, text)
    picked, specific = set(range(1, len(findings) + 1)), bool(numbers)
    for kind, pattern in _kinds(findings):
        if pattern.search(text):
            specific = True
            picked &= {n for n, f in enumerate(findings, start=1) if f["type"] == kind} or picked
            text = _without(pattern, text)
    sides = {side for side, pattern in _SIDES.items() if pattern.search(text)}
    if sides and findings:
        places = {n: _sides(findings[n - 1]["location"]["region"]) for n in picked}
        there = {n for n, place in places.items() if place == sides} or {n for n, p in places.items() if sides <= p}
        if there:  # else the words stay, and the question is left to the model
            picked = there
            for pattern in _SIDES.values():
                text = _without(pattern, text)
    if not numbers and len(picked) < len(findings):
        numbers = sorted(picked)
    return list(dict.fromkeys(numbers)), specific, text


def _kinds(findings: list[Mapping[str, Any]]) -> list[tuple[str, re.Pattern[str]]]:
    """What each type of the findings, and any other, is called."""
    there = {f["type"]: _word(re.escape(f["type"].replace("_", " "))) for f in findings}
    return [*there.items(), *_CALLED.items()]


def _sides(region: str) -> set[str]:
    return {"middle" if word == "centre" else word for word in region.split()}


def _word(lines: str) -> re.Pattern[str]:
    every = [line.strip() for line in lines.splitlines() if line.strip()]
    chinese = [line for line in every if re.search(f"[{_CJK}]", line)]
    others = "|".join(line for line in every if line not in chinese)
    return re.compile("|".join([*([rf"(?<![^\W{_CJK}])(?:{others}){_END}"] if others else []), *chinese]))


def _without(pattern: re.Pattern[str], text: str) -> str:
    return " ".join(pattern.sub(" ", text).split())


_TOPICS = {topic: _word(lines) for topic, lines in words.TOPICS.items()}
_NOTHING, _ELSEWHERE = _word(words.NOTHING), _word(words.ELSEWHERE)
_ORDINALS = [
    _word(f"{lines}\n(?<=finding ){number}|(?<=defect ){number}|(?<=number ){number}|(?<=anomaly ){number}")
    for lines, number in zip(words.ORDINALS, words.NUMBERS, strict=True)
]
_LAST, _LARGEST, _SMALLEST = _word(words.LAST), _word(words.LARGEST), _word(words.SMALLEST)
_CALLED = {kind: _word(lines) for kind, lines in words.CALLED.items()}
_SIDES = {side: _word(lines) for side, lines in words.SIDES.items()}
