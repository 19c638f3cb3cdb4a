"""The zoom tool: a region of photo and reference at native resolution."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.tools.context import Result, ToolContext, answer, current_capture, region_box
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.vision.crops import zoom


@tool("zoom", response_format="content_and_artifact")
def zoom_tool(
    region: Annotated[str, Field(description="region id, e.g. r1", max_length=8)],
    runtime: ToolRuntime[ToolContext, Any],
) -> Result:
    """Look closely at a region of photo and reference. Needs score_difference."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    scored, box = region_box(evidence, region)
    comparison = bench.inspect(capture).comparison
    golden = bench.workspace.golden_image(comparison.hits[0].golden)
    crops = zoom(bench.query(capture), golden, comparison.alignments[0], box)
    images = {"query": bench.keep_image(crops.query)}
    if crops.reference is not None:
        images["reference"] = bench.keep_image(crops.reference)
    x0, y0, x1, y1 = crops.box
    record = EvidenceRecord(
        kind="zoom",
        arguments={"region": region, "score": scored.id},
        numbers={"x0": x0, "y0": y0, "x1": x1, "y1": y1, "reference_covers": crops.covered},
        images=images,
        summary=f"{region} at native resolution, {x1 - x0} x {y1 - y0} px",
    )
    return answer(record, region=region, score=scored.id)
