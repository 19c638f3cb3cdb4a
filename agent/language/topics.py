"""What a question about a filed report asks for, where its words alone say so (`agent.topic_words`).

A question with a word of what no report tells is left to the language model: "where was the part made?" must not be taken
for one about the place of a defect. So is one that names a place where nothing was found or another part, one with more than
one limit, and one that names no more than a finding, or findings in general, unless each of its other words says nothing:
"is f1 oil or grease?". Other words are not heeded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refdiff.agent.language import topic_words as words

_CJK = r"\u4e00-\u9fff"
# Chinese has no spaces, so beside its characters words and numbers need none
_START, _END = rf"(?<![^\W{_CJK}])(?<!\d[.,/-])", rf"(?![^\W{_CJK}])"
LIMIT = re.compile(rf"{_START}(\d+(?:[.,]\d+)?) ?(?:mm|millimet(?:er|re|ern)s?|milímetros?|毫米){_END}", re.IGNORECASE)
FINDING = re.compile(rf"(?:(?<![^\W{_CJK}])f|{_START})(\d{{1,2}}){_END}(?![.,]\d| ?(?:mm|毫米))", re.IGNORECASE)
COMPARED = {"within": "length", "thinner": "width"}  # topic -> what of a finding is compared with a limit in mm
OF_FINDINGS = (
    "length", "width", "size", "place", "type", "cause", "severity", *COMPARED, "confidence", "area", "seen",
)  # fmt: skip
_SIZED = {"length", "width", "size", "area", "place", "type", *COMPARED}
_SENTENCES = re.compile(r"(?<=[?!.;？！。；])\s+|(?<=[？！。；])")
_SHORTENED = re.compile(r"[’'](?:s|d|m|re|ve|ll|t)\b")  # what's, didn't
_RANGE = re.compile(r"\d ?[-–/] ?\d|\d,\d{3}(?!\d)")  # 1-2 mm, 1/2 mm, 1,000 mm: not read
_ID = re.compile(
    rf"(?:(?:part|piece|teil|pieza|inspection)s?(?: no\.?| number)?|零件) ?#?([\w-]*\d[\w-]*){_END}"
    r"|(?<!finding )(?<!defect )(?<!number )(?<!befund )#([\w-]+)"
)
_LONG_NUMBER = re.compile(rf"{_START}f?\d{{3,}}{_END}(?![.,]\d)")
_COUNTED = re.compile(
    r"\d{1,2} (?=(?:defects|findings|anomalies|flaws|issues|problems|faults|spots|marks|goldens|references|samples)\b)"
    r"|(?<= of )\d{1,2}\b"
)
# Words that only go along with others are no topic of their own: the verdict of "why did it fail?".
_GOES_ALONG = (
    ("why", "verdict"), ("thinner", "width"), ("thinner", "within"), ("within", "length"), ("within", "size"),
    ("within", "verdict"), ("count", "verdict"), ("date", "verdict"), ("date", "seen"), ("confidence", "score"),
    ("scale", "count"), ("scale", "size"), ("seen", "count"), ("seen", "list"), ("severity", "verdict"), ("list", "verdict"),
    ("calibration", "verdict"), ("calibration", "golden"), ("calibration", "count"), ("golden", "verdict"),
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """topics: those of `topic_words.TOPICS`. findings: numbers that the question names, empty for all of them.
    limit: a length such as "0.2 mm"."""

    topics: tuple[str, ...]
    findings: tuple[int, ...]
    limit: str | None


@dataclass(frozen=True)
class _Named:
    """numbers: of findings, empty for all. specific: it speaks of a finding at all. kinds: it calls them by a type.
    text: the rest of the question. impossible: no finding is where, or what, it says."""

    numbers: tuple[int, ...]
    specific: bool
    kinds: bool
    text: str
    impossible: bool = False


def asked(report: Mapping[str, Any], question: str) -> Asked | None:
    """Topics and findings of a question about `report` (DefectReport as JSON), None where its words do not tell them."""
    limits = LIMIT.findall(question)  # perhaps in another sentence than the question
    text = " ".join(_IDIOMS.sub(" ", _SHORTENED.sub("", _questions(question.lower()))).split())
    own = str(report["part_id"]).lower()
    if any("".join(found) != own for found in _ID.findall(text)):
        return None  # another part
    text = _without(_ID, text)
    if len(own) > 2:  # shorter ones may be a finding's number
        text = re.sub(rf"(?<!\w){re.escape(own)}(?!\w)", " ", text)
    if _ELSEWHERE.search(text) or _RANGE.search(text) or len(limits) > 1 or _LONG_NUMBER.search(LIMIT.sub(" ", text)):
        return None
    text = _without(LIMIT, text)
    topics, named = [], _Named((), False, False, text)
    for topic, pattern in _TOPICS.items():
        if topic == "verdict":  # after the words of sizes: "how large" names no finding
            named = _named(report, text)
            text = named.text
        if pattern.search(text):
            topics.append(topic)
            text = _without(pattern, text)
    if named.impossible or _LEFT_OVER.search(text) or (named.numbers and _EXCLUDED.search(text)):
        return None
    if not topics and named.specific:
        topics = ["list"]
    topics = _narrowed(topics, named, bool(limits))
    if topics == ["list"] and re.search(r"\w", _without(_NOTHING, text)):
        return None
    if set(topics) & _SIZED and not named.specific and _of_the_whole(report, question.lower()):
        return None
    numbers = named.numbers
    if topics == ["why"] or (named.kinds and not set(topics) <= {*OF_FINDINGS, "list"}):
        numbers = ()
    if not topics or (numbers and not set(topics) <= {*OF_FINDINGS, "list"}):
        return None
    return Asked(tuple(topics), numbers, f"{limits[0]} mm" if limits else None)


def elsewhere(question: str) -> bool:
    """Whether a word of it means what no report tells."""
    return bool(_ELSEWHERE.search(question.lower()))


def _questions(text: str) -> str:
    """The sentences that ask, all of them if none has a question mark: people add what they need the answer for."""
    sentences = [s for s in _SENTENCES.split(text) if s]
    asking = [s for s in sentences if s.rstrip().endswith(("?", "？"))]
    return " ".join(asking or sentences)


def _of_the_whole(report: Mapping[str, Any], question: str) -> bool:
    """Whether it asks for the size or place of the part, or of a picture: "how long is the part?"."""
    product = "|".join(re.escape(w) for w in re.split(r"[\W\d_]+", str(report["product"]).lower()) if len(w) > 2)
    things = "|".join(filter(None, (words.THINGS, product)))
    return bool(re.search(rf"\b(?:{words.BEFORE_THINGS}) (?:{things})\b(?! (?:is|has|have|does|did)\b)", question))


def _narrowed(topics: Sequence[str], named: _Named, limited: bool) -> list[str]:
    found = dict.fromkeys(topics)
    if "golden" in found and set(found) & {"score", "place", "type", "length", "width", "size", "severity"}:
        return []  # the golden's own: where is the scratch on the golden?
    if limited and "within" in found and "area" in found:
        return []  # no limit of an area is known
    if limited and "within" in found and "width" in found:
        found["thinner"] = None
    if {"cause", "verdict"} <= set(found):  # what caused it to fail?
        found["why"] = found.pop("cause")
    if "why" in found and named.specific and not set(found) & {"verdict", "golden", "score"}:
        if set(found) - {"why", "list", "cause"}:
            return []  # why is f1 minor?
        found["cause"] = found.pop("why")  # why did defect 2 happen?
    if "confidence" in found and set(found) & {"verdict", "score"} and not named.specific:
        found.pop("confidence")  # that of the verdict, not of a finding
        found["p"] = None
    for stronger, weaker in _GOES_ALONG:
        if stronger in found and (stronger not in COMPARED or limited):
            found.pop(weaker, None)
    if "count" in found and (named.kinds or named.numbers):  # of a type, in a place: told by listing them
        found = {"list": None}
    if len(found) > 1:
        found.pop("list", None)
    if "date" in found and len(found) > 1:  # when was the golden taken?
        return []
    if not limited:  # "under examination"
        return [t for t in found if t not in COMPARED]
    return list(found) if set(COMPARED) & set(found) else []


def _named(report: Mapping[str, Any], text: str) -> _Named:
    """The findings that a question names: by number, by what they are called, by place, by rank among those: f2, the
    scratch, the spot in the upper left, the second one, the largest."""
    findings = report["findings"]
    everything = list(range(1, len(findings) + 1))
    picked, specific, kinds = everything, False, set()
    for kind, pattern in _kinds(findings):
        if pattern.search(text):
            kinds.add(kind)
            text = _without(pattern, text)
    if typed := kinds - {""}:
        # what people call by another name than the report does is told with its type
        specific, picked = True, [n for n in everything if findings[n - 1]["type"] in typed] or everything
    sides = {side for side, pattern in _SIDES.items() if pattern.search(text)}
    if sides:
        places = {n: _sides(findings[n - 1]["location"]["region"]) for n in picked}
        picked = [n for n, place in places.items() if place == sides] or [n for n, p in places.items() if sides <= p]
        if not picked and findings:
            return _Named((), True, bool(typed), text, impossible=True)
        specific = True
        for pattern in _SIDES.values():
            text = _without(pattern, text)
    ranks, text = _ranked(findings, picked, text)
    numbers = [int(n) for n in FINDING.findall(_COUNTED.sub(" ", text))]
    text = _without(FINDING, text)
    contradiction = len(picked) < len(everything) and not set(numbers) <= set(picked)
    if len(ranks) > 1 or (ranks and numbers) or contradiction:
        return _Named((), True, bool(typed), text, impossible=True)
    chosen = ranks[0] if ranks else numbers or (picked if len(picked) < len(everything) else [])
    return _Named(tuple(dict.fromkeys(chosen)), specific or bool(ranks or numbers), bool(typed), text)


def _ranked(findings: Sequence[Mapping[str, Any]], picked: Sequence[int], text: str) -> tuple[list[list[int]], str]:
    """For each kind of rank that is named, the findings that hold it among those picked; one beyond them is not there."""
    ranks = []
    ordinals = []
    for n, pattern in enumerate(_ORDINALS, start=1):
        if pattern.search(text):
            ordinals.append(picked[n - 1] if n <= len(picked) else len(findings) + n)
            text = _without(pattern, text)
    if ordinals:
        ranks.append(ordinals)
    if _LAST.search(text) and picked:
        ranks.append([picked[-1]])
        text = _without(_LAST, text)
    for pattern, best in ((_LARGEST, max), (_SMALLEST, min)):
        if picked and pattern.search(text):
            ranks.append([best(picked, key=lambda n: findings[n - 1].get("length_px") or 0)])
            text = _without(pattern, text)
    return ranks, text


def _kinds(findings: Sequence[Mapping[str, Any]]) -> list[tuple[str, re.Pattern[str]]]:
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
_NOTHING, _ELSEWHERE, _LEFT_OVER = _word(words.NOTHING), _word(words.ELSEWHERE), _word(words.LEFT_OVER)
_IDIOMS, _EXCLUDED = _word(words.IDIOMS), _word(words.EXCLUDED)
_ORDINALS = [
    _word(f"{lines}\n(?<=finding ){number}|(?<=defect ){number}|(?<=number ){number}|(?<=anomaly ){number}")
    for lines, number in zip(words.ORDINALS, words.NUMBERS, strict=True)
]
_LAST, _LARGEST, _SMALLEST = _word(words.LAST), _word(words.LARGEST), _word(words.SMALLEST)
_CALLED = {kind: _word(lines) for kind, lines in words.CALLED.items()}
_SIDES = {side: _word(lines) for side, lines in words.SIDES.items()}
