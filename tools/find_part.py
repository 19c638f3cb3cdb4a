"""The find_part tool: the captured photo of the part in question."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.memory.rows.captures import normalise_part_id
from refdiff.model.errors import ToolOrderError
from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import CaptureArguments, CaptureEvidence, CaptureNumbers, evidence_of


@tool("find_part", response_format="content_and_artifact")
def find_part_tool(
    part_id: Annotated[str, Field(description="part id, e.g. 4412", max_length=128)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Find the photo of the part. Call first."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    wanted = normalise_part_id(part_id)
    if wanted != context.part_id:
        raise ToolOrderError(f"this inspection is about part {context.part_id!r}, not {wanted!r}")
    capture = context.capture_in(evidence) if evidence else context.find_capture()
    height, width = context.query.shape[:2]
    record = CaptureEvidence(
        arguments=CaptureArguments(part_id=wanted, capture_id=capture.capture_id, product=capture.product),
        numbers=CaptureNumbers(width_px=width, height_px=height, scale_mm_per_px=capture.scale_mm_per_px),
        images={"query": capture.sha256},
        summary=f"photo of part {wanted} ({capture.product}), {width} x {height} px, taken at {capture.created_at}",
    )
    scale = "known" if capture.scale_mm_per_px else "not given with the photo"
    return answer(record, product=capture.product, width_px=width, height_px=height, scale=scale)
