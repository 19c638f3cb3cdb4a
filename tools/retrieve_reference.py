"""The nearest good samples of a product: candidates by global vector, ranked by MaxSim of patches."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import Field

from refdiff.memory.golden_bank.bank import IN_USE
from refdiff.tools.context import Result, ToolContext, answer, current_capture
from refdiff.tools.evidence import EvidenceRecord
from refdiff.tools.inspection.retrieval import retrieve_reference


@tool("retrieve_reference", response_format="content_and_artifact")
def retrieve_reference_tool(
    k: Annotated[int, Field(description="how many golden samples, usually 4", ge=1, le=8)],
    runtime: ToolRuntime[ToolContext, Any],
) -> Result:
    """Find the nearest golden (good) samples of the part's product. Needs find_part."""
    bench, evidence = runtime.context, runtime.state["evidence"]
    capture = current_capture(bench, evidence)
    hits = retrieve_reference(bench.workspace, bench.features(capture), capture.product, k)
    total = bench.workspace.bank.count(capture.product, IN_USE)
    numbers: dict[str, float | int | str | bool | None] = {"goldens_in_bank": total, "found": len(hits)}
    for i, hit in enumerate(hits, start=1):
        numbers[f"golden_{i}"] = hit.golden.golden_id
        numbers[f"similarity_{i}"] = round(hit.similarity, 4)
    best = hits[0]
    record = EvidenceRecord(
        kind="reference",
        arguments={"k": k, "product": capture.product},
        numbers=numbers,
        images={f"golden_{i}": h.golden.sha256 for i, h in enumerate(hits, start=1)},
        summary=f"nearest of {total} golden samples: {best.golden.golden_id}, similarity {best.similarity:.3f}",
    )
    listed = [{"golden_id": h.golden.golden_id, "similarity": round(h.similarity, 3)} for h in hits]
    return answer(record, goldens=listed)
