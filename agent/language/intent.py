"""What a message in a conversation asks for, and about which part and photo: the one place, for every way in.

A message can only choose between the inspection of a part and a question about a report. Where it leaves open which part or
photo is meant, the answer is a question: nothing but the part and the photo that were asked for is ever judged.
"""

from __future__ import annotations

import difflib
import mimetypes
import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from refdiff.agent.language.parts import Named, Stored, count_words, lead, none_stored, parts_in, words_before
from refdiff.memory.rows.captures import normalise_part_id
from refdiff.model.errors import InputError
from refdiff.model.images import image_suffixes

_VERB = (
    r"(?:re-?)?(?:inspect|check|examine|look at|test|prüf|untersuch|inspizier|inspecciona|revisa)"
    r"|(?:重新|再)?(?:检查|检测)"
)
_ASKED = re.compile(rf"(?<![^\W\u4e00-\u9fff])(?:{_VERB})", re.IGNORECASE)
_IMPERATIVE = re.compile(rf"{_ASKED.pattern}(?!\w*(?:ing|ions?|ed|[eo]rs?|ung(?:en)?|ad[oa])(?!\w))", re.IGNORECASE)
_BEGINS = re.compile(rf"\W*(?:please |bitte |por favor |请)?(?:{_VERB})", re.IGNORECASE)
# "inspect it again", and nothing else: "inspect the next one" is another part
_AGAIN = re.compile(
    rf"\W*(?:(?:please|bitte|por favor|now|jetzt)\W+)*(?:{_VERB})\w*"
    r"(?:\W*(?:it|this|the part|es|ihn|sie|das teil|la pieza|la|lo|again|once more|now|please|bitte|erneut|noch ?mals?"
    r"|noch ?einmal|otra vez|de nuevo|一次|一遍|一下|它|吧))*\W*",
    re.IGNORECASE,
)
# "and part #4413?": nothing but the part
_BARE = re.compile(
    r"(?:and|und|y|now|next|also|then|what|how|about|please|bitte|por favor|the|part|number|no|teil|pieza|零件|那|呢|\W)*",
    re.IGNORECASE,
)
_LEAD, _ANSWER = 4, 3  # words before "inspect" in a request ("Hi, could you please"), and before a part in an answer
_PRODUCT = re.compile(
    r"(?P<before>[,;(（，；、]\s*)?(?:(?<!\w)produ(?:cto?|kt|it)\b|产品) ?(?P<given>[:：=])? ?"
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?P<end>\s*(?:$|[,;.)，；。）]))?",
    re.IGNORECASE,
)
_FILE_NAME = re.compile(
    r"data:image/|[^\s\"'`<>()\[\],;|，、；：]+\.[A-Za-z][A-Za-z0-9]{1,4}(?![\w.])(?:\?[^\s<>()\"']*)?"
)
INSPECTION_ID = re.compile(r"\binsp-\d{8}-\d{6}-[0-9a-f]{8}\b")

NAME_THE_PART = 'Which part is it? Name it with the photo: "inspect part #4412".'
ONE_PHOTO = "Several files are attached. Send one photo of one part per message, and name the part."


class Subject(Protocol):
    """What a conversation is about: a report, or an inspection that has none yet."""

    @property
    def inspection_id(self) -> str: ...

    @property
    def part_id(self) -> str: ...

    @property
    def product(self) -> str | None: ...


@dataclass(frozen=True)
class Said:
    """One message of a person."""

    text: str
    files: int = 0  # attached, whatever they are
    addressed: bool = True  # to us, not to other people in the same conversation
    prompt: bool = False  # perhaps written by a program, which quotes what a person said


@dataclass(frozen=True)
class Intent:
    """part_id: inspect that part. about: a question about that inspection. ask: what has to be asked back. None of them:
    small talk."""

    part_id: str | None = None
    about: str | None = None
    ask: str | None = None
    photo: int | None = None  # the message whose photo is inspected, 0 for the newest; None: the part's newest photo
    since: int = 0  # the oldest message that the inspection rests on
    lacks_part: bool = False  # only the part is asked for: it may be known otherwise


