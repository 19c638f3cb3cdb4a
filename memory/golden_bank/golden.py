"""The golden sample: what the bank keeps about one besides its vectors."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Literal, get_args

from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import UnknownRecordError

GoldenStatus = Literal["active", "flagged", "retired"]
GoldenSource = Literal["enrolled", "disposition", "blind_check"]
STATUSES: tuple[GoldenStatus, ...] = get_args(GoldenStatus)
IN_USE: tuple[GoldenStatus, ...] = ("active", "flagged")

_NAMESPACE = uuid.UUID("5f1b6f0e-6a57-5a5e-9a6c-2f9d4c1f0a11")


def group_of_part(part_id: str) -> str:
    """The group of the golden samples that show an inspected part."""
    return f"part {part_id}"[:128]


def make_golden_id(product: str, sha256: str) -> str:
    """The id of that photo as a golden of that product: "g-" and 12 hex digits, the same on every machine."""
    return f"g-{uuid.uuid5(_NAMESPACE, f'{product}/{sha256}').hex[:12]}"


def point_id(golden_id: str) -> int:
    """The id of a golden in Qdrant: its 12 hex digits as a number. Raises UnknownRecordError."""
    digits = golden_id[2:]
    if not golden_id.startswith("g-") or len(digits) != 12 or not set(digits) <= set("0123456789abcdef"):
        raise UnknownRecordError(f"{golden_id!r} is not a golden id (like g-0123456789ab); see `refdiff goldens list`")
    return int(digits, 16)


def golden_id_of(point: int) -> str:
    """The id of the golden that is `point` in Qdrant. Raises ValueError where it is no point of a golden."""
    if not 0 <= point < 1 << 48:
        raise ValueError(f"{point} is no point of a golden sample")
    return f"g-{point:012x}"


@dataclass(frozen=True)
class Golden:
    """A photo of a good part."""

    golden_id: str
    product: str
    sha256: str  # id of the photo in the image store
    filename: str = ""  # as it arrived; only ever shown
    scale_mm_per_px: float | None = None  # None if unknown
    part_group: str | None = None  # shared by photos of one part; None: the only photo of its part
    station: str | None = None  # where it was taken
    enrolled_by: str = ""
    enrolled_at: str = field(default_factory=utc_now)  # ISO 8601, UTC
    status: GoldenStatus = "active"  # "flagged": in use, a person should look; "retired": not in use
    note: str = ""  # why it has that status
    # "disposition": a person who knew the verdict found the part good. Such parts are a biased sample: they serve as
    # references but do not calibrate. "blind_check": from a random sample.
    source: GoldenSource = "enrolled"

    @property
    def group(self) -> str:
        """What photos of one part share: the part group, else the golden's own id."""
        return self.part_group or self.golden_id


@dataclass(frozen=True)
class GoldenHit:
    """A retrieved golden."""

    golden: Golden
    similarity: float  # 0..1, mean over the query's patches of the best cosine
    global_similarity: float  # 0..1, cosine of the global vectors
