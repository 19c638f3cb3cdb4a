"""What a message in a conversation asks for: shared by chat clients, Slack and Teams.

A message can only choose between the inspection of a part and a question about a report.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from refdiff.memory.records.captures import normalise_part_id

_ID = r"([A-Za-z0-9](?:[A-Za-z0-9_./:-]*[A-Za-z0-9])?)"
# the word after "part" or its like if it holds a digit ("part number 44-12", "Teil 4412", "part #A7"); else "#4412" anywhere
_WORD = re.compile(
    r"(?:(?<!\w)(?:part|teil|pieza|pièce|serial|s/n)(?![^\W\d_])|零件) ?"
    rf"(?:(?:number|no\.?|nr\.?|id|nummer|número|numéro|号)(?![^\W\d_]))? ?[:=]? ?#? ?{_ID}",
    re.IGNORECASE,
)
_HASH = re.compile(rf"# ?{_ID}")
_NUMBER = re.compile(r"(?<![\w.,])(\d{2,})(?![\w.,]*\w| ?(?:%|°))")
_MAX_CHARS = 2000
_AGAIN = re.compile(r"\W*(?:please |bitte )?(?:re-?)?(?:inspect|prüfe?|untersuche?)\b", re.IGNORECASE)
_CHINESE = r"(?:重新|再)?(?:检查|检测)"
_VERB = rf"(?:re-?)?(?:inspect|check|examine|look at|test|prüf|untersuch|inspizier|inspecciona|revisa)|{_CHINESE}"
_ASKED = re.compile(rf"(?<![^\W\u4e00-\u9fff])(?:{_VERB})", re.IGNORECASE)
_BEGINS = re.compile(rf"\W*(?:please |bitte |por favor |请)?(?:{_VERB})", re.IGNORECASE)
# "and part #4413?": nothing but the part
_BARE = re.compile(
    r"(?:and|und|y|now|next|also|then|what|how|about|please|bitte|por favor|the|part|number|no|teil|pieza|零件|那|呢|\W)*",
    re.IGNORECASE,
)
INSPECTION_ID = re.compile(r"\binsp-\d{8}-\d{6}-[0-9a-f]{8}\b")


class Subject(Protocol):
    """What a conversation is about: a report, or an inspection that has none yet."""

    @property
    def inspection_id(self) -> str: ...

    @property
    def part_id(self) -> str: ...


@dataclass(frozen=True)
class Intent:
    """part_id: inspect that part. about: a question about that inspection. Neither: small talk."""

    part_id: str | None = None
    about: str | None = None


def part_id_in(text: str) -> str | None:
    """The part id that a request names, without "#"; None if it names none, or several and none of them as the part."""
    return _named(text, (_WORD, _HASH, _NUMBER))


def part_named_in(text: str) -> str | None:
    """As `part_id_in`, but a bare number is not taken for a part: for texts that may mention sizes and scores."""
    return _named(text, (_WORD, _HASH))


def _named(text: str, patterns: tuple[re.Pattern[str], ...]) -> str | None:
    # full-width digits and "＃" are what an input method for Chinese writes; single blanks keep the patterns linear
    text = " ".join(unicodedata.normalize("NFKC", text[:_MAX_CHARS]).split())
    for pattern in patterns:
        named = {i for i in pattern.findall(text) if any(c.isdigit() for c in i)}
        if named:
            return named.pop() if len(named) == 1 else None
    hashed = set(_HASH.findall(text))
    return hashed.pop() if len(hashed) == 1 else None


def understand(text: str, *, photo: bool = False, about: Subject | None = None) -> Intent:
    """What a message asks for. photo: it brings one. about: what the conversation is about so far."""
    if about is None:
        return Intent(part_id=part_id_in(text))
    named = part_named_in(text)
    if named is not None and normalise_part_id(named) != about.part_id:
        # people also mention other parts ("4411 had the same scratch, right?"); that does not ask for an inspection
        if photo or _ASKED.search(text) or _BARE.fullmatch(text.replace(named, " ")):
            return Intent(part_id=named)
    elif photo or _AGAIN.match(text) or (named is not None and _BEGINS.match(text)):
        return Intent(part_id=about.part_id)
    return Intent(about=about.inspection_id)


def product_in(text: str, products: Iterable[str]) -> str | None:
    """The one known product that a text names as a whole word; the longer of two names where one holds the other."""
    folded = unicodedata.normalize("NFKC", text[:20_000]).casefold()
    named = [p for p in products if re.search(rf"(?<!\w){re.escape(p.casefold())}(?!\w)", folded)]
    longest = [p for p in named if not any(p != q and p.casefold() in q.casefold() for q in named)]
    return longest[0] if len(longest) == 1 else None
