"""Verification: every claim of the model is checked against the evidence it cites. Pure functions.

Prose states nothing by itself: digits, number words, places and defect words must come through slots that code fills
from cited evidence. Unsupported claims are refused, with the reason.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel

from refdiff.agent.report.summary import with_unit
from refdiff.model.defect_types import DEFECT_TYPES, UNKNOWN
from refdiff.model.images import Box
from refdiff.tools.evidence import (
    Evidence,
    MeasureEvidence,
    RegionEvidence,
    ScoreEvidence,
    SimilarEvidence,
    ZoomEvidence,
)

if TYPE_CHECKING:
    from refdiff.tools.submit_report import Draft

_SLOT = re.compile(r"\{([^{}]*)\}")
_SLOT_NAME = re.compile(r"(?:(e\d+)\.)?([A-Za-z_][A-Za-z0-9_]*)")

# English, and the languages that requests come in: a model may answer in any of them
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter third "
    "single double triple dozen dozens couple several many few multiple numerous pair pairs once twice thrice both "
    "hundreds thousands millions halves quarters thirds first fourth fifth sixth seventh eighth ninth tenth ii iii iv vii "
    "eins ein zwei drei vier fünf fuenf sechs sieben acht neun zehn elf zwölf zwoelf zwanzig hundert tausend halb mehrere "
    "viele einige deux trois quatre cinq sept huit neuf dix vingt plusieurs quelques "
    "uno dos tres cuatro cinco seis siete ocho nueve diez veinte cien mil medio varios varias muchos muchas "
    "micron microns mm cm um µm nm mil mils thou inch inches centimetre centimeter centimetres centimeters percent pixel "
    "pixels px"
)
_PLACE_WORDS = (
    "upper lower left right top bottom centre center central middle corner edge rim side north south east west above below "
    "northeast northwest southeast southwest northern southern eastern western "
    "oben unten links rechts mitte mittig ecke rand seite obere untere linke rechte "
    "haut bas gauche droite milieu coin bord "
    "arriba abajo izquierda derecha centro esquina borde lado superior inferior"
)
_TYPE_WORDS = (
    "scratch scratches scratched scrape scuff crack cracks cracked fracture dent dents dented stain stains stained "
    "contamination contaminated dirt dust residue hole holes pinhole puncture chip chips chipped nick discoloration "
    "discoloured discolored discolouration deformation deformed bent missing absent added extra wrong swapped misplaced "
    "displaced misprint smear yarn thread dye solder bridge void spur mousebite open short copper corrosion rust burr "
    "bubble "
    "blister tear torn broken broke break burn burnt blob spot speck gouge abrasion groove fissure cavity delamination "
    "foreign particle debris warped warping "
    "kratzer riss risse beule beulen delle dellen fleck flecken loch löcher fehlt fehlend fehlende verschmutzung "
    "verfärbung bruch rost grat lötbrücke rayure rayures fissure fissures tache trou manque manquant "
    "rasguño arañazo rayadura grieta abolladura mancha agujero falta faltante contaminación decoloración rotura óxido"
)
_SEVERITY_WORDS = "minor major critical severe severely serious unrated"
_VERDICT_WORDS = (
    "pass passes passed passing fail fails failed failing failure reject rejects rejected accept accepts accepted "
    "acceptable unacceptable approve approved scrap"
)
# Parts of words that nothing harmless contains ("microscratch", "upperleft", "Verschmutzungen")
_ROOTS = re.compile(
    "scratch|crack|missing|discolo|contamin|deform|corro[ds]|mill?imet|microm|scuff|blister|mousebite|pinhole|kratz|"
    "verschmutz|verfarb|aranaz|rasgun|rayadura|abollad|(?:upper|lower|top|bottom|cent(?:re|er))(?:left|right)"
)
# Chinese has no blanks between words: searched as substrings
_HAN = re.compile(
    "[划刮裂凹凸污孔洞缺破锈锡焊短断变脏斑左右上下两几半角边中多缝痕伤]|顶部|底部|毫米|厘米|微米|像素|合格|错|漏"
)


def _plain(text: str) -> str:
    """Lower case, full-width and styled letters made plain, without accents and invisible characters."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(c for c in folded if unicodedata.category(c) not in ("Mn", "Cf"))


def _listed(words: str, what: str) -> dict[str, str]:
    return {_plain(w): what for w in words.split()}


