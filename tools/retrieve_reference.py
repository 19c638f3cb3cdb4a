"""The retrieve_reference tool: the nearest golden samples of the photo."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.tools.context import HasTools, Result, answer
from refdiff.tools.evidence import ReferenceArguments, ReferenceEvidence, ReferenceNumbers, Slot, evidence_of


@tool("retrieve_reference", response_format="content_and_artifact")
def retrieve_reference_tool(
    k: Annotated[int, Field(description="how many golden samples, usually 4", ge=1, le=8)],
    runtime: ToolRuntime[HasTools, Any],
) -> Result:
    """Find the nearest golden (good) samples of the part's product. Needs find_part."""
    context = runtime.context.tools
    product = context.capture_in(evidence_of(runtime.state["evidence"])).product
    hits = context.nearest(k)
    total = context.workspace.bank.count(product, IN_USE)
    found: dict[str, Slot] = {}
    for i, hit in enumerate(hits, start=1):
        found |= {f"golden_{i}": hit.golden.golden_id, f"similarity_{i}": round(hit.similarity, 4)}
    best = hits[0]
    record = ReferenceEvidence(
        arguments=ReferenceArguments(k=k, product=product),
        numbers=ReferenceNumbers.model_validate({"goldens_in_bank": total, "found": len(hits)} | found),
        images={f"golden_{i}": h.golden.sha256 for i, h in enumerate(hits, start=1)},
        summary=f"nearest of {total} golden samples: {best.golden.golden_id}, similarity {best.similarity:.3f}",
    )
    listed = [{"golden_id": h.golden.golden_id, "similarity": round(h.similarity, 3)} for h in hits]
    return answer(record, goldens=listed)
