"""The tool calls that can succeed now: what the grammar of a small model's next call allows.

A model of 135 M parameters sometimes copies an id wrongly and then repeats the failed call; it also files before it has
looked, or looks twice. So only ids that tools returned are allowed, a tool is offered once its inputs exist, and
the report once the strongest regions have been zoomed and measured.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from refdiff.agent.prompts import CAUSES

MAX_LOOKED_AT = 3  # regions, strongest first, that are zoomed and measured before a report
_NEEDS = {
    "retrieve_reference": "find_part", "align": "retrieve_reference", "score_difference": "align",
    "zoom": "score_difference", "measure": "score_difference", "submit_report": "score_difference",
}  # fmt: skip


def allowed_calls(messages: Sequence[BaseMessage], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tools (OpenAI's form, strict) that can be called after `messages`, narrowed to the ids that exist."""
    results: dict[str, list[dict[str, Any]]] = {}
    failed = set()
    for message in messages:
        if isinstance(message, ToolMessage) and message.status == "error":
            failed.add(str(message.name))
        elif isinstance(message, ToolMessage):
            if message.name == "score_difference":
                failed.clear()  # these are other regions than the failed ones
            results.setdefault(str(message.name), []).append(json.loads(message.text))
    goldens = [g["golden_id"] for r in results.get("retrieve_reference", []) for g in r["goldens"]]
    scored = results["score_difference"][-1] if "score_difference" in results else {"regions": [], "evidence": None}
    regions = [r["region"] for r in scored["regions"]]
    left = {
        look: [
            x
            for x in regions
            if x not in {r["region"] for r in results.get(look, []) if r["score"] == scored["evidence"]}
        ]
        for look in ("zoom", "measure")
    }
    first = set(regions[:MAX_LOOKED_AT])
    # a region that cannot be examined must not keep the others from being filed
    hasty = any(first & set(left[look]) for look in left) and not failed & set(left)
    evidence = [r["evidence"] for answers in results.values() for r in answers if "evidence" in r]
    possible = []
    for tool in tools:
        name = tool["function"]["name"]
        if (
            (name in _NEEDS and _NEEDS[name] not in results)
            or (name in left and not left[name])
            or (name == "submit_report" and hasty)
        ):
            continue
        narrowed = copy.deepcopy(tool)
        fields = narrowed["function"]["parameters"]["properties"]
        if name == "align":
            fields["golden_id"] = _one_of(goldens)
        elif name == "score_difference":
            fields["golden_ids"]["items"] = _one_of(goldens)
        elif name in left:
            fields["region"] = _one_of(left[name])
        elif name == "submit_report" and not regions:
            fields["findings"]["maxItems"] = 0
        elif name == "submit_report":
            claim = fields["findings"]["items"]["properties"]
            claim["region"], claim["evidence"]["items"] = _one_of(regions), _one_of(evidence)
            # without a list it invents causes
            claim["probable_cause"] = {
                "anyOf": [_one_of([c for causes in CAUSES.values() for c in causes]), {"type": "null"}]
            }
        possible.append(narrowed)
    return possible


def _one_of(ids: Sequence[str]) -> dict[str, Any]:
    return {"type": "string", "enum": sorted(set(ids))}
