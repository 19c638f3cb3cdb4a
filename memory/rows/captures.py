"""The photo of a part as it is kept, and how part ids are written."""

from __future__ import annotations

from dataclasses import dataclass

from refdiff.model.errors import InputError

MAX_PART_ID = 128


def normalise_part_id(text: str) -> str:
    """The part id in `text`: "#4412", " 4412 " and "4412" are one part.

    Raises InputError unless 1 to 128 printable characters remain.
    """
    part_id = text.strip().lstrip("#").strip() if isinstance(text, str) else ""
    if not part_id or len(part_id) > MAX_PART_ID or not part_id.isprintable():
        shown = repr(text[:40]) if isinstance(text, str) else repr(text)
        raise InputError(f"part id {shown}: a part id is 1 to {MAX_PART_ID} printable characters")
    return part_id


@dataclass(frozen=True)
class Capture:
    """The photo of one part."""

    capture_id: str
    part_id: str
    product: str
    sha256: str  # id of the photo in the image store
    scale_mm_per_px: float | None  # None if unknown
    filename: str  # as it arrived; only ever shown
    created_at: str  # when it was taken, as far as that is known, else when it arrived; ISO 8601, UTC
