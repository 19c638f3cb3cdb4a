"""The similar_defects tool: what people called the named findings of this product that a region is like."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.model.errors import UnknownRecordError
from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import evidence_of, scored_region


@tool("similar_defects", response_format="content_and_artifact")
def similar_defects_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Find the named defects of this product that a region is like, and the name it takes. Needs score_difference."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    context.capture_in(evidence)
    scored, _ = scored_region(evidence, region)
    if not scored.numbers.canonical:
        raise UnknownRecordError(f"{scored.id} used other goldens; score with the nearest ones before asking for names")
    result = next(r for r in context.canonical.regions if r.region.id == region)
    record = context.similar_evidence(result, scored.id)
    if record is None:
        raise UnknownRecordError(f"nobody has named a defect of product {context.find_capture().product!r} yet")
    found = record.numbers
    return answer(
        record,
        region=region,
        score=scored.id,
        name=found.name,
    )