_TYPE_REASON, _PLACE_REASON = "a defect word", "a place"
_FORBIDDEN = (
    _listed(_SEVERITY_WORDS, "a severity")
    | _listed(_VERDICT_WORDS, "a verdict")
    | _listed(_TYPE_WORDS, _TYPE_REASON)
    | _listed(_PLACE_WORDS, _PLACE_REASON)
    | _listed(_NUMBER_WORDS, "a number, count or unit")
)
# "one" as a pronoun and "right"/"short" in their other senses are not worth the risk: they are refused too
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*", re.UNICODE)
# types of several harmless words ("texture change") are refused as a phrase
_TYPE_PHRASE = re.compile(
    "|".join(r"[\s_-]+".join(re.split("[_-]", t)) for t in DEFECT_TYPES if re.search("[_-]", t) and t != UNKNOWN)
)
_ENDINGS = ("s", "es", "ed", "ing", "y", "ly", "most", "ward", "wards")


def _forms(word: str) -> Iterator[str]:
    """A word, its parts and what it may be derived from: "hair-line", "chipping" -> chip, "edges" -> edge."""
    for part in {word, word.replace("-", ""), *word.split("-")}:
        yield part
        for ending in _ENDINGS:
            stem = part.removesuffix(ending)
            if stem != part and len(stem) >= 3:
                yield from (stem, stem + "e", stem[:-1] if stem[-1] == stem[-2] else stem)


def _word_problem(word: str) -> str | None:
    if root := _ROOTS.search(word.replace("-", "")):
        return f"states {_TYPE_REASON} or unit ({root.group()!r}) outside a slot"
    for form in _forms(word):
        what = _FORBIDDEN.get(form)
        # only defects and places are derived; "dosing" does not count as Spanish "dos"
        if what and (what in (_TYPE_REASON, _PLACE_REASON) or form in (word, *word.split("-"))):
            return f"states {what} ({word!r}) outside a slot"
    return None


class CheckedClaim(BaseModel):
    """A supported claim; texts are rendered (slots filled) or "" where the prose was refused."""

    region: str
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
    plain = _plain(bare)
    for character in (*bare, *plain):
        if character.isnumeric():
            return f"states a number ({character!r}) outside a slot"
    for character in plain:
        # words that no list here holds cannot be checked; this also stops look-alike letters
        if character.isalpha() and not unicodedata.name(character, "").startswith(("LATIN", "CJK")):
            return f"is in a script that cannot be checked ({character!r})"
    if match := _HAN.search(plain):
        return f"states {match.group()!r} outside a slot"
    if match := _TYPE_PHRASE.search(plain):
        return f"states {_TYPE_REASON} ({match.group()!r}) outside a slot"
    for match in _WORD.finditer(plain):
        if problem := _word_problem(match.group()):
            return problem
    if "{" in bare or "}" in bare:
        return "has an unfinished slot"
    return None


_UNIT = re.compile(r"_(?:mm2?|px|deg|k|c)$")


def _named(key: str, value: float | int | str | bool, before: str) -> str:
    """A number with its name, so prose cannot pass a width off as a length: "length 3.1 mm". Words stand alone."""
    shown = with_unit(key, value)
    name = _UNIT.sub("", key).replace("_", " ")
    if isinstance(value, str) or before.casefold().rstrip(" :=").removesuffix(" is").endswith(name):
        return shown
    return f"{name} {shown}"


