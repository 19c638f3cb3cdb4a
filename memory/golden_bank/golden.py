"""The golden sample: what the bank keeps about one, besides its vectors."""

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


def make_golden_id(product: str, sha256: str) -> str:
    """The id of that photo as a golden of that product: "g-" and 12 hex digits, the same on every machine."""
    return f"g-{uuid.uuid5(_NAMESPACE, f'{product}/{sha256}').hex[:12]}"


def point_id(golden_id: str) -> int:
    """The id of a golden in Qdrant: the number its 12 hex digits spell. Raises UnknownRecordError."""
    digits = golden_id[2:]
    if not golden_id.startswith("g-") or len(digits) != 12 or not set(digits) <= set("0123456789abcdef"):
        raise UnknownRecordError(f"{golden_id!r} is not a golden id (like g-0123456789ab); see `refdiff goldens list`")
    return int(digits, 16)


@dataclass(frozen=True)
class Golden:
    """A photo of a good part.

    scale_mm_per_px: None if unknown; part_group: photos of one part share it, None stands alone;
    enrolled_at: ISO 8601, UTC; status: "flagged" is in use and waits for a person's look, "retired" is not in
    use; note: why; source: "disposition" is a part that a person found good knowing the verdict: compared with, but no fair
    sample of good parts, so that its score calibrates nothing; "blind_check" is from a random sample.
    """

    golden_id: str
    product: str
    sha256: str
    filename: str = ""
    scale_mm_per_px: float | None = None
    part_group: str | None = None
    station: str | None = None
    enrolled_by: str = ""
    enrolled_at: str = field(default_factory=utc_now)
    status: GoldenStatus = "active"
    note: str = ""
    source: GoldenSource = "enrolled"


@dataclass(frozen=True)
class GoldenHit:
    """A retrieved golden.

    similarity: mean over the query's patches of the best cosine; global_similarity: cosine of the global
    vectors; both clipped to 0..1.
    """

    golden: Golden
    similarity: float
    global_similarity: float
