"""The tools that the agent may call, in their usual order."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import BaseTool, tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.find_part import find_part_tool
from refdiff.tools.measure import measure_tool
from refdiff.tools.pipeline import align_cached
from refdiff.tools.retrieve_reference import retrieve_reference_tool
from refdiff.tools.score_difference import score_difference_tool
from refdiff.tools.submit_report import submit_report_tool
from refdiff.tools.workbench import Result, Workbench, answer, current_capture, latest
from refdiff.tools.zoom import zoom_tool


@tool("align", response_format="content_and_artifact")
def align_tool(
    golden_id: Annotated[str, Field(description="golden id from retrieve_reference", max_length=14)],
    runtime: ToolRuntime[Workbench, Any],
) -> Result:
    """Register a golden to the photo. Needs retrieve_reference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    latest(evidence, "reference", "no golden yet: call retrieve_reference first")
    golden = bench.services.bank.get(golden_id)
    if golden.product != capture.product:
        raise UnknownRecordError(f"golden {golden_id} is of product {golden.product!r}, not {capture.product!r}")
    result = align_cached(bench.services, bench.query(capture), capture.sha256, golden)
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
    return answer(record, ok=result.ok, residual_px=record.numbers["residual_px"], reason=result.reason)


TOOLS: list[BaseTool] = [
    find_part_tool,
    retrieve_reference_tool,
    align_tool,
    score_difference_tool,
    zoom_tool,
    measure_tool,
    submit_report_tool,
]
