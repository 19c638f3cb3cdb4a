"""What a run checkpoints: ids, numbers and words, never pixels.

Values are plain dicts, lists and strings, so a checkpoint names none of our classes and survives changes of the code; the
nodes turn them into the types named here.
"""

from __future__ import annotations

from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langgraph.graph.message import add_messages


def add_timings(left: dict[str, float], right: dict[str, float]) -> dict[str, float]:
    """Times of one name add up over the run."""
    return left | {k: left.get(k, 0.0) + v for k, v in right.items()}


class InspectionState(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]  # the conversation with the driver
    request: dict[str, Any]  # InspectionRequest
    evidence: Annotated[list[dict[str, Any]], add]  # Evidence, in the order of filing
    trace: Annotated[list[dict[str, Any]], add]  # ToolCall
    timings_ms: Annotated[dict[str, float], add_timings]
    steps: int  # how often the driver was asked
    shown: list[str]  # ids of the evidence whose pictures were posted to the model
    via: str  # who drives: "endpoint", "embedded" or "fallback"
    fallback_reason: str  # why the script took over, "" if it did not
    draft: dict[str, Any] | None  # Draft, once submitted; None again if it was sent back
    verify_rounds: int
    unsupported: list[str]  # claims that verification refused
    claims: list[dict[str, Any]]  # CheckedClaim
    reasoning: str  # of the draft, checked
    reading: dict[str, Any] | None  # LlmReading
    report: dict[str, Any]  # DefectReport
    disposition: dict[str, Any]  # a person's, after REVIEW
