"""A request for an inspection, and how a part, perhaps with a new photo of it, becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from refdiff.agent import telemetry
from refdiff.memory.artefacts import new_inspection_id
from refdiff.memory.audit_chain import used_key
from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.rows.captures import Capture, normalise_part_id
from refdiff.memory.settings import login_name
from refdiff.model.errors import InputError
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.captures import find_part, product_of
from refdiff.tools.workspace import Workspace

# the wording in which our own model was trained to read a plain request
PLAIN_REQUEST = "inspect part #{part} against the nearest good sample"

Judge = Literal["always", "on-anomaly", "never"]


@dataclass(frozen=True)
class InspectionRequest:
    """What to inspect, for whom, and how."""

    text: str  # the request in the caller's words
    part_id: str  # without "#"
    product: str | None = None  # only where the part id is used by several products
    requested_by: str = field(default_factory=login_name)
    inspection_id: str = field(default_factory=new_inspection_id)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())
    capture_id: str | None = None  # the photo to inspect; default: the part's newest
    # always: the language model drives and reads the pair; on-anomaly: the script drives, and the model reads what would
    # not pass; never: no model is asked
    judge: Judge = "always"
    by_key: str | None = field(default_factory=used_key)  # API key of the requester, for the audit

    @classmethod
    def of_part(cls, part_id: str) -> Self:
        """The plain request for a part, without a caller's own words."""
        part_id = normalise_part_id(part_id)
        return cls(PLAIN_REQUEST.format(part=part_id), part_id)

    @classmethod
    def of_job(cls, request: Mapping[str, Any]) -> Self:
        """The request that a job was accepted with. request: the job's, which may carry the context of a trace too."""
        return cls(**{name: value for name, value in request.items() if name != telemetry.CARRIED})


def prepare(
    workspace: Workspace,
    part_id: str,
    text: str = "",
    *,
    requested_by: str,
    product: str | None = None,
    photo: Path | Upload | None = None,
    scale_mm_per_px: float | None = None,
    conditions: Mapping[str, float] | None = None,
    capture_id: str | None = None,
    judge: Judge = "always",
    inspection_id: str | None = None,
) -> InspectionRequest:
    """A request that can be run: the photo exists, and its product has golden samples.

    photo: a new photo of the part, recorded here; else capture_id, else the part's newest photo. product: may be left out
    for a part that was photographed before. conditions: stated with the photo, see `record_capture`. text: default, the
    plain request. The rest: see InspectionRequest.
    Raises UnknownPartError, UnknownProductError, UnknownRecordError, ImageError, InputError.
    """
    if photo is None:
        if scale_mm_per_px is not None:
            raise InputError("scale_mm_per_px needs a photo; send the photo too")
        if conditions:
            raise InputError("conditions need a file that they are stated with; send it too")
        capture = find_part(workspace.stores, part_id, product, capture_id)
    elif capture_id is not None:
        raise InputError("a photo and a capture_id were given; give one of them")
    else:
        product = workspace.stores.products.name_of(product or product_of(workspace.stores, part_id))
        check_goldens(workspace, product, part_id)  # first: a refused request leaves nothing behind
        capture = capture_part(workspace, part_id, photo, product, scale_mm_per_px, conditions)
    check_goldens(workspace, capture.product, capture.part_id)
    plain = InspectionRequest.of_part(part_id)
    return replace(
        plain, text=text.strip() or plain.text, product=capture.product, requested_by=requested_by,
        inspection_id=inspection_id or plain.inspection_id, capture_id=capture.capture_id, judge=judge,
    )  # fmt: skip


def capture_part(
    workspace: Workspace,
    part_id: str,
    photo: Path | Upload,
    product: str | None = None,
    scale_mm_per_px: float | None = None,
    conditions: Mapping[str, float] | None = None,
) -> Capture:
    """Record a photo as the part's newest. product: may be left out for a part that was photographed before.

    Raises ImageError, InputError.
    """
    return record_capture(
        workspace.stores, part_id, product or product_of(workspace.stores, part_id), photo,
        scale_mm_per_px=scale_mm_per_px, settings=workspace.model_settings, read=workspace.keep_read, conditions=conditions,
    )  # fmt: skip


def check_goldens(workspace: Workspace, product: str, part_id: str) -> None:
    """Raises UnknownProductError if there is no golden sample to compare the photo with."""
    if not workspace.bank.count(product, IN_USE):
        raise workspace.bank.no_goldens(product, part_id)
