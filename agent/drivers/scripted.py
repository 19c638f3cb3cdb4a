"""The driver without a model: the canonical order of tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool

from refdiff.agent.drivers.driver import calls_by_id, failures, tool_call, tool_results

_CALL_ID_PREFIX = "scripted-"


@dataclass(frozen=True)
class ScriptedDriver:
    """Derives the next call of the canonical order from the messages so far, so it can take over from a model anywhere."""

    k: int = 4  # references to compare with
    max_regions: int = 6  # regions that are zoomed, measured and reported, strongest first
    names: bool = False  # the product has named defects to compare regions with

    def next_call(self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()) -> AIMessage:
        """One tool call; none where nothing more can be done (the last tool error says why)."""
        name, arguments = self._next(messages)
        if failures(messages, name, arguments, _CALL_ID_PREFIX):  # it would fail again
            return AIMessage(content=f"{name} failed twice")
        return tool_call(name, arguments, f"{_CALL_ID_PREFIX}{len(messages)}")

    def _next(self, messages: Sequence[BaseMessage]) -> tuple[str, dict[str, Any]]:
        results = tool_results(messages)
        if "find_part" not in results:
            part_id = next((m.additional_kwargs["part_id"] for m in messages if "part_id" in m.additional_kwargs), "")
            return "find_part", {"part_id": str(part_id)}
        if "retrieve_reference" not in results:
            return "retrieve_reference", {"k": self.k}
        retrieved = results["retrieve_reference"][-1]
        if "align" not in results:
            return "align", {"golden_id": retrieved["goldens"][0]["golden_id"]}
        if not _compared_with_nearest(messages):
            return "score_difference", {"golden_ids": []}
        scored = results["score_difference"][-1]
        regions = [r["region"] for r in scored["regions"]][: self.max_regions]
        looks = ("zoom", "measure", "similar_defects") if self.names else ("zoom", "measure")
        done: dict[str, dict[str, str]] = {
            tool: {r["region"]: r["evidence"] for r in results.get(tool, []) if r.get("score") == scored["evidence"]}
            for tool in looks
        }
        for region in regions:
            for tool in looks:
                if region not in done[tool]:
                    return tool, {"region": region}
        findings = [_claim(r, scored["evidence"], [done[tool][r] for tool in looks]) for r in regions]
        best = retrieved["evidence"]
        reasoning = f"Compared with golden {{{best}.golden_1}}; image score {{{scored['evidence']}.score}}."
        return "submit_report", {"findings": findings, "reasoning": reasoning}


def _compared_with_nearest(messages: Sequence[BaseMessage]) -> bool:
    """Is the newest comparison with the nearest goldens? A model may have chosen others, but only those are measured."""
    calls = calls_by_id(messages)
    scores = [
        m for m in messages if isinstance(m, ToolMessage) and m.status != "error" and m.name == "score_difference"
    ]
    if not scores:
        return False
    call = calls.get(scores[-1].tool_call_id)
    return not (call and call["args"].get("golden_ids"))


def _claim(region: str, score: str, looked: list[str]) -> dict[str, Any]:
    """looked: evidence of the zoom, of the measurement, ... of a region."""
    return {
        "region": region,
        "type": "unknown_anomaly",
        "severity": "unrated",
        "evidence": [score, *looked],
        "description": f"Differs from the golden sample ({{place}}), length {{{looked[1]}.length_px}}.",
        "reasoning": f"The difference reaches {{{score}.{region}_peak}} here, beyond the calibrated threshold.",
        "probable_cause": None,
    }
