"""What drives a run: an endpoint, the embedded RefDiff model, the script that needs no model, or a recording's teacher.

All take the same messages and answer with the next tool call. Pictures are `image_ref` blocks (sha256) in messages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.tools import BaseTool

from refdiff.agent.report.schema import LlmReading
from refdiff.model.defect_types import NO_DEFECT, READING_TYPES, UNKNOWN

OWN_MODEL = "refdiff"  # the name that our own model is served under

T = TypeVar("T")


class Driver(Protocol):
    """Chat model that drives a run; its failures are LLMErrors. The script has `next_call` alone."""

    via: Literal["endpoint", "embedded"]
    model: str
    url: str | None
    weights: dict[str, str]  # sha256 of its weight files, where known

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """The model's next message. It may hold no (or malformed) tool calls: the graph decides what then."""

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The model's own reading of a pair (sha256 each), greedily, from a fixed prompt."""

    def answer(self, prompt: str, text: str) -> str:
        """A short answer in prose to a text without an inspection."""

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        """The option that answers the text, and its probability if the model is ours and reports it."""


# The confidence of our own model is the probability of its yes or no. At even odds it would contradict the score of every
# fifth good part, and answer every third question about something that a report does not hold. What another model states as
# its confidence is not a probability, and is taken as stated.
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


def tool_call(name: str, arguments: dict[str, Any], call_id: str) -> AIMessage:
    """A model's message that is one tool call."""
    return AIMessage(content="", tool_calls=[{"name": name, "args": arguments, "id": call_id, "type": "tool_call"}])


def calls_by_id(messages: Sequence[BaseMessage]) -> dict[str | None, ToolCall]:
    """All tool calls so far, by their id."""
    return {c["id"]: c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}


def tool_results(messages: Sequence[BaseMessage]) -> dict[str, list[dict[str, Any]]]:
    """What each tool answered so far, oldest first; failed calls are left out."""
    results: dict[str, list[dict[str, Any]]] = {}
    for message in messages:
        if isinstance(message, ToolMessage) and message.status != "error":
            results.setdefault(str(message.name), []).append(json.loads(message.text))
    return results


def failures(messages: Sequence[BaseMessage], name: str, arguments: Mapping[str, Any], prefix: str = "") -> int:
    """How often this exact call has failed so far, among calls whose ids begin with `prefix`."""
    calls = calls_by_id(messages)
    failed = [calls.get(m.tool_call_id) for m in messages if isinstance(m, ToolMessage) and m.status == "error"]
    return sum(c["name"] == name and c["args"] == arguments for c in failed if c and str(c["id"]).startswith(prefix))
