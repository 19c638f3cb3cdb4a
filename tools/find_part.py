"""Find the captured photo of the part in question."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.memory.records.captures import Capture, normalise_part_id
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, ToolOrderError
from refdiff.tools.context import Result, ToolContext, answer
from refdiff.tools.evidence import EvidenceRecord


def find_part(stores: Stores, part_id: str, product: str | None = None, capture_id: str | None = None) -> Capture:
    """The photo of a part: that capture, else the newest.

    Raises UnknownPartError (naming near part ids), UnknownRecordError, InputError (several products; not of that part).
    """
    wanted = normalise_part_id(part_id)
    if capture_id is None:
        return stores.captures.latest(wanted, product)
    capture = stores.captures.get(capture_id)
    if capture.part_id != wanted or product not in (None, capture.product):
        raise InputError(
            f"capture {capture_id} is of part {capture.part_id}, product {capture.product}; name that part"
        )
    return capture


@tool("find_part", response_format="content_and_artifact")
def find_part_tool(
    part_id: Annotated[str, Field(description="part id, e.g. 4412", max_length=128)],
    runtime: ToolRuntime[ToolContext, Any],
) -> Result:
    """Find the photo of the part. Call first."""
    bench = runtime.context
    wanted = normalise_part_id(part_id)
    if wanted != bench.part_id:
        raise ToolOrderError(f"this inspection is about part {bench.part_id!r}, not {wanted!r}")
    capture = find_part(bench.workspace.stores, wanted, bench.product, bench.capture_id)
    height, width = bench.query(capture).shape[:2]
    record = EvidenceRecord(
        kind="capture",
        arguments={"part_id": wanted, "capture_id": capture.capture_id, "product": capture.product},
        numbers={"width_px": width, "height_px": height, "scale_mm_per_px": capture.scale_mm_per_px},
        images={"query": capture.sha256},
        summary=f"photo of part {wanted} ({capture.product}), {width} x {height} px, taken at {capture.created_at}",
    )
    return answer(
        record,
        product=capture.product,
        width_px=width,
        height_px=height,
        scale="known" if capture.scale_mm_per_px else "not given with the photo",
    )
