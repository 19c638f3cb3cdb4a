"""Names of defects: what people call findings, and which names later findings take."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.people.names import DefectName
from refdiff.memory.records.defect_names import MAX_NAME, Naming
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import responses

router = APIRouter(prefix="/v1", tags=["defect names"])


class _Note(BaseModel):
    model_config = ConfigDict(extra="forbid")

    note: str = Field(default="", max_length=2000)


class NameBody(_Note):
    name: str = Field(min_length=1, max_length=MAX_NAME, description="Letters, digits, blanks or any of .,/()+&'#%_-")


class RenameBody(_Note):
    product: str = Field(min_length=1, max_length=64)
    name: str = Field(min_length=1, max_length=MAX_NAME)
    to: str = Field(min_length=1, max_length=MAX_NAME, description="The new name; one that exists joins the two")


class DefectNamesView(BaseModel):
    """names: with how far each is learned. findings: those that have a name now, in the order in which they were named."""

    names: list[DefectName]
    findings: list[Naming]


class RenamedView(BaseModel):
    """findings: those whose name changed."""

    findings: list[Naming]


@router.get("/defect-names", responses=responses(404))
def list_names(
    service: TheService, _caller: Viewer, product: Annotated[str | None, Query(max_length=64)] = None
) -> DefectNamesView:
    """The names of defects, whether later findings take them, and the findings that have them."""
    return DefectNamesView(names=service.names.overview(product), findings=service.stores.defect_names.named(product))


@router.post("/defect-names/rename", responses=responses(404))
def rename(service: TheService, caller: InspectorRole, body: RenameBody) -> RenamedView:
    """Call all findings of a name something else."""
    return RenamedView(findings=service.names.rename(body.product, body.name, body.to, caller.name, body.note))


@router.put("/inspections/{inspection_id}/findings/{finding}/name", responses=responses(404, 409))
def name_finding(
    service: TheService, caller: InspectorRole, inspection_id: str, finding: str, body: NameBody
) -> Naming:
    """Name a finding (by its id or number), or correct its name; the newest word holds. The report never changes, later
    reports use the name. It decides nothing: verdict and limits go by the network's own types."""
    return service.names.name(inspection_id, finding, body.name, caller.name, body.note)


@router.delete("/inspections/{inspection_id}/findings/{finding}/name", responses=responses(404))
def forget_name(
    service: TheService,
    caller: InspectorRole,
    inspection_id: str,
    finding: str,
    note: Annotated[str, Query(max_length=2000)] = "",
) -> Naming:
    """Take the name of a finding away; 404 where it has none."""
    return service.names.forget(inspection_id, finding, caller.name, note)
