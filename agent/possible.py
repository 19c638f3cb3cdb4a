"""Which calls can succeed now: what the grammar of a small model's next call allows.

A model of 135 M parameters copies ids wrongly once in a while, and then repeats the call that failed. Here the ids are those
that tools have answered with, and a tool is offered once what it needs is there.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

_NEEDS = {
    "retrieve_reference": "find_part", "align": "retrieve_reference", "score_difference": "align",
    "zoom": "score_difference", "measure": "score_difference", "submit_report": "score_difference",
}  # fmt: skip


def possible_calls(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools (OpenAI's form, strict) that can be called after `messages`, narrowed to the ids that exist."""
    results: dict[str, list[dict[str, Any]]] = {}
    for message in messages:
        if isinstance(message, ToolMessage) and message.status != "error":
            results.setdefault(str(message.name), []).append(json.loads(message.text))
    goldens = [g["golden_id"] for r in results.get("retrieve_reference", []) for g in r["goldens"]]
    regions = [r["region"] for r in results["score_difference"][-1]["regions"]] if "score_difference" in results else []
    evidence = [r["evidence"] for answers in results.values() for r in answers if "evidence" in r]
    possible = []
    for tool in tools:
        name = tool["function"]["name"]
        if (name in _NEEDS and _NEEDS[name] not in results) or (name in ("zoom", "measure") and not regions):
            continue
        narrowed = copy.deepcopy(tool)
        fields = narrowed["function"]["parameters"]["properties"]
        if name == "align":
            fields["golden_id"] = _one_of(goldens)
        elif name == "score_difference":
            fields["golden_ids"]["items"] = _one_of(goldens)
        elif name in ("zoom", "measure"):
            fields["region"] = _one_of(regions)
        elif name == "submit_report" and not regions:
            fields["findings"]["maxItems"] = 0
        elif name == "submit_report":
            claim = fields["findings"]["items"]["properties"]
            claim["region"], claim["evidence"]["items"] = _one_of(regions), _one_of(evidence)
        possible.append(narrowed)
    return possible


def _one_of(ids: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": sorted(set(ids))}
