"""The chat models that may drive a run: an endpoint, the embedded RefDiff model, and the scripted policy that never fails.

All take the same messages and answer with tool calls. Pictures are kept in messages as `image_ref` blocks (sha256).
The endpoint has a file of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from refdiff.agent.drivers.allowed_calls import allowed_calls
from refdiff.agent.prompts import CAUSES
from refdiff.agent.report.schema import LlmReading
from refdiff.model.defect_types import UNKNOWN
from refdiff.model.errors import LLMError
from refdiff.model.images import RgbImage
from refdiff.model.language.build import built_sha256
from refdiff.model.language.reading import NO_DEFECT, READING_TYPES

if TYPE_CHECKING:
    from refdiff.model.language.engine import Engine

T = TypeVar("T")


class Driver(Protocol):
    """Who drives a run. weights: sha256 of what it runs on, as far as that is known here. Failures are LLMErrors."""

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
# good part, and answer every third question that a report says nothing of; what another model says of its confidence is no
# probability, and is taken at its word.
SURE = 0.9


def reading_of(answer: Mapping[str, Any], probability: bool = False) -> LlmReading:
    """probability: the confidence is one. Raises ValueError, KeyError, TypeError, OverflowError for what is no reading."""
    defect, kind = answer["defect"], answer["type"]
    if not isinstance(defect, bool) or kind not in READING_TYPES:
        raise ValueError(f"unexpected reading {str(answer)[:100]!r}")
    if defect == (kind == NO_DEFECT):  # contradicts itself: the yes or no was asked for, the type comes second
        kind = UNKNOWN if defect else NO_DEFECT
    stated = float(answer["confidence"])
    if not math.isfinite(stated):
        raise ValueError("a confidence that is no number")
    confidence = min(100.0, max(0.0, stated)) / 100
    return LlmReading(
        defect=defect, type=kind, confidence=round(confidence, 2), counts=not probability or confidence >= SURE
    )


class EmbeddedChat(BaseChatModel):
    """The embedded RefDiff model as LangChain knows chat models. pictures: sha256 -> (H, W, 3) uint8 RGB.

    With tools bound, the answer is one tool call that can succeed now; without, prose.
    """

    engine: Any
    pictures: Any

    @property
    def _llm_type(self) -> str:
        return "refdiff-embedded"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        return self.bind(tools=[convert_to_openai_tool(t, strict=True) for t in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        plain, tools = plain_messages(messages), kwargs.get("tools")
        if tools:
            call = self.engine.call(plain, tools, self.pictures, allowed_calls(messages, tools))
            for claim in call["arguments"].get("findings", ()):
                if claim["probable_cause"] not in CAUSES.get(claim["type"], ()):
                    claim["probable_cause"] = None  # one of another type of defect
            made: ToolCall = {
                "name": call["name"],
                "args": call["arguments"],
                "id": f"call-{len(messages)}",
                "type": "tool_call",
            }
            message = AIMessage(content="", tool_calls=[made])
        else:
            message = AIMessage(content=self.engine.answer(plain))
        return ChatResult(generations=[ChatGeneration(message=message)])


class Embedded:
    """The RefDiff model in this process. It is loaded at the first question; whatever goes wrong becomes an LLMError."""

    via: Literal["endpoint", "embedded"] = "embedded"
    model = "refdiff"
    url: str | None = None

    def __init__(self, folder: Path, pictures: Callable[[str], RgbImage], threads: int | None = None) -> None:
        """folder: of `refdiff model build`. pictures: sha256 -> picture."""
        self._folder, self._pictures, self._threads = folder, pictures, threads
        self.weights = {"language": built_sha256(folder)}

    @property
    def engine(self) -> Engine:
        return shared_engine(self._folder, self._threads)

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """One valid tool call."""
        return self._safely(lambda: self._chat().bind_tools(list(tools)).invoke(list(messages)))

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The reading of a pair (sha256 each); the prompt is the model's own, whatever is given here."""
        return self._safely(
            lambda: reading_of(self.engine.read(self._pictures(reference), self._pictures(query)), True)
        )

    def answer(self, prompt: str, text: str) -> str:
        return self._safely(lambda: self._chat().invoke([("system", prompt), ("human", text)]).text[:2000])

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        asked = [{"role": "system", "content": prompt}, {"role": "user", "content": text}]
        return self._safely(lambda: self.engine.choose(asked, options))

    def _chat(self) -> EmbeddedChat:
        return EmbeddedChat(engine=self.engine, pictures=self._pictures)

    @staticmethod
    def _safely(call: Callable[[], T]) -> T:
        try:
            return call()
        except LLMError:
            raise
        except Exception as e:  # a damaged folder or a strange conversation may fail anywhere; the line goes on
            raise LLMError(f"the embedded model failed ({type(e).__name__})") from e


@lru_cache(maxsize=1)
def shared_engine(folder: Path, threads: int | None = None) -> Engine:
    """The engine of a folder, loaded once a process."""
    from refdiff.model.language.engine import Engine

    return Engine(folder, threads=threads)


def plain_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """LangChain messages as OpenAI has them, arguments as objects, pictures as {"type": "image", "image": sha256}."""
    plain: list[dict[str, Any]] = []
    for message in messages:
        content = message.content
        if isinstance(content, list):
            content = [
                {"type": "image", "image": b["sha256"]} if isinstance(b, dict) and b.get("type") == "image_ref" else b
                for b in content
            ]
        role = {"ai": "assistant", "human": "user"}.get(message.type, message.type)
        made: dict[str, Any] = {"role": role, "content": content}
        if isinstance(message, AIMessage) and message.tool_calls:
            made["tool_calls"] = [
                {"id": c["id"], "name": c["name"], "arguments": c["args"]} for c in message.tool_calls
            ]
        if isinstance(message, ToolMessage):
            made |= {"name": message.name, "tool_call_id": message.tool_call_id}
        plain.append(made)
    return plain


_SCRIPTED = "scripted-"


class ScriptedPolicy(BaseChatModel):
    """The canonical order of tools, read off the messages so far: takes over from wherever a model gave up."""

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
        """One tool call; without any where nothing more can be done (the last tool error says why)."""
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
        if failures(messages, name, arguments, _SCRIPTED):  # it would fail for ever
            return AIMessage(content=f"{name} failed twice")
        call_id = f"{_SCRIPTED}{len(messages)}"
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


def failures(messages: Sequence[BaseMessage], name: str, arguments: Mapping[str, Any], prefix: str = "") -> int:
    """How often this very call failed so far, of calls whose ids begin with `prefix`."""
    calls = {c["id"]: c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
    failed = [calls.get(m.tool_call_id) for m in messages if isinstance(m, ToolMessage) and m.status == "error"]
    return sum(c["name"] == name and c["args"] == arguments for c in failed if c and str(c["id"]).startswith(prefix))
