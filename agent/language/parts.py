"""Which parts a message names, in whatever language: ids that were captured are looked up in it.

A message may also quote another one, as the background prompts of chat programs do ("make a title of: inspect part #4412").
What is quoted is nobody's request. It is known by its form (quotation marks, tags, fences, labels, lines of its own), not by
its words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from refdiff.agent.language.requests import COUNTS, SEVERAL
from refdiff.memory.rows.captures import MAX_PART_ID

Stored = Callable[[Collection[str]], Collection[str]]  # those of some texts that are ids of captured parts

_MAX_CHARS = 2000
_MAX_WORDS = 12  # of an id with blanks in it

_CJK = r"\u3400-\u9fff"
_ID = r"[A-Za-z0-9](?:[A-Za-z0-9_./:-]*[A-Za-z0-9])?"
_PART = (
    r"(?:(?<!\w)(?:parts?|teile?|piezas?|pièces?|serial|s/n)(?![^\W\d_])|零件) ?"
    r"(?:(?:numbers?|no\.?|nr\.?|ids?|nummern?|número|numéro|号)(?![^\W\d_]))? ?[:=]? ?"
)
_GLUED = re.compile(r"(?<!\w)(?:part|teil|pieza|pièce)(?=\d)", re.IGNORECASE)
_MARKED = re.compile(rf"{_PART}#? ?({_ID})", re.IGNORECASE)
_AFTER_PART = re.compile(rf"{_PART}#? ?[\"'“„«「]?$", re.IGNORECASE)
_AFTER_HASH = re.compile(r"# ?$")
_WHOLE = "(?<![A-Za-z0-9_]){}(?![A-Za-z0-9_])"
_TOKEN = re.compile(_WHOLE.format(_ID))
# what is no part: a quantity with its unit, the id of an inspection or a golden
_QUANTITY = re.compile(
    r"(?<![\w])\d+(?:[.,]\d+)* ?(?:%|°|(?:[µμnckm]?m|px|pixels?|inch|mil|h|min|[mµ]?s|[mk]?g|dpi|lux|mp)(?![^\W_]))"
    r"|(?<![\d.,])\d+[.,]\d+(?![.,]?\d)|\b(?:insp|g)-[0-9a-f-]+",
    re.IGNORECASE,
)
_JOINT = re.compile(
    r"(?:\s|[,;&+~/、，;–—→-]|\.{2,}|和|与|及|或|到|至|跟"
    r"|(?<!\w)(?:and|or|to|through|thru|till|until|und|oder|bis|y|e|o|u|a|hasta|et|ou|à)(?!\w)|#)*"
    rf"(?:{_PART})?#? ?",
    re.IGNORECASE,
)
_JOINING_WORD = re.compile(r"(?<!\w)(?:and|or|to|und|oder|bis|y|o|a|et|also|then|plus|auch|sowie)\W*$", re.IGNORECASE)
# "and the next one", "und die nächsten drei", "ff.": parts that are named without their ids
_OTHER = (
    r"next|following|previous|other|remaining|rest|nächste[nrs]?|folgende[nrs]?|vorige[nrs]?|übrige[nrs]?|andere[nrs]?"
    r"|siguientes?|anterior(?:es)?|próxim[ao]s?|otr[ao]s?|demás|suivante?s?|下面|后面|其余|其他|另|下"
)
_PIECE = r"(?:ones?|parts?|pieces?|teile?n?|stücke?n?|piezas?|pièces?|[一二三两几]?[个件]|零件)(?![^\W\d_])"
_CLAUSE_ENDS = r"(?=\s*(?:$|[.!?,;:)。！？，；]|(?:please|too|against|with|bitte|auch|gegen|por favor|contra)(?!\w)))"
_MORE = re.compile(
    rf"\s*(?:(?:[,;&+/、，；和与及或到至跟]|(?<!\w)(?:and|or|to|through|until|plus|und|oder|bis|sowie|y|o|a|hasta|et|ou)(?!\w))\s*)+"
    rf"(?:(?:all|the|its|alle|die|den|der|das|la|las|el|los)\s+)*(?:{_OTHER})\s*"
    rf"(?:(?:\w+\s+)?{_PIECE}|(?:s|{COUNTS})?(?!\w){_CLAUSE_ENDS})"
    r"|\s*(?:ff\.?|f\.|(?:and|und) (?:up|above|aufwärts)|onwards?|upwards?|aufwärts|en adelante|以[后上])(?!\w)"
    rf"{_CLAUSE_ENDS}",
    re.IGNORECASE,
)
_WORD_BEFORE_HASH = re.compile(r"[^\W\d_]\s*#? ?$")
_PIECES = re.compile(r"/|\.{2,}|-{2,}|:")

_QUOTED = re.compile(
    r'```.*?(?:```|\Z)|""".*?(?:"""|\Z)'
    r"|<(?P<tag>[A-Za-z][\w-]{0,40})\b[^<>]{0,200}>.*?(?:</(?P=tag)\s*>|\Z)"
    r'|"[^"\\]*(?:\\.[^"\\]*)*"|“[^”“]*[”“]|„[^“”]*[“”]|«[^»]*»|「[^」]*」|『[^』]*』|(?<!\w)\'[^\'\n]{3,}\'(?!\w)'
    r"|`[^`\n]+`|\{[^{}]*\}|<\|[^<>|]*\|>.*?(?:<\|[^<>|]*\|>|\Z)",
    re.DOTALL,
)
# ends a label: a colon (also in bold type), a dash or an arrow
_COLON = re.compile(rf"：|:(?=\s|\*|[{_CJK}\"'“„«]|$)|(?<=\s)(?:-{{1,2}}|[–—]|[-=]?[>→⇒])(?=\s)")
_HEADING = re.compile(r"\s*(?:#+\s+[^\W\d]|\[[^\[\]]+\]\s*$|([^\w\s])\1{2,}\s*$)")  # also a ruler
_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]+")
_SHORT_LINE = 4  # words: a greeting, thanks, a product
_GAP = " \x1f "  # stands for what was taken out: what is beside it is not adjacent


@dataclass(frozen=True)
class Named:
    """The parts that a message names, in their order."""

    ids: tuple[str, ...] = ()
    marked: bool = False  # by "part" or "#", or like one that is
    more: str | None = None  # how the message names further parts without their ids; only with one id
    unsure: str | None = None  # a plain word that is also the id of a captured part; only without ids
    quoted: str | None = None  # a part that only something quoted names; only without ids


@dataclass(frozen=True)
class _Candidate:
    start: int
    end: int
    id: str
    stored: bool
    by: str  # "part": after such a word; "#": after that; "": bare

    @property
    def shape(self) -> str:
        """ "A7-12" and "B9-13" have one shape."""
        return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", self.id))


def none_stored(ids: Collection[str]) -> Collection[str]:
    """No part was captured."""
    return ()


def parts_in(text: str, stored: Stored = none_stored, *, labels: bool = False) -> Named:
    """The parts that a message names. stored: looks up the ids of captured parts. labels: see `own_words`.

    A list or a range of parts ("4412 and 4413", "4412-4415") gives at least two of them, also where one of them is quoted.
    A text of more than 2,000 characters is not read to its end, so it names none for sure.
    """
    whole, text = text, text[:_MAX_CHARS]
    own = own_words(text, stored, labels=labels)
    found = _named(own, stored)
    everything = found if own == text else _named(text, stored)
    if found.ids and not (len(whole) > _MAX_CHARS or (labels and _is_task(own, found.ids))):
        return replace(found, ids=tuple(dict.fromkeys(found.ids + everything.ids)))
    return Named(unsure=found.unsure, quoted=everything.ids[0] if everything.ids else None)


# ---- quotations ----


def own_words(text: str, stored: Stored = none_stored, *, labels: bool = True) -> str:
    """A message without what it quotes. labels: what a label or a heading introduces ("USER: ...") is quoted, too; programs
    write so, people seldom."""
    text = text[:_MAX_CHARS]
    quotes = list(_QUOTED.finditer(text))
    inner = {m[0]: m[0].strip("\"'“”„«»「」『』").strip().lstrip("#").strip() for m in quotes}
    known = set(stored(list(inner.values()))) if inner else set()
    for m in reversed(quotes):  # an id in quotation marks is no quotation
        if not re.fullmatch(_ID, inner[m[0]]) and inner[m[0]] not in known:
            text = text[: m.start()] + _GAP + text[m.end() :]
    if not labels:
        return text
    lines = text.splitlines()
    written = [line for line in lines if line.strip()]
    kept: list[str] = []
    labelled = False  # everything after a label is what it introduces
    for line in lines:
        heading = len(written) > 1 and _HEADING.match(line)
        labelled |= bool(heading)
        if line.lstrip().startswith(">") or (labelled and not re.fullmatch(rf"\W*{_MARKED.pattern}\W*", line, re.I)):
            continue
        if (colon := _label(line, alone=len(written) == 1)) is not None:
            labelled = True
            line = line[:colon] + _GAP
        kept.append(line)
    return text if kept == lines else "\n".join(kept)


def _label(line: str, alone: bool) -> int | None:
    """Where the label of a line ends ("USER: inspect ..."); None if it has none, or its value is a part.

    alone: the message has no other line.
    """
    marked = [m.span() for m in _MARKED.finditer(line)]
    for colon in _COLON.finditer(line):
        before, after = line[: colon.start()], line[colon.end() :]
        if not re.search(r"\w", before) or any(start <= colon.start() < end for start, end in marked):
            continue
        if (
            alone
            and re.match(rf"\s*(?:{_PART}|#)?#? ?{_ID}(?![^\W\d_])", after, re.IGNORECASE)
            and re.match(rf"\s*(?:{_PART}|#|(?=\S*\d))", after, re.IGNORECASE)
        ):
            continue
        return colon.start()
    return None


def _is_task(text: str, ids: Collection[str]) -> bool:
    """Whether a text has a line of its own beside the one that names the part: what a program wants done with that line."""
    return any(count_words(line) > _SHORT_LINE and _first_place(line, ids) is None for line in text.splitlines())


def words_before(text: str, found: Collection[str]) -> str:
    """What stands before the first of some ids, as words of their own, on its line, without words for "part"."""
    text = _spelled(text)
    return lead(text[: _first_place(text, found)])


def _first_place(text: str, ids: Collection[str]) -> int | None:
    """Where the first of some ids stands in a text as `_spelled`, as words of their own; by the edges of captured ids or of
    others, as `_candidates` finds them."""
    text, places = _spelled(text), list[int]()
    for id_ in (unicodedata.normalize("NFKC", i) for i in ids):
        places += _places(text, id_)
        places += (m.start() for m in re.finditer(_WHOLE.format(re.escape(id_)), text))
    return min(places, default=None)


def _spelled(text: str) -> str:
    """Full-width digits and "＃" are what an input method for Chinese writes."""
    return _GLUED.sub(r"\g<0> ", unicodedata.normalize("NFKC", text))


def lead(before: str) -> str:
    """The last line of what stands before something, without words for "part"."""
    return re.sub(_PART, " ", before.rpartition("\n")[2], flags=re.IGNORECASE)


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


# ---- ids ----


def _named(text: str, stored: Stored) -> Named:
    raw = " ".join(text.split())
    text = _spelled(raw)
    known = {unicodedata.normalize("NFKC", i): i for i in stored([*{*_stretches(raw), *_stretches(text)}])}
    found = _candidates(text, known)
    unsure = [c for c in found if c.stored and not c.by and c.id.isalpha()]
    likely = [c for c in found if c not in unsure and (c.stored or any(char.isdigit() for char in c.id))]
    for chosen in (
        [c for c in likely if c.by == "part"],
        [c for c in likely if c.by == "#"],
        [c for c in likely if not c.by and (c.stored or re.fullmatch(r"\d{2,}", c.id))],
        [c for c in found if c.by == "#"],
    ):
        if chosen:
            named = _with_others(text, chosen, likely + unsure)
            ids = tuple(dict.fromkeys(c.id for c in named))
            more = next((m for c in named if (m := _MORE.match(text, c.end))), None) if len(ids) == 1 else None
            return Named(ids, marked=bool(chosen[0].by), more=more[0].strip() if more else None)
    return Named(unsure=unsure[0].id if unsure else None)


def _stretches(text: str) -> Iterator[str]:
    """Everything in a text that may be the id of a part, from one edge of a word to another."""
    edges = [i for i in range(len(text) + 1) if _is_edge(text, i)]
    for at, start in enumerate(edges):
        for end in edges[at + 1 : at + 1 + _MAX_WORDS]:
            if end - start > MAX_PART_ID:
                break
            if not (text[start].isspace() or text[end - 1].isspace()):
                yield text[start:end]


def _is_edge(text: str, at: int) -> bool:
    return at in (0, len(text)) or not (_in_word(text[at - 1]) and _in_word(text[at]))


def _in_word(char: str) -> bool:
    return (char.isalnum() or char == "_") and not "\u3400" <= char <= "\u9fff"


def _candidates(text: str, known: dict[str, str]) -> list[_Candidate]:
    """Captured ids, the longest at each place, and other words with a digit; without what is no part."""
    spans = [(s, s + len(key), id_) for key, id_ in known.items() for s in _places(text, key)]
    spans = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
    found = []
    for token in _TOKEN.finditer(text):
        start, end = token.span()
        if any(s <= start and end <= e for s, e, _ in spans):
            continue
        inside = [s for s in spans if start <= s[0] and s[1] <= end]
        if pieces := _pieces(token[0], inside):
            found += [(start + s, start + e, token[0][s:e]) for s, e in pieces]
        elif any(c.isdigit() for c in token[0]) or _AFTER_HASH.search(text[:start]):
            found.append((start, end, token[0]))
        spans = [s for s in spans if s not in inside]
    made = [_Candidate(s, e, i, i in known.values(), _marked_by(text, s)) for s, e, i in {*spans, *found}]
    rest = text
    for c in made:  # "part 4412,4413" is no decimal number
        rest = rest if not c.by else f"{rest[: c.start]}{'#' * (c.end - c.start)}{rest[c.end :]}"
    no_parts = [m.span() for pattern in (_QUANTITY, SEVERAL) for m in pattern.finditer(rest)]
    kept = [c for c in made if c.by or not any(s < c.end and c.start < e for s, e in no_parts)]
    return sorted(kept, key=lambda c: c.start)


def _places(text: str, id_: str) -> Iterator[int]:
    at = text.find(id_)
    while at >= 0:
        if _is_edge(text, at) and _is_edge(text, at + len(id_)):
            yield at
        at = text.find(id_, at + 1)


def _pieces(token: str, inside: list[tuple[int, int, str]]) -> list[tuple[int, int]]:
    """The parts that a list or range without blanks names ("4412/4413", "4412-4415"); [] for a plain id."""
    for separator in (_PIECES, re.compile("-")):
        cuts = [m.span() for m in separator.finditer(token)]
        places = list(zip([0, *(e for _, e in cuts)], [*(s for s, _ in cuts), len(token)], strict=True))
        texts = [token[s:e] for s, e in places]
        if len(texts) < 2:
            continue
        all_stored = {*texts} <= {i for _, _, i in inside}
        alike = separator is _PIECES and len({re.sub(r"\d", "9", t) for t in texts}) == 1 and len(texts[0]) > 2
        if all_stored or alike:
            return places
    return []


def _marked_by(text: str, start: int) -> str:
    before = text[max(0, start - 40) : start]
    return "part" if _AFTER_PART.search(before) else "#" if _AFTER_HASH.search(before) else ""


def _with_others(text: str, chosen: list[_Candidate], found: list[_Candidate]) -> list[_Candidate]:
    """The chosen ones with all others that the message names like them."""
    named = list(chosen)
    for other in found:
        if other in named:
            continue
        before = text[: other.start]
        labelled = _WORD_BEFORE_HASH.search(before) and not _JOINING_WORD.search(before.rstrip("# "))
        plain = not other.by and other.id.isalpha()  # a word that is also the id of a part
        if (
            (other.by == "#" and not labelled)
            or (other.stored and len(other.id) > 1 and not plain)
            or (not other.by and len(other.id) > 1 and not plain and any(other.shape == c.shape for c in chosen))
            or any(_joined(text, c, other) for c in named)
        ):
            named.append(other)
    return sorted(named, key=lambda c: c.start)


def _joined(text: str, one: _Candidate, other: _Candidate) -> bool:
    """Whether only "and", "to", a comma or the like is between two ids."""
    first, second = sorted((one, other), key=lambda c: c.start)
    between = text[first.end : second.start]
    # "part 4412, 3 scratches", "part 4412 please"
    if (len(other.id) < 2 and other.shape != one.shape) or (other.id.isalpha() and between.isspace()):
        return bool(re.search(r"\w|[&+/–—~-]", between) and _JOINT.fullmatch(between))
    return bool(_JOINT.fullmatch(between))
