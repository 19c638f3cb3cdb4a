"""The score_difference tool: how much the photo differs from its registered goldens, and where."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import AlignmentEvidence, evidence_of, latest


@tool("score_difference", response_format="content_and_artifact")
def score_difference_tool(
    golden_ids: Annotated[
        list[str], Field(description="golden ids to compare with; empty = the nearest ones (normal)", max_length=8)
    ],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Compare the photo with its registered goldens: score, p-value, regions r1.. that differ. Needs align."""
    context, evidence = runtime.context.tools, evidence_of(runtime.state["evidence"])
    context.capture_in(evidence)
    latest(evidence, AlignmentEvidence, "not registered yet: call align first")
    comparison, others = context.canonical.comparison, sorted(set(golden_ids))
    if others and others != sorted(h.golden.golden_id for h in comparison.hits):
        comparison = context.compare(others)
    record = context.score_evidence(comparison)
    regions = [
        {"region": f"r{i}", "place": r.place, "type": r.type, "peak": r.peak}
        for i, r in enumerate(record.numbers.regions, start=1)
    ]
    miscounts = [str(c) for c in context.canonical.counts if c.wrong_by and record.numbers.canonical]
    # parts of the score, and of no region
    more = {"miscounts": miscounts} if miscounts else {}
    if context.canonical.pose and record.numbers.canonical:
        more["pose"] = context.canonical.pose
    return answer(record, score=record.numbers.score, p_value=record.numbers.p_value, regions=regions, **more)
