"""The measure tool: the size of a region in native pixels and, where the scale is known, millimetres."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.context import HasTools, Result, answer, measure_evidence
from refdiff.tools.evidence import evidence_of, moved_by, scored_region


@tool("measure", response_format="content_and_artifact")
def measure_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Measure length, width and area of a region. Needs score_difference."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    context.capture_in(evidence)
    scored, _ = scored_region(evidence, region)
    if not scored.numbers.canonical:
        raise UnknownRecordError(f"{scored.id} used other goldens; score with the nearest ones before measuring")
    result = next(r for r in context.canonical.regions if r.region.id == region)
    record = measure_evidence(result, scored.id, context.canonical.scale)
    size = record.numbers
    return answer(
        record,
        region=region,
        score=scored.id,
        length_px=size.length_px,
        width_px=size.width_px,
        length_mm=size.length_mm,
        width_mm=size.width_mm,
        moved=size.moved_px
        and moved_by(f"{size.moved_px:.3g} px", size.moved_direction or "", at_least=bool(size.moved_at_least)),
    )
