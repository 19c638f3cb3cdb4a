"""A request for an inspection, and finding the part id in what a person wrote."""

from __future__ import annotations

import getpass
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime

_ID = r"([A-Za-z0-9](?:[A-Za-z0-9_./:-]*[A-Za-z0-9])?)"
# "#4412" anywhere; else the word after "part" or its like that holds a digit ("part number 44-12", "Teil 4412")
_HASH = re.compile(rf"#\s*{_ID}")
_WORD = re.compile(
    rf"(?:\bpart|\bteil|\bpieza|\bpièce|\bserial|\bs/n|零件)\s*(?:number|no\.?|nr\.?|id|nummer|número|号)?\s*[:=]?\s*{_ID}",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.,])(\d{2,})(?![\w.,]*\w)")


def part_id_in(text: str) -> str | None:
    """The part id that a request names, without "#"; None if it names none (or several bare numbers)."""
    if match := _HASH.search(text):
        return match.group(1)
    for match in _WORD.finditer(text):
        if any(c.isdigit() for c in match.group(1)):
            return match.group(1)
    numbers = set(_NUMBER.findall(text))
    return numbers.pop() if len(numbers) == 1 else None


def new_inspection_id() -> str:
    """Sortable by time, e.g. "insp-20260131-141500-5f3a9c1e"."""
    return f"insp-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a bare container
        return "unknown"


@dataclass(frozen=True)
class InspectionRequest:
    """part_id without "#". product: only where the part id is used by several products."""

    text: str
    part_id: str
    product: str | None = None
    requested_by: str = field(default_factory=_user)
    inspection_id: str = field(default_factory=new_inspection_id)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
