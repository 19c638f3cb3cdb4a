"""Batches: many parts on the queue at once."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header
from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.request import Judge
from refdiff.agent.work.batches import BatchPart
from refdiff.memory.journals.batches import Batch
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import responses
from refdiff.server.web.schemas import KEY_LASTS, Limit, request_digest

router = APIRouter(prefix="/v1/batches", tags=["batches"])
_MOST = 5_000  # parts in one request
_FAILURES = 100  # that are named


class BatchPartBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part_id: str = Field(min_length=1, max_length=200)
    product: str | None = Field(default=None, max_length=64)
    capture_id: str | None = Field(default=None, max_length=64, description="A photo sent earlier; default: the newest")


class BatchBody(BaseModel):
    """Parts whose photos were sent before (`POST /v1/captures`)."""

    model_config = ConfigDict(extra="forbid")

    parts: list[BatchPartBody] = Field(min_length=1, max_length=_MOST)
    product: str | None = Field(default=None, max_length=64, description="Of parts that name none")
    judge: Judge = Field(default="on-anomaly", description="Role of the language model, as in `refdiff watch`")
    in_order: bool = Field(default=False, description="Inspect one part after the other, also with several workers")


class LeftOutView(BaseModel):
    name: str
    reason: str


class BatchView(BaseModel):
    """How far a batch is. over: nothing of it waits or runs any more."""

    batch_id: str
    source: str
    by: str
    created_at: str
    complete: bool = Field(description="Whether all of its parts are on the queue")
    over: bool
    accepted: int
    waiting: int
    running: int
    done: int
    failed: int
    cancelled: int
    verdicts: dict[str, int]
    left_out_count: int
    left_out: list[LeftOutView] = Field(description="None in lists of batches")
    failures: dict[str, str] = Field(default={}, description="Inspection -> part and reason, the first hundred")
    stopped_at: str | None
    stopped_by: str | None


def _view(batch: Batch, failures: dict[str, str] | None = None) -> BatchView:
    plain: dict[str, Any] = asdict(batch)
    return BatchView(**plain, over=batch.over, failures=failures or {})


@router.post("", status_code=202, responses=responses(413))
async def add_batch(
    service: TheService,
    caller: InspectorRole,
    body: BatchBody,
    idempotency_key: Annotated[
        str | None,
        Header(
            max_length=200,
            description="A repeated key returns the same batch for a day, and adds parts that it lacks because the server "
            "or its disk failed; with other parts it is refused (422)",
        ),
    ] = None,
) -> BatchView:
    """Put parts on the queue, behind what people ask for. What cannot be inspected is listed in `left_out`."""
    parts = [
        BatchPart(f"part {p.part_id}", p.part_id, p.product or body.product, capture_id=p.capture_id)
        for p in body.parts
    ]
    origin = f"http:{caller.key_id or ''}:{idempotency_key}" if idempotency_key else None
    work = partial(
        service.submit_batch, "API", parts, by=caller.name, judge=body.judge, in_order=body.in_order, origin=origin,
        digest=request_digest(body.model_dump()), origin_lasts=KEY_LASTS,
    )  # fmt: skip
    return _view(await run_sync(work))


@router.get("", responses=responses())
def list_batches(service: TheService, _caller: Viewer, limit: Limit = 50) -> list[BatchView]:
    """The newest batches, first."""
    return [_view(b) for b in service.stores.batches.list(limit)]


@router.get("/{batch_id}", responses=responses(404))
def get_batch(service: TheService, _caller: Viewer, batch_id: str) -> BatchView:
    """How far a batch is, what failed and what was left out."""
    batches = service.stores.batches
    return _view(batches.get(batch_id), batches.failures(batch_id, _FAILURES))


@router.post("/{batch_id}/stop", responses=responses(404))
def stop_batch(service: TheService, caller: InspectorRole, batch_id: str) -> BatchView:
    """Cancel what waits of a batch. What runs at this moment is filed."""
    return _view(service.stores.batches.stop(batch_id, caller.name))
