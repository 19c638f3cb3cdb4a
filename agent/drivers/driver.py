"""The chat models that may drive a run: an endpoint, the embedded RefDiff model, and the scripted driver that never fails.

All take the same messages and answer with tool calls. Pictures are kept in messages as `image_ref` blocks (sha256).
The endpoint has a file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool

from refdiff.agent.report.schema import LlmReading
from refdiff.model.defect_types import UNKNOWN
from refdiff.model.language.reading import NO_DEFECT, READING_TYPES

if TYPE_CHECKING:
    pass

T = TypeVar("T")


class Driver(Protocol):
    """Chat model that drives a run. weights: sha256 of its weight files, where known. Failures are LLMErrors."""

    via: Literal["endpoint", "embedded"]
    model: str
    url: str | None
    weights: dict[str, str]

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """The model's next message. It may hold no (or malformed) tool calls: the graph decides what then."""

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The model's own reading of a pair (sha256 each), greedily, from a fixed prompt."""

    def answer(self, prompt: str, text: str) -> str:
        """A short answer in prose to a text without an inspection."""

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        """The one of the options that answers the text, and its probability where the model is ours and tells it."""


# Our own model's confidence is the probability of its yes or no. At even odds it would contradict the score of every fifth
# good part, and answer every third question that the report does not cover. The confidence that another model states is
# not a probability, and is accepted as stated.
MIN_CONFIDENCE = 0.9


def reading_of(answer: Mapping[str, Any], probability: bool = False) -> LlmReading:
    """probability: the confidence is one. Raises ValueError, KeyError, TypeError, OverflowError if it is not a reading."""
    defect, kind = answer["defect"], answer["type"]
    if not isinstance(defect, bool) or kind not in READING_TYPES:
        raise ValueError(f"unexpected reading {str(answer)[:100]!r}")
    if defect == (kind == NO_DEFECT):  # it contradicts itself: the yes or no counts, not the type
        kind = UNKNOWN if defect else NO_DEFECT
    stated = float(answer["confidence"])
    if not math.isfinite(stated):
        raise ValueError("the confidence is not a number")
    confidence = min(100.0, max(0.0, stated)) / 100
    return LlmReading(
        defect=defect,
        type=kind,
        confidence=round(confidence, 2),
        counts=not probability or confidence >= MIN_CONFIDENCE,
    )


def failures(messages: Sequence[BaseMessage], name: str, arguments: Mapping[str, Any], prefix: str = "") -> int:
    """How often this exact call has failed so far, among calls whose ids begin with `prefix`."""
    calls = {c["id"]: c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
    failed = [calls.get(m.tool_call_id) for m in messages if isinstance(m, ToolMessage) and m.status == "error"]
    return sum(c["name"] == name and c["args"] == arguments for c in failed if c and str(c["id"]).startswith(prefix))
