"""The zoom tool: a region of photo and reference at native resolution."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import RegionArguments, ZoomEvidence, ZoomNumbers, evidence_of, scored_region
from refdiff.tools.vision.crops import zoom


@tool("zoom", response_format="content_and_artifact")
def zoom_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Look closely at a region of photo and reference. Needs score_difference."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    context.capture_in(evidence)
    scored, found = scored_region(evidence, region)
    golden, alignment = context.nearest_of(scored)
    crops = zoom(context.query, context.workspace.golden_image(golden), alignment, found.box)
    x0, y0, x1, y1 = crops.box
    record = ZoomEvidence(
        arguments=RegionArguments(region=region, score=scored.id),
        numbers=ZoomNumbers(x0=x0, y0=y0, x1=x1, y1=y1, reference_covers=crops.covered),
        images=context.evidence_images(query=crops.query, reference=crops.reference),
        summary=f"{region} at native resolution, {x1 - x0} x {y1 - y0} px",
    )
    return answer(record, region=region, score=scored.id)
