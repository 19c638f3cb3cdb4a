"""The driver without a model: the canonical order of tool calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult

if TYPE_CHECKING:
    pass
from refdiff.agent.drivers.driver import failures

_CALL_ID_PREFIX = "scripted-"


class ScriptedDriver(BaseChatModel):
    """The canonical order of tools, derived from the messages so far; takes over wherever a model gave up."""

    k: int = 4
    max_regions: int = 6

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self.next_call(messages))])

    def next_call(self, messages: Sequence[BaseMessage]) -> AIMessage:
        """One tool call, or none where nothing more can be done (the last tool error says why)."""
        results: dict[str, list[dict[str, Any]]] = {}
        calls = {c["id"]: c["args"] for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
        for message in messages:
            if isinstance(message, ToolMessage) and message.status != "error":
                result = json.loads(message.text)
                # a model may have compared with goldens of its own choice: only the nearest ones are measured
                result["nearest"] = not (calls.get(message.tool_call_id) or {}).get("golden_ids")
                results.setdefault(str(message.name), []).append(result)
        part_id = next((str(m.additional_kwargs["part_id"]) for m in messages if "part_id" in m.additional_kwargs), "")
        name, arguments = self._next(results, part_id)
        if failures(messages, name, arguments, _CALL_ID_PREFIX):  # it would keep failing
            return AIMessage(content=f"{name} failed twice")
        call_id = f"{_CALL_ID_PREFIX}{len(messages)}"
        return AIMessage(content="", tool_calls=[{"name": name, "args": arguments, "id": call_id, "type": "tool_call"}])

    def _next(self, results: dict[str, list[dict[str, Any]]], part_id: str) -> tuple[str, dict[str, Any]]:
        if "find_part" not in results:
            return "find_part", {"part_id": part_id}
        if "retrieve_reference" not in results:
            return "retrieve_reference", {"k": self.k}
        goldens = results["retrieve_reference"][-1]["goldens"]
        if "align" not in results:
            return "align", {"golden_id": goldens[0]["golden_id"]}
        if "score_difference" not in results or not results["score_difference"][-1]["nearest"]:
            return "score_difference", {"golden_ids": []}
        scored = results["score_difference"][-1]
        regions = [r["region"] for r in scored["regions"]][: self.max_regions]
        done: dict[str, dict[str, str]] = {
            tool: {r["region"]: r["evidence"] for r in results.get(tool, []) if r.get("score") == scored["evidence"]}
            for tool in ("zoom", "measure")
        }
        for region in regions:
            for tool in ("zoom", "measure"):
                if region not in done[tool]:
                    return tool, {"region": region}
        findings = [self._claim(r, scored["evidence"], done["zoom"][r], done["measure"][r]) for r in regions]
        best = results["retrieve_reference"][-1]["evidence"]
        reasoning = f"Compared with golden {{{best}.golden_1}}; image score {{{scored['evidence']}.score}}."
        return "submit_report", {"findings": findings, "reasoning": reasoning}

    @staticmethod
    def _claim(region: str, score: str, zoomed: str, measured: str) -> dict[str, Any]:
        return {
            "region": region,
            "type": "unknown_anomaly",
            "severity": "unrated",
            "evidence": [score, zoomed, measured],
            "description": f"Differs from the golden sample ({{place}}), length {{{measured}.length_px}}.",
            "reasoning": f"The difference reaches {{{score}.{region}_peak}} here, beyond the calibrated threshold.",
            "probable_cause": None,
        }
