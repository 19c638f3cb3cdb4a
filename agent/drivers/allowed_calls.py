"""Which calls can succeed now: what the grammar of a small model's next call allows.

A model of 135 M parameters sometimes copies ids wrongly and then repeats the failing call; it also files before it has
looked, or looks twice. Here the ids are those that tools have answered with, a tool is offered once what it needs exists,
and a report once the strongest regions were zoomed and measured.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from refdiff.agent.drivers.driver import tool_results
from refdiff.agent.prompts import CAUSES

MAX_LOOKED_AT = 3  # regions, strongest first, that are zoomed and measured before a report
_NEEDS = {
    "retrieve_reference": "find_part", "align": "retrieve_reference", "score_difference": "align",
    "zoom": "score_difference", "measure": "score_difference", "submit_report": "score_difference",
}  # fmt: skip
_LOOKS = ("zoom", "measure")


def allowed_calls(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools (OpenAI's form, strict) that can be called after `messages`, narrowed to the ids that exist."""
    known = _known(messages)
    return [_narrowed(tool, known) for tool in tools if _is_open(tool["function"]["name"], known)]


@dataclass(frozen=True)
class _Known:
    """What the tool results so far tell."""

    tools: frozenset[str]  # that succeeded
    goldens: list[str]  # ids that were retrieved
    evidence: list[str]  # all ids
    regions: list[str]  # of the newest comparison, strongest first
    left: dict[str, list[str]]  # by zoom and measure: those of the regions that it has not looked at
    look_failed: bool  # a zoom or a measurement, since the newest comparison


def _known(messages: Sequence[BaseMessage]) -> _Known:
    results = tool_results(messages)
    scored = results["score_difference"][-1] if "score_difference" in results else {"regions": [], "evidence": None}
    regions = [r["region"] for r in scored["regions"]]
    looked = {look: {r["region"] for r in results.get(look, []) if r["score"] == scored["evidence"]} for look in _LOOKS}
    return _Known(
        tools=frozenset(results),
        goldens=[g["golden_id"] for r in results.get("retrieve_reference", []) for g in r["goldens"]],
        evidence=[r["evidence"] for answers in results.values() for r in answers if "evidence" in r],
        regions=regions,
        left={look: [r for r in regions if r not in looked[look]] for look in _LOOKS},
        look_failed=_look_failed(messages),
    )


def _look_failed(messages: Sequence[BaseMessage]) -> bool:
    for message in reversed(messages):
        if isinstance(message, ToolMessage):
            if message.status == "error" and message.name in _LOOKS:
                return True
            if message.status != "error" and message.name == "score_difference":
                return False
    return False


def _is_open(name: str, known: _Known) -> bool:
    if name in _NEEDS and _NEEDS[name] not in known.tools:
        return False
    if name in _LOOKS:
        return bool(known.left[name])
    if name == "submit_report" and not known.look_failed:  # a region that cannot be looked at holds no report back
        return not any(set(known.regions[:MAX_LOOKED_AT]) & set(known.left[look]) for look in _LOOKS)
    return True


def _narrowed(tool: dict[str, Any], known: _Known) -> dict[str, Any]:
    """The tool with its ids limited to those that exist."""
    narrowed = copy.deepcopy(tool)
    name, fields = tool["function"]["name"], narrowed["function"]["parameters"]["properties"]
    if name == "align":
        fields["golden_id"] = _one_of(known.goldens)
    elif name == "score_difference":
        fields["golden_ids"]["items"] = _one_of(known.goldens)
    elif name in _LOOKS:
        fields["region"] = _one_of(known.left[name])
    elif name == "submit_report" and not known.regions:
        fields["findings"]["maxItems"] = 0
    elif name == "submit_report":
        claim = fields["findings"]["items"]["properties"]
        claim["region"], claim["evidence"]["items"] = _one_of(known.regions), _one_of(known.evidence)
        # without a list it invents causes
        causes = _one_of([c for causes in CAUSES.values() for c in causes])
        claim["probable_cause"] = {"anyOf": [causes, {"type": "null"}]}
    return narrowed


def _one_of(ids: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": sorted(set(ids))}
