"""A request for an inspection, and finding the part id in what a person wrote."""

from __future__ import annotations

import getpass
import re
import unicodedata
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

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


def part_id_in(text: str) -> str | None:
    """The part id that a request names, without "#"; None if it names none, or several and none of them as the part."""
    return _named(text, (_WORD, _HASH, _NUMBER))


def part_named_in(text: str) -> str | None:
    """The same, but a bare number is not taken for a part: for texts that may speak of sizes and scores."""
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


def new_inspection_id() -> str:
    """Sortable by time, e.g. "insp-20260131-141500-5f3a9c1e"."""
    return f"insp-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a bare container
        return "unknown"


Judge = Literal["always", "on-anomaly", "never"]


@dataclass(frozen=True)
class InspectionRequest:
    """part_id without "#". product: only where the part id is used by several products. capture_id: the photo to look at;
    default the part's newest.

    judge: whether the language model drives and reads ("always"), the script drives and the model reads what would not
    pass ("on-anomaly"), or no model is asked ("never").
    """

    text: str
    part_id: str
    product: str | None = None
    requested_by: str = field(default_factory=_user)
    inspection_id: str = field(default_factory=new_inspection_id)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    capture_id: str | None = None
    judge: Judge = "always"
