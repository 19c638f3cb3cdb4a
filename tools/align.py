"""The align tool: registers a golden sample to the photo."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import (
    AlignmentArguments,
    AlignmentEvidence,
    AlignmentNumbers,
    ReferenceEvidence,
    evidence_of,
    latest,
)


@tool("align", response_format="content_and_artifact")
def align_tool(
    golden_id: Annotated[str, Field(description="golden id from retrieve_reference", max_length=14)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Register a golden to the photo. Needs retrieve_reference."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    product = context.capture_in(evidence).product
    latest(evidence, ReferenceEvidence, "no golden yet: call retrieve_reference first")
    golden = context.workspace.bank.get(golden_id)
    if golden.product != product:
        raise UnknownRecordError(f"golden {golden_id} is of product {golden.product!r}, not {product!r}")
    result = context.align(golden)
    residual_px = None if result.residual_px is None else round(result.residual_px, 2)
    record = AlignmentEvidence(
        arguments=AlignmentArguments(golden_id=golden_id),
        numbers=AlignmentNumbers(
            ok=result.ok,
            method=result.method,
            residual_px=residual_px,
            overlap=round(result.overlap, 3),
            angle_deg=round(result.angle_deg, 2),
            scale=round(result.scale, 4),
        ),
        images={"golden": golden.sha256},
        summary=result.reason,
    )
    return answer(record, ok=result.ok, residual_px=residual_px, reason=result.trained_reason)