def the_part(text: str, stored: Stored, given: str | None = None, *, photo: bool) -> str | None:
    """The part that a request is about; None if it names none. given: the part id that came beside the text. photo: whether
    one came, too.

    Raises InputError for a text that leaves open which part is meant, or that names others than `given`, or a photo that
    did not come.
    """
    named = parts_in(text, stored)
    if not photo and (name := _photo_in(text, stored)):
        raise InputError(
            f"the request names a photo ({name}), but none came with it; send the photo itself (nothing is opened or "
            "fetched by its name), or leave the name out to have the newest photo of the part inspected"
        )
    if given is None:
        if doubt := _doubt(named):
            raise InputError(doubt)
        return named.ids[0] if named.ids else None
    if named.more:
        raise InputError(_doubt(named))
    if named.marked and normalise_part_id(given) not in named.ids:
        raise InputError(f"the request names part {', '.join(named.ids)}, but part {given} was given; name one of them")
    return given


def _photo_in(text: str, stored: Stored) -> str | None:
    """What a text calls a photo: a file, a link or a `data:` URL; not the id of a captured part."""
    for name in _FILE_NAME.findall(text):
        path = name.partition("?")[0]
        kind = mimetypes.guess_type(path)[0] or ""
        is_image = kind.startswith("image/") or path.lower().endswith(tuple(image_suffixes()))
        if name.startswith("data:") or (is_image and not stored([name])):
            return str(name[-80:])
    return None


def understand(
    said: Sequence[Said],
    stored: Stored = none_stored,
    *,
    products: Collection[str] = (),
    about: Subject | None = None,
) -> Intent:
    """What the newest message asks for.

    said: the person's messages since the report that the conversation is about, newest first. stored: looks up captured
    parts. products: those known, one of which an answer may add.
    """
    newest, named = said[0], _named(said[0], stored)
    if newest.files > 1:
        return Intent(ask=ONE_PHOTO)
    if named.ids:
        # people also speak of parts ("4411 had the same scratch, right?"): that asks for no inspection
        answers = any(message.files for message in said[1:]) and not _is_question(newest)
        if not (answers and _is_own(newest, named, _ANSWER)) and not _is_request(newest, named, about):
            if about is None and newest.prompt:
                return Intent(ask=_not_inspected(named.ids[0]))
            return Intent(about=about.inspection_id if about else None)
        doubt = _doubt(named)
        return Intent(ask=doubt, lacks_part=True) if doubt else _inspect(named.ids[0], said, stored)
    if about is None and newest.addressed and (doubt := _doubt(named)):
        return Intent(ask=doubt, lacks_part=named.quoted is None)
    # it names no part: does it complete an earlier message?
    completes = newest.files or len(products_in(newest.text, products)) == 1
    if completes and (earlier := _completed(said, stored, about)) is not None:
        return earlier
    if about is None:
        return Intent(ask=NAME_THE_PART, lacks_part=True) if newest.files else Intent()
    again = f'for part {about.part_id} again, write "inspect part #{about.part_id}"'
    if newest.files:
        return Intent(ask=f"Which part is this? Name it; {again}.", lacks_part=True)
    if _AGAIN.fullmatch(newest.text):
        return Intent(about.part_id)
    if _BEGINS.match(newest.text) and not _is_question(newest):
        return Intent(ask=f"Which part? Name it; {again}.", lacks_part=True)
    return Intent(about=about.inspection_id)


def _named(message: Said, stored: Stored) -> Named:
    return parts_in(message.text, stored, labels=message.prompt)


def _is_request(message: Said, named: Named, about: Subject | None) -> bool:
    """Whether a message that names a part wants it inspected."""
    if not _is_own(message, named):
        return False
    if message.files or (about is None and message.addressed):
        return True
    if about is not None and named.ids == (about.part_id,):
        return _BEGINS.match(message.text) is not None
    return _ASKED.search(message.text) is not None or _is_bare(message.text, named.ids)


def _is_own(message: Said, named: Named, most: int = 1) -> bool:
    """Whether a message that names a part is a person's own, not what a program wants done with one.

    "Write a title for a conversation about part #4412": whoever wants a part inspected says so first, or begins with the
    part. most: words that may stand before it.
    """
    if message.files or not message.prompt:
        return True
    asked = _IMPERATIVE.search(message.text)
    if asked and count_words(lead(message.text[: asked.start()])) <= _LEAD:
        return True
    before = words_before(message.text, named.ids)
    return _BARE.fullmatch(before) is not None or count_words(before) <= most


