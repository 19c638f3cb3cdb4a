"""Wishes for references in a request, and the request in the wording that our own model was trained on."""

from __future__ import annotations

import re

from refdiff.agent.request import PLAIN_REQUEST

# the wordings that our own model reads requests in; it was trained on them
SEVERAL_REFERENCES = "inspect part {part} against the {n} nearest good samples"
ANOTHER_REFERENCE = "inspect part {part} and also try another reference"

_COUNTS = {
    word: n
    for n, words in {
        1: ("1", "one", "einem", "einer", "una", "un"),
        2: ("2", "two", "zwei", "dos", "两", "二"),
        3: ("3", "three", "drei", "tres", "三"),
        4: ("4", "four", "vier", "cuatro", "四"),
        5: ("5", "five", "fünf", "cinco", "五"),
        6: ("6", "six", "sechs", "seis", "六"),
        7: ("7", "seven", "sieben", "siete", "七"),
        8: ("8", "eight", "acht", "ocho", "八"),
    }.items()
    for word in words
}  # the most that retrieve_reference takes


# "one" counts only with "golden": "lot 5 sample 3" and "one sample of today's lot" are no wishes
_GOOD = r"(?:known[- ])?(?:good|golden|reference)\s+(?:sample|part|image)|golden|gut(?:en?\s+)?(?:muster|teile?)"
_SAMPLES = (
    rf"(?:(?:{_GOOD}|good\s+reference|sample|reference)s|guten?\s+(?:mustern?|teilen?)|(?:gut|referenz)(?:muster|teile)n?|referenzen"
    r"|(?:muestras|piezas)\s+(?:buenas|de\s+referencia)|referencias)\b|(?:合格|参考|标准)的?(?:样品|样本)"
)
_SAMPLE = (
    rf"(?:(?:{_GOOD}|sample|reference|referenz\w*|(?:muestra|pieza)\s+(?:buena|de\s+referencia)|referencia)s?)\b"
    rf"|{_SAMPLES}"
)
_NEAREST = (
    r"(?:(?:of\s+the|of|der|den|las?|los)\s+)?(?:nearest|closest|best|different|nächsten|ähnlichsten)\s+|个?最近的|个"
)
COUNTS = "|".join(re.escape(word) for word in _COUNTS)
_ONE = "|".join(re.escape(word) for word, n in _COUNTS.items() if n == 1)
SEVERAL = re.compile(
    rf"(?<![A-Za-z0-9_#.,-])(?:({COUNTS})\s*(?:{_NEAREST})?(?:{_SAMPLES})|({_ONE})\s+(?:{_NEAREST})?(?:{_GOOD})\b)",
    re.IGNORECASE,
)
_ANOTHER = re.compile(
    r"(?:\b(?:another|an\s+other|(?:a|one)\s+different|(?:a|the)\s+second(?:[- ](?:nearest|closest))?"
    r"|(?:ander|zweit)e[snm]?|otra|una\s+segunda)\s+|另一个|另外一个|第二个)" + f"(?:{_SAMPLE})",
    re.IGNORECASE,
)
_GOLDEN_ID = re.compile(r"\bg-[0-9a-f]+")


def reference_wish(text: str, part_id: str) -> str | None:
    """A request for several references or for another one, in the wording that our own model was trained on; else None.

    Nothing of `text` is in the answer but a number from 1 to 8. A golden that the text names is ignored: parts are
    judged by the nearest ones.
    """
    if _GOLDEN_ID.search(text):
        return None
    others = re.sub(rf"(?<!\w)#?{re.escape(part_id)}(?!\w)", "#", text)  # "part number 5 golden samples" counts none
    if found := SEVERAL.search(others):
        return SEVERAL_REFERENCES.format(part=part_id, n=_COUNTS[(found[1] or found[2]).lower()])
    if _ANOTHER.search(others):
        return ANOTHER_REFERENCE.format(part=part_id)
    return None


def canonical_request(text: str, part_id: str) -> str:
    """A request in the wording that our own model was trained on: a wish for references, or a plain inspection."""
    return reference_wish(text, part_id) or PLAIN_REQUEST.format(part=part_id)
