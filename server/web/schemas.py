"""Request and response models of the API, where a store's record is not used directly."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.report.artefacts import ARTEFACTS
from refdiff.agent.report.schema import Artefacts, DefectReport
from refdiff.agent.service import Inspection
from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.journals.jobs import Job, JobState
from refdiff.memory.records.adoptions import Adoption
from refdiff.memory.records.defect_names import Naming
from refdiff.memory.records.dispositions import Disposition, Judgement
from refdiff.memory.records.inspections import InspectionSummary
from refdiff.tools.golden_samples.enroll import EnrollResult

Limit = Annotated[int, Query(ge=1, le=1000, description="How many")]
Offset = Annotated[int, Query(ge=0, lt=2**31, description="How many to skip")]
KEY_LASTS = timedelta(days=1)  # a caller's Idempotency-Key


CONDITIONS = "Stated with the file, where the product's kind has any: `emissivity=0.95, reflected_c=21` (thermal)"


COLOUR = "The colour photo of a height map, of the same raster, of a product that states `depth: colour`"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class InspectionRequestBody(_Strict):
    """An inspection request. In multipart/form-data the photo is the field `image`, and the colour photo of a height map the
    field `colour`."""

    text: str = Field(default="", max_length=20_000, description="The request in plain words; may name the part")
    part_id: str | None = Field(default=None, max_length=200)
    product: str | None = Field(default=None, max_length=64)
    capture_id: str | None = Field(default=None, max_length=64, description="A photo sent earlier; default: the newest")
    scale_mm_per_px: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Scale of the attached photo"
    )
    conditions: str = Field(default="", max_length=400, description=CONDITIONS, exclude_if=lambda text: not text)


class InspectionView(BaseModel):
    """The state of an inspection. report: present once state is done; its artefacts are URLs of this server."""

    inspection_id: str
    state: JobState
    part_id: str
    product: str | None
    requested_by: str
    created_at: str
    ahead: int
    error: dict[str, Any] | None
    report: DefectReport | None
    disposition: Disposition | None
    learned: Adoption | None = None
    names: dict[str, Naming] = Field(default={}, description="Finding -> what people call it now")
    links: dict[str, str]


class JobView(BaseModel):
    inspection_id: str
    state: JobState
    part_id: str
    product: str | None
    requested_by: str
    attempts: int
    error: dict[str, Any] | None
    created_at: str


class InspectionList(BaseModel):
    items: list[InspectionSummary]
    total: int
    limit: int
    offset: int


class QueueView(BaseModel):
    running: str | None
    limit: int
    seconds_each: float
    items: list[JobView]


class DispositionBody(_Strict):
    decision: Literal["accept", "override"] = Field(description="accept: the verdict is right; override: it is wrong")
    reason: str = Field(min_length=1, max_length=2000)
    judged: Judgement | None = Field(
        default=None, description="What the part really is; needed for a REVIEW, otherwise it follows from the decision"
    )
    as_reference: bool = Field(
        default=False, description="Propose the photo of this good part as a golden sample; an admin's word is enough"
    )


class DecidedView(BaseModel):
    """A disposition. learned: outcome of the adoption as reference; null without consent, or while it waits.

    waits_for_approval: an admin or a second person has to approve the reference first (`/v1/references`).
    """

    inspection_id: str
    decision: Literal["accept", "override"]
    by: str
    reason: str
    created_at: str
    judged: Judgement | None
    as_reference: bool
    learned: Adoption | None
    waits_for_approval: bool = False


class QuestionBody(_Strict):
    question: str = Field(min_length=1, max_length=2000)


class AnswerView(BaseModel):
    answer: str
    inspection_id: str


class GoldenChange(_Strict):
    status: Literal["active", "flagged", "retired"]
    note: str = Field(default="", max_length=500)


class GoldenList(BaseModel):
    items: list[Golden]
    total: int
    limit: int
    offset: int
    notes: list[str]
    """About golden samples that are kept and not in use: damaged, or enrolled with another encoder."""


class Refused(BaseModel):
    file: str
    reason: str


class EnrolledView(BaseModel):
    product: str
    added: list[Golden]
    already_there: list[Refused]
    refused: list[Refused]
    flagged: list[Golden]
    notes: list[str]
    n_in_bank: int


def request_digest(*sent: object) -> str:
    """What distinguishes a request from another one under the same key."""
    return hashlib.sha256(json.dumps(sent).encode()).hexdigest()


def inspection_view(
    found: Inspection, learned: Adoption | None = None, names: dict[str, Naming] | None = None
) -> InspectionView:
    base = f"/v1/inspections/{found.inspection_id}"
    links = {"self": base, "events": f"{base}/events"}
    report = found.report
    if report is not None:
        kept = report.artefacts.model_dump(exclude_none=True)  # older reports have fewer files
        urls = {name: f"{base}/artefacts/{name}" for name in ARTEFACTS if name in kept}
        report = report.model_copy(update={"artefacts": Artefacts(**urls)})
        links |= urls | {name: f"{base}/pictures/{name}" for name in ("query", "reference")}
    return InspectionView(**{**vars(found), "report": report}, learned=learned, names=names or {}, links=links)


def job_view(job: Job) -> JobView:
    asked = {name: job.request[name] for name in ("part_id", "product", "requested_by")}
    kept = {n: getattr(job, n) for n in ("inspection_id", "state", "attempts", "error", "created_at")}
    return JobView(**asked, **kept)


def enrolled_view(made: EnrollResult) -> EnrolledView:
    def refusals(name: str) -> list[Refused]:
        return [Refused(file=str(r.path), reason=r.reason) for r in getattr(made, name)]

    return EnrolledView(
        product=made.product, added=made.added, flagged=made.flagged, notes=made.notes, n_in_bank=made.n_in_bank,
        already_there=refusals("already_there"), refused=refusals("refused"),
    )  # fmt: skip