def _is_question(message: Said) -> bool:
    return message.text.rstrip().endswith(("?", "？"))


def _inspect(part_id: str, said: Sequence[Said], stored: Stored) -> Intent:
    """The inspection of a part that the newest message names, with its photo, or with one sent before that waits for it."""
    if said[0].files:
        return Intent(part_id, photo=0)
    for i, message in enumerate(said[1:], 1):
        if not message.files:
            continue
        if message.files > 1:
            return Intent(ask=ONE_PHOTO)
        of = _named(message, stored).ids
        if of and of != (part_id,):
            before = f"The photo sent before came with part {', '.join(of)}"
            return Intent(ask=f"{before}. Send the photo of part {part_id} with its name.")
        return Intent(part_id, photo=i, since=i)
    return Intent(part_id)


def _completed(said: Sequence[Said], stored: Stored, about: Subject | None) -> Intent | None:
    """The inspection that an earlier message asked for, if the newest one brings what it lacked."""
    photo = 0 if said[0].files else None
    for i, message in enumerate(said[1:], 1):
        named = _named(message, stored)
        if message.files > 1 or len(named.ids) > 1:
            return None
        if message.files:
            if photo is not None:  # two photos and one part: which one is it?
                return None
            photo = i
        if named.ids and _is_request(message, named, about):
            return Intent(named.ids[0], photo=photo, since=i)
    return None


def _is_bare(text: str, ids: Iterable[str]) -> bool:
    for part_id in ids:
        text = unicodedata.normalize("NFKC", text).replace(unicodedata.normalize("NFKC", part_id), " ")
    return bool(ids) and _BARE.fullmatch(text) is not None


def _doubt(named: Named) -> str | None:
    """The question that a text leaves open, if any."""
    if len(named.ids) > 1:
        return (
            f"Your message names several parts ({', '.join(named.ids)}). One message inspects one part: "
            f'write "inspect part #{named.ids[0]}".'
        )
    if named.unsure:
        return f'Do you mean part {named.unsure}? Then write "inspect part #{named.unsure}".'
    if named.more:
        return (
            f"Your message names part {named.ids[0]} {named.more!r}. One message inspects one part: name each by its id, "
            f'as in "inspect part #{named.ids[0]}".'
        )
    return _not_inspected(named.quoted) if named.quoted else None


def _not_inspected(part_id: str) -> str:
    return f'Nothing was inspected. To inspect, write only "inspect part #{part_id}".'


# ---- products ----


def products_in(text: str, products: Iterable[str]) -> list[str]:
    """The known products that a text names as whole words; the longer of two names where one holds the other."""
    folded = unicodedata.normalize("NFKC", text[:20_000]).casefold()
    named = [p for p in products if re.search(rf"(?<!\w){re.escape(p.casefold())}(?!\w)", folded)]
    return [p for p in named if not any(p != q and p.casefold() in q.casefold() for q in named)]


def the_product(texts: Sequence[str], products: Collection[str]) -> str | None:
    """The product that the first of some texts names; None if none does.

    Raises InputError for a text that names several, and for a name that is nearly a product's, or plainly given as one
    ("product: gear", "part 5, product gear").
    """
    for text in texts:
        if len(named := products_in(text, products)) > 1:
            raise InputError(f"the request names several products ({', '.join(named)}); name one of them")
        if named:
            return named[0]
    known = {p.casefold(): p for p in products}
    for found in _PRODUCT.finditer(texts[0][:2000]) if texts else ():
        word = found["name"].rstrip(".").casefold()
        if word in known:
            continue
        near = [known[n] for n in difflib.get_close_matches(word, known, n=3)]
        if near:
            raise InputError(f"no product {found['name']!r}; did you mean {', '.join(near)}? Say which product")
        if found["given"] or (found["before"] and found["end"] is not None):
            have = f"there are {', '.join(sorted(known.values()))}" if known else "there is none yet"
            raise InputError(f"no product {found['name']!r}; {have}. Say which product")
    return None
