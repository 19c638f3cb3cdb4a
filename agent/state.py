"""The checkpointed state of a run: ids, numbers and words, never pixels."""

from __future__ import annotations

from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages


def add_timings(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    """Times of one name add up over the run."""
    return left | {k: left.get(k, 0.0) + v for k, v in right.items()}


class InspectionState(TypedDict, total=False):
    """request: InspectionRequest as a dict. evidence: EvidenceRecord dicts. trace: ToolCall dicts. draft: Draft dict.

    shown: ids of the evidence whose pictures were posted to the model. unsupported: claims that verification refused.
    via: who drives ("endpoint", "embedded" or "fallback"), with the reason.
    """

    messages: Annotated[list[AnyMessage], add_messages]
    request: dict[str, Any]
    evidence: Annotated[list[dict[str, Any]], add]
    trace: Annotated[list[dict[str, Any]], add]
    timings_ms: Annotated[dict[str, float], add_timings]
    steps: int
    shown: list[str]
    via: str
    fallback_reason: str
    draft: dict[str, Any] | None
    verify_rounds: int
    unsupported: list[str]
    claims: list[dict[str, Any]]
    reasoning: str
    reading: dict[str, Any] | None
    report: dict[str, Any]
    disposition: dict[str, Any]
