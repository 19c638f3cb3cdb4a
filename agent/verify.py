"""Verification: every claim of the model is checked against the evidence it cites. Pure functions.

Prose may state nothing by itself: digits, number words, places and defect words must come through slots that code fills
from cited evidence. What is not supported is refused, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from refdiff.tools.defect_types import DEFECT_TYPES, UNKNOWN
from refdiff.tools.evidence import EvidenceRecord

_SLOT = re.compile(r"\{([^{}]*)\}")
_SLOT_NAME = re.compile(r"(?:(e\d+)\.)?([A-Za-z_][A-Za-z0-9_]*)")

# English, and the languages that requests come in: a model may answer in any of them
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter third "
    "single double triple dozen couple several many few multiple numerous pair "
    "eins ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf zwanzig hundert tausend halb mehrere viele einige "
    "uno dos tres cuatro cinco seis siete ocho nueve diez veinte cien mil medio varios varias muchos muchas "
    "millimetre millimetres millimeter millimeters micron microns mm cm inch inches percent pixel pixels px"
)
_PLACE_WORDS = (
    "upper lower left right top bottom centre center central middle corner edge rim side north south east west above below "
    "oben unten links rechts mitte mittig ecke rand seite obere untere linke rechte "
    "arriba abajo izquierda derecha centro esquina borde lado superior inferior"
)
_TYPE_WORDS = (
    "scratch scratches scratched scrape scuff crack cracks cracked fracture dent dents dented stain stains stained "
    "contamination contaminated dirt dust residue hole holes pinhole puncture chip chips chipped nick discoloration "
    "discoloured discolored discolouration deformation deformed bent missing absent added extra wrong swapped misplaced "
    "displaced misprint smear yarn thread dye solder bridge void spur mousebite short copper corrosion rust burr bubble "
    "blister tear broken break burn blob spot speck "
    "kratzer riss beule delle fleck loch fehlt fehlend verschmutzung verfärbung bruch rost grat "
    "rasguño arañazo rayadura grieta abolladura mancha agujero falta faltante contaminación decoloración rotura óxido"
)
# Scripts without blanks between words are searched as substrings
_CJK = ("划痕", "裂纹", "裂缝", "凹痕", "污渍", "孔", "缺失", "缺口", "变色", "变形", "左", "右", "上方", "下方",
        "中央", "中心", "角", "边缘", "毫米", "像素")  # fmt: skip
_FORBIDDEN = {
    **dict.fromkeys(_NUMBER_WORDS.split(), "a number, count or unit"),
    **dict.fromkeys(_PLACE_WORDS.split(), "a place"),
    **dict.fromkeys(_TYPE_WORDS.split(), "a defect word"),
}
# "one" as a pronoun and "right"/"short" in their other senses are not worth the risk: they are refused too
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*", re.UNICODE)


@dataclass(frozen=True)
class CheckedClaim:
    """A supported claim; texts are rendered (slots filled) or "" where the prose was refused."""

    region: str
    box: tuple[int, int, int, int]
    type: str
    severity: str
    evidence: list[str]
    description: str
    reasoning: str
    probable_cause: str


@dataclass(frozen=True)
class Verified:
    claims: list[CheckedClaim] = field(default_factory=list)
    reasoning: str = ""
    unsupported: list[str] = field(default_factory=list)


def prose_problem(text: str) -> str | None:
    """Why this prose (slots removed) claims something by itself, or None if it does not."""
    bare = _SLOT.sub(" ", text)
    for character in bare:
        if character.isnumeric():
            return f"states a number ({character!r}) outside a slot"
    lowered = bare.casefold()
    for word in _CJK:
        if word in lowered:
            return f"states {word!r} outside a slot"
    for match in _WORD.finditer(lowered):
        for word in {match.group(), *match.group().split("-")}:
            if word in _FORBIDDEN:
                return f"states {_FORBIDDEN[word]} ({word!r}) outside a slot"
    if "{" in bare or "}" in bare:
        return "has an unfinished slot"
    return None


def format_number(name: str, value: float | int | str | bool) -> str:
    """A value as a report writes it, with the unit that its name ends in."""
    if isinstance(value, (bool, str)):
        return str(value).lower() if isinstance(value, bool) else value
    digits = f"{value:.3g}" if isinstance(value, float) else str(value)
    for suffix, unit in (("_mm2", "mm²"), ("_mm", "mm"), ("_px", "px"), ("_deg", "°")):
        if name.endswith(suffix):
            return f"{digits} {unit}" if unit != "°" else f"{digits}°"
    return digits


def render(
    text: str, evidence: dict[str, EvidenceRecord], cited: Sequence[str], local: dict[str, str]
) -> tuple[str, str | None]:
    """Fill the slots of a prose; returns (rendered text, None) or ("", why it is not supported).

    cited: evidence ids that may be used. local: slots without an id ({type}, {place}).
    """
    problem = prose_problem(text)
    if problem:
        return "", problem
    failures: list[str] = []

    def fill(match: re.Match[str]) -> str:
        name = _SLOT_NAME.fullmatch(match.group(1).strip())
        if name is None:
            failures.append(f"slot {match.group(0)} is not a name")
            return ""
        record_id, key = name.groups()
        if record_id is None:
            if key not in local:
                failures.append(f"slot {match.group(0)} names no evidence")
            return local.get(key, "")
        if record_id not in cited or record_id not in evidence:
            failures.append(f"slot {match.group(0)} uses evidence that is not cited")
            return ""
        value = evidence[record_id].numbers.get(key)
        if value is None:
            failures.append(f"{record_id} measured no {key}")
            return ""
        return format_number(key, value)

    rendered = _SLOT.sub(fill, text)
    return (rendered.strip(), None) if not failures else ("", failures[0])


def _region_box(
    region: str, cited: Sequence[str], evidence: dict[str, EvidenceRecord]
) -> tuple[tuple[int, int, int, int], str] | None:
    """Box and place of a region in the cited score evidence, or in the one that cited zooms and measures refer to."""
    scores = [i for i in cited if i in evidence and evidence[i].kind == "score"]
    scores += [
        str(evidence[i].arguments.get("score"))
        for i in cited
        if i in evidence and evidence[i].kind in ("zoom", "measure") and evidence[i].arguments.get("region") == region
    ]
    for score in scores:
        numbers = evidence[score].numbers if score in evidence else {}
        corners = [numbers.get(f"{region}_{c}") for c in ("x0", "y0", "x1", "y1")]
        if all(isinstance(c, int) for c in corners):
            x0, y0, x1, y1 = (int(c) for c in corners if c is not None)
            return (x0, y0, x1, y1), str(numbers.get(f"{region}_place"))
    return None


def verify(draft: dict[str, Any], records: Sequence[dict[str, Any]], *, images_seen: bool) -> Verified:
    """Check a draft (Draft dict) against the evidence of the run.

    images_seen: the model was shown the cited zooms; without that, no type of defect can be its own observation.
    """
    evidence = {r["id"]: EvidenceRecord.model_validate(r) for r in records}
    claims: list[CheckedClaim] = []
    unsupported: list[str] = []
    for number, claim in enumerate(draft["findings"], start=1):
        label = f"finding {number} ({claim['type']} at {claim['region']})"
        unknown = [i for i in claim["evidence"] if i not in evidence]
        if unknown:
            unsupported.append(f"{label}: evidence {', '.join(unknown)} does not exist")
            continue
        found = _region_box(claim["region"], claim["evidence"], evidence)
        if found is None:
            unsupported.append(f"{label}: the cited evidence shows no region {claim['region']}")
            continue
        if any(c.region == claim["region"] and c.box == found[0] for c in claims):
            unsupported.append(f"{label}: the region is claimed twice")
            continue
        box, place = found
        kind = claim["type"]
        looked = [i for i in claim["evidence"] if evidence[i].kind == "zoom"
                  and evidence[i].arguments.get("region") == claim["region"]]  # fmt: skip
        if kind not in DEFECT_TYPES or (kind != UNKNOWN and not (looked and images_seen)):
            unsupported.append(f"{label}: the type was not seen in any cited zoom")
            kind = UNKNOWN
        local = {"type": kind.replace("_", " "), "place": place}
        texts = {}
        for name in ("description", "reasoning", "probable_cause"):
            text, problem = render(claim.get(name) or "", evidence, claim["evidence"], local)
            texts[name] = text
            if problem:
                unsupported.append(f"{label}: {name} {problem}: {claim[name]!r}")
        claims.append(CheckedClaim(claim["region"], box, kind, claim["severity"], list(claim["evidence"]), **texts))
    reasoning, problem = render(draft["reasoning"], evidence, list(evidence), {})
    if problem:
        unsupported.append(f"overall reasoning {problem}: {draft['reasoning']!r}")
    return Verified(claims, reasoning, unsupported)
