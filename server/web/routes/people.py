"""People: the caller's identity, blind checks, rates, and the audit trail."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.people.rates import Rates, rates
from refdiff.memory.records.adoptions import Adoption, WaitingReference
from refdiff.memory.records.blind_checks import BlindCheck, Waiting
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.photos import IMAGE_TYPES, MaxPx, image_response

router = APIRouter(prefix="/v1", tags=["people"])
Product = Annotated[str | None, Query(max_length=64)]
Since = Annotated[str | None, Query(max_length=40, description="ISO 8601; from this time on")]
JSON_LINES = "application/jsonl"


class Me(BaseModel):
    """The caller. needs_key: signed in, by a key or the operator's link; false on a server without keys."""

    name: str
    role: Literal["viewer", "inspector", "admin"]
    needs_key: bool


class BlindQueue(BaseModel):
    """Open blind checks. share: current share of inspections that are drawn."""

    items: list[Waiting]
    share: float
    limit: int


class BlindAnswer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    judged: Literal["good", "bad"]
    note: str = Field(default="", max_length=2000)
    as_reference: bool = Field(default=False, description="Propose the photo of this good part as a golden sample")


class WaitingReferences(BaseModel):
    items: list[WaitingReference]


class ReferenceDecision(BaseModel):
    model_config = ConfigDict(extra="forbid")

    decision: Literal["approve", "refuse"]
    note: str = Field(default="", max_length=2000)


class DecidedReference(BaseModel):
    """learned: outcome of the adoption; null while the golden bank is unavailable."""

    inspection_id: str
    approved: bool
    by: str
    note: str
    created_at: str
    learned: Adoption | None


class AuditHead(BaseModel):
    """head: hash of the chain up to the newest record; a copy kept elsewhere proves its content."""

    records: int
    head: str


class AuditCheck(BaseModel):
    """problem: the first record that was tampered with; null if none was. problems: all of them. notes: what is odd, or was
    not checked."""

    records: int
    head: str
    problem: str | None
    problems: list[str] = []
    notes: list[str] = []


@router.get("/me", responses=responses())
def who_am_i(caller: Viewer) -> Me:
    return Me(name=caller.name, role=caller.role, needs_key=caller.key_id is not None)


@router.get("/blind-checks", responses=responses())
def list_blind_checks(
    service: TheService, _caller: Viewer, product: Product = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> BlindQueue:
    """The random sample waiting to be judged without the verdict, oldest first."""
    items = service.stores.blind_checks.waiting(product, limit)
    return BlindQueue(items=items, share=service.settings.blind_share, limit=limit)


@router.get(
    "/blind-checks/{inspection_id}/photo", response_class=Response, responses=responses(404, answers=IMAGE_TYPES)
)
def blind_photo(service: TheService, _caller: Viewer, inspection_id: str, max_px: MaxPx = 2048) -> Response:
    """The original photo, without findings."""
    return image_response(service.picture(inspection_id, "query", max_px))


@router.post("/blind-checks/{inspection_id}", status_code=201, responses=responses(404, 409))
def answer_blind_check(service: TheService, caller: InspectorRole, inspection_id: str, body: BlindAnswer) -> BlindCheck:
    """A person's blind judgement. The first answer stands; someone who decided about the verdict is not blind (422)."""
    return service.people.judge_blind(
        inspection_id, body.judged, caller.name, body.note, body.as_reference, admin=caller.may("admin")
    )


@router.get("/references", responses=responses())
def list_waiting_references(
    service: TheService, _caller: Viewer, inspection_id: Annotated[str | None, Query(max_length=64)] = None
) -> WaitingReferences:
    """Photos that one person proposed as golden samples, and that wait for an admin or a second person. hung: one that was
    approved, but whose enrolment hung twice; once that is mended, it can be approved again."""
    return WaitingReferences(items=service.stores.adoptions.waiting(inspection_id))


@router.post("/references/{inspection_id}", status_code=201, responses=responses(404, 409))
def decide_reference(
    service: TheService, caller: InspectorRole, inspection_id: str, body: ReferenceDecision
) -> DecidedReference:
    """Approve or refuse a proposed golden sample. The person who proposed it cannot approve it, unless an admin (422)."""
    made = service.people.decide_reference(
        inspection_id, body.decision == "approve", caller.name, body.note, admin=caller.may("admin")
    )
    return DecidedReference(**vars(made), learned=service.stores.adoptions.get(inspection_id))


@router.get("/rates", responses=responses(404))
def get_rates(service: TheService, _caller: Viewer, product: Product = None, since: Since = None) -> Rates:
    """False rejects, escapes and kappa between people and system, from blind checks only, with 95 % intervals."""
    return rates(service.stores, product or None, since or None)


@router.get("/audit", responses=responses())
def audit_head(service: TheService, _caller: Viewer) -> AuditHead:
    records, head = service.stores.audit.head()
    return AuditHead(records=records, head=head)


@router.get("/audit/check", responses=responses())
def check_audit(service: TheService, _caller: InspectorRole) -> AuditCheck:
    """Verify the whole chain; names the records that were changed, removed or added. `refdiff audit verify --store` also
    reads the files of the reports."""
    found = service.stores.audit.verify_store()
    problem = None if found.problem is None else str(found.problem)
    problems = [str(p) for p in found.problems]
    return AuditCheck(records=found.records, head=found.head, problem=problem, problems=problems, notes=found.notes)


@router.get("/audit/export", response_class=StreamingResponse, responses=responses(404, answers=JSON_LINES))
def export_audit(
    service: TheService,
    caller: Viewer,
    inspection_id: Annotated[str | None, Query(max_length=64)] = None,
    since: Since = None,
) -> StreamingResponse:
    """The audit trail as JSON lines, as `refdiff audit export` writes it; optionally of one inspection or since a time."""
    lines: Iterator[bytes] = service.stores.audit.export(inspection_id or None, since or None, by=caller.name)
    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(lines, media_type=JSON_LINES, headers=headers)
