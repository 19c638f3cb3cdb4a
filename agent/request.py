"""A request for an inspection, and finding the part id in what a person wrote."""

from __future__ import annotations

import getpass
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal


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