def render(
    text: str,
    evidence: Mapping[str, Evidence],
    cited: Collection[str],
    local: dict[str, str],
    about: tuple[str, str] | None = None,
) -> tuple[str, str | None]:
    """Fill the slots of a prose; returns (rendered text, None) or ("", why it is not supported).

    cited: evidence ids that may be used. local: slots without an id ({type}, {place}). about: the score evidence and the
    region that the prose is about; numbers of other regions are refused then.
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
        record_key = key
        if record_id is None:
            if key not in local:
                failures.append(f"slot {match.group(0)} names no evidence")
            return local.get(key, "")
        if record_id not in cited or record_id not in evidence:
            failures.append(f"slot {match.group(0)} uses evidence that is not cited")
            return ""
        record = evidence[record_id]
        slots = record.slots
        value = slots.get(key)
        if value is None and key.endswith("_mm"):  # no scale: the same size in px, which code writes with its unit
            key = f"{key.removesuffix('_mm')}_px"
            value = slots.get(key)
        if value is None:
            failures.append(f"{record_id} measured no {record_key}")
            return ""
        region = record.region_of(key)
        if about and not _is_about(record, region, about):
            failures.append(f"slot {match.group(0)} is of another region")
            return ""
        return _named(key.removeprefix(f"{region}_") if region else key, value, text[: match.start()])

    rendered = _SLOT.sub(fill, text)
    return (rendered.strip(), None) if not failures else ("", failures[0])


_OF_ONE_REGION = (ZoomEvidence, MeasureEvidence, SimilarEvidence)


def _is_about(record: Evidence, region: str | None, about: tuple[str, str]) -> bool:
    """May a finding about (score evidence, region) use this record (its numbers of `region`, if they are of one)?"""
    score, wanted = about
    if isinstance(record, _OF_ONE_REGION):
        return (record.arguments.score, record.arguments.region) == about
    if isinstance(record, ScoreEvidence):
        return record.id == score and region in (None, wanted)
    return True


def claimed_region(
    region: str, cited: Sequence[str], evidence: Mapping[str, Evidence]
) -> tuple[ScoreEvidence, RegionEvidence] | None:
    """What a claim about a region is about: in the cited score, or the one that cited records of the region refer to."""
    records = [evidence[i] for i in cited]
    scores = [r.id for r in records if isinstance(r, ScoreEvidence)]
    scores += [r.arguments.score for r in records if isinstance(r, _OF_ONE_REGION) and r.arguments.region == region]
    for score in scores:
        scored = evidence.get(score)
        if isinstance(scored, ScoreEvidence) and (found := scored.region(region)):
            return scored, found
    return None


def verify(draft: Draft, records: Sequence[Evidence], *, shown: Collection[str]) -> Verified:
    """Check a draft against the evidence of the run.

    shown: ids of the evidence whose pictures the model was shown; without a zoom among them, no type of defect can be its
    own observation.
    """
    evidence = {r.id: r for r in records}
    claims: list[CheckedClaim] = []
    claimed: list[tuple[str, Box]] = []
    unsupported: list[str] = []
    for number, claim in enumerate(draft.findings, start=1):
        label = f"finding {number} ({claim.type} at {claim.region})"
        unknown = [i for i in claim.evidence if i not in evidence]
        if unknown:
            unsupported.append(f"{label}: evidence {', '.join(unknown)} does not exist")
            continue
        found = claimed_region(claim.region, claim.evidence, evidence)
        if found is None:
            unsupported.append(f"{label}: the cited evidence shows no region {claim.region}")
            continue
        scored, region = found
        about = (scored.id, claim.region)
        if (claim.region, region.box) in claimed:
            unsupported.append(f"{label}: the region is claimed twice")
            continue
        claimed.append((claim.region, region.box))
        elsewhere = [i for i in claim.evidence if not _is_about(evidence[i], None, about)]
        if elsewhere:
            unsupported.append(f"{label}: evidence {', '.join(elsewhere)} is of another region")
        cited = [i for i in dict.fromkeys(claim.evidence) if i not in elsewhere]
        # the measured place is the one that is filed
        measured = (e.numbers.place for i in cited if isinstance(e := evidence[i], MeasureEvidence))
        place = next(measured, region.place)
        looked = any(isinstance(evidence[i], ZoomEvidence) and i in shown for i in cited)
        kind: str = claim.type
        if kind != UNKNOWN and not looked:
            unsupported.append(f"{label}: the type was not seen in any cited zoom")
            kind = UNKNOWN
        local = {"type": kind.replace("_", " "), "place": place}
        texts = {}
        prose = {
            "description": claim.description,
            "reasoning": claim.reasoning,
            "probable_cause": claim.probable_cause or "",
        }
        for name, written in prose.items():
            texts[name], problem = render(written, evidence, cited, local, about)
            if problem:
                unsupported.append(f"{label}: {name} {problem}: {written!r}")
        claims.append(CheckedClaim(region=claim.region, type=kind, severity=claim.severity, evidence=cited, **texts))
    reasoning, problem = render(draft.reasoning, evidence, list(evidence), {})
    if problem:
        unsupported.append(f"overall reasoning {problem}: {draft.reasoning!r}")
    return Verified(claims, reasoning, unsupported)
