"""The align tool: registers a golden sample to the photo."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.context import Result, ToolContext, answer, current_capture, latest
from refdiff.tools.evidence import EvidenceRecord


@tool("align", response_format="content_and_artifact")
def align_tool(
    golden_id: Annotated[str, Field(description="golden id from retrieve_reference", max_length=14)],
    runtime: ToolRuntime[ToolContext, Any],
) -> Result:
    """Register a golden to the photo. Needs retrieve_reference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    latest(evidence, "reference", "no golden yet: call retrieve_reference first")
    golden = bench.workspace.bank.get(golden_id)
    if golden.product != capture.product:
        raise UnknownRecordError(f"golden {golden_id} is of product {golden.product!r}, not {capture.product!r}")
    result = bench.workspace.alignment(bench.query(capture), capture.sha256, golden)
    record = EvidenceRecord(
        kind="alignment",
        arguments={"golden_id": golden_id},
        numbers={
            "ok": result.ok,
            "method": result.method,
            "residual_px": None if result.residual_px is None else round(result.residual_px, 2),
            "overlap": round(result.overlap, 3),
            "angle_deg": round(result.angle_deg, 2),
            "scale": round(result.scale, 4),
        },
        images={"golden": golden.sha256},
        summary=result.reason,
    )
    return answer(record, ok=result.ok, residual_px=record.numbers["residual_px"], reason=result.trained_reason)
