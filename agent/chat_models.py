"""The chat models that may drive a run: an endpoint, the embedded RefDiff model, and the scripted policy that never fails.

All take the same messages and answer with tool calls. Pictures are kept in messages as `image_ref` blocks (sha256) and
become data URLs only on their way to an endpoint.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2
import openai
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, ValidationError

from refdiff.agent.report.schema import LlmReading
from refdiff.agent.settings import AgentSettings
from refdiff.model.build import built_sha256
from refdiff.model.errors import LLMError
from refdiff.model.images import RgbImage
from refdiff.model.reading import NO_DEFECT, READING_SCHEMA, READING_TYPES
from refdiff.tools.defect_types import UNKNOWN

if TYPE_CHECKING:
    from refdiff.model.engine import Engine

T = TypeVar("T")

_MAX_TOKENS = 1024
_MAX_CALLS = 4  # tool calls of one message; one was asked for
_MAX_ANSWER_BYTES = 4 * 2**20


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

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> str:
        """The one of the options that answers the text."""


class _Limited(httpx2.SyncByteStream):
    """A response body that must end in time and may not be endless; the client's timeouts begin anew with every byte."""

    def __init__(self, body: httpx2.SyncByteStream, deadline: float) -> None:
        self._body, self._deadline = body, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._body:
            size += len(chunk)
            if time.monotonic() > self._deadline:
                raise httpx2.ReadTimeout("the answer did not end in time")
            if size > _MAX_ANSWER_BYTES:
                raise ValueError(f"the answer is longer than {_MAX_ANSWER_BYTES} bytes")
            yield chunk

    def close(self) -> None:
        self._body.close()


def _limits(seconds: float) -> dict[str, list[Callable[..., Any]]]:
    """Event hooks of the HTTP client that bound an answer as a whole."""

    def sent(request: httpx2.Request) -> None:
        request.extensions["refdiff.deadline"] = time.monotonic() + seconds

    def answered(response: httpx2.Response) -> None:
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _Limited(response.stream, response.request.extensions["refdiff.deadline"])

    return {"request": [sent], "response": [answered]}


def _shown(url: str) -> str:
    """The URL without user name, password and query: it is filed in reports."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else url.partition("?")[0].rpartition("@")[2]


class Endpoint:
    """An OpenAI-compatible endpoint. Every failure, whatever its kind, becomes an LLMError naming the URL.

    The message holds nothing that the server wrote, for it is filed in reports; what the server wrote is in `__cause__`.
    """

    via: Literal["endpoint", "embedded"] = "endpoint"

    def __init__(self, settings: AgentSettings, image_url: Callable[[str], str]) -> None:
        """image_url: sha256 -> data URL of a stored picture."""
        if not settings.llm_base_url:
            raise LLMError("no endpoint is configured; set REFDIFF_LLM_BASE_URL")
        self.url: str | None = _shown(settings.llm_base_url)
        self.weights: dict[str, str] = {}
        self.model = settings.llm_model
        self._image_url = image_url if settings.llm_images else None
        self._chat = ChatOpenAI(
            model=settings.llm_model,
            base_url=settings.llm_base_url,
            # local servers want no key but the client wants a text
            api_key=settings.llm_api_key or SecretStr("none"),
            timeout=httpx2.Timeout(settings.llm_timeout_s, connect=min(10.0, settings.llm_timeout_s)),
            http_client=openai.DefaultHttpxClient(event_hooks=_limits(settings.llm_timeout_s)),
            max_retries=settings.llm_retries,
            temperature=0,
            max_completion_tokens=_MAX_TOKENS,
        )

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """The model's next message. It may hold no (or malformed) tool calls: the graph decides what then."""
        bound = self._chat.bind_tools(list(tools), strict=True, parallel_tool_calls=False)
        try:
            message = self._call(lambda: bound.invoke([self._posted(m) for m in messages]))
        except LLMError as e:
            if isinstance(e.__cause__, ValidationError):  # arguments that are no object: as good as no call
                return AIMessage(content="")
            raise
        if not isinstance(message, AIMessage):
            raise LLMError(f"{self.url} answered with a {type(message).__name__}, not an assistant message")
        # some servers number calls badly or not at all
        calls: list[ToolCall] = [
            {"name": c["name"], "args": c["args"], "id": f"call-{len(messages)}-{i}", "type": "tool_call"}
            for i, c in enumerate(message.tool_calls[:_MAX_CALLS])
        ]
        # usage and reasoning fields differ between servers and are of no use in a checkpoint
        return AIMessage(content=message.text[:2000], tool_calls=calls)

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The model's own reading of a pair (sha256 each), greedily, from a fixed prompt."""
        bound = self._chat.bind(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "reading", "strict": True, "schema": READING_SCHEMA},
            }
        )
        content: list[str | dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_ref", "sha256": s} for s in (reference, query)]
        message = self._call(lambda: bound.invoke([self._posted(HumanMessage(content))]))
        try:
            return _reading(json.loads(message.text))
        # int(inf) overflows, and brackets nested deeply enough exhaust the parser
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as e:
            raise LLMError(f"{self.url} gave no usable reading of the pair") from e

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> str:
        """The one of the options that answers the text; an LLMError if it answers with anything else."""
        schema = {
            "title": "choice", "type": "object", "additionalProperties": False, "required": ["answer"],
            "properties": {"answer": {"enum": list(options)}},
        }  # fmt: skip
        bound = self._chat.bind(
            response_format={"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}
        )
        listed = "\n".join(f"- {o}" for o in options)
        asked = f'{text}\nAnswer as JSON, {{"answer": ...}}, with one of:\n{listed}'
        message = self._call(lambda: bound.invoke([("system", prompt), ("human", asked)]))
        try:
            said = json.loads(message.text)["answer"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise LLMError(f"{self.url} gave no usable answer") from e
        if said not in options:
            raise LLMError(f"{self.url} gave an answer that was not offered")
        return str(said)

    def answer(self, prompt: str, text: str) -> str:
        """A short answer in prose to a text without an inspection."""
        message = self._call(lambda: self._chat.invoke([("system", prompt), ("human", text)]))
        return message.text[:2000]

    def _call(self, call: Callable[[], BaseMessage]) -> BaseMessage:
        try:
            return call()
        except openai.APITimeoutError as e:
            raise LLMError(f"{self.url} did not answer in time; is the model server overloaded?") from e
        except openai.APIConnectionError as e:
            raise LLMError(f"{self.url} cannot be reached; is the model server running?") from e
        except openai.APIStatusError as e:
            raise LLMError(f"{self.url} answered with HTTP {e.status_code}") from e
        except Exception as e:  # a server that talks nonsense makes the client fail in any way it likes
            raise LLMError(f"{self.url} gave an answer that cannot be read ({type(e).__name__})") from e

    def _posted(self, message: AnyMessage) -> AnyMessage:
        """The message with its pictures as data URLs (or without them, for a model that reads text only)."""
        if not isinstance(message.content, list):
            return message
        content: list[str | dict[str, Any]] = []
        for block in message.content:
            if isinstance(block, dict) and block.get("type") == "image_ref":
                if self._image_url:
                    content.append({"type": "image_url", "image_url": {"url": self._image_url(block["sha256"])}})
            else:
                content.append(block)
        return message.model_copy(update={"content": content})


def _reading(answer: Mapping[str, Any]) -> LlmReading:
    """Raises ValueError, KeyError, TypeError, OverflowError for what is none."""
    defect, kind = answer["defect"], answer["type"]
    if not isinstance(defect, bool) or kind not in READING_TYPES:
        raise ValueError(f"unexpected reading {str(answer)[:100]!r}")
    if defect == (kind == NO_DEFECT):  # contradicts itself: the yes or no was asked for, the type comes second
        kind = UNKNOWN if defect else NO_DEFECT
    return LlmReading(defect=defect, type=kind, confidence=min(100, max(0, int(answer["confidence"]))) / 100)


class EmbeddedChat(BaseChatModel):
    """The embedded RefDiff model as LangChain knows chat models. pictures: sha256 -> (H, W, 3) uint8 RGB.

    With tools bound, the answer is one valid tool call; without, prose.
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
            call = self.engine.call(plain, tools, self.pictures)
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
        return self._safely(lambda: _reading(self.engine.read(self._pictures(reference), self._pictures(query))))

    def answer(self, prompt: str, text: str) -> str:
        return self._safely(lambda: self._chat().invoke([("system", prompt), ("human", text)]).text[:2000])

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> str:
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
    from refdiff.model.engine import Engine

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


def data_url(png_or_jpeg: bytes) -> str:
    kind = "png" if png_or_jpeg.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(png_or_jpeg).decode('ascii')}"


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
        if self._failed_before(messages, name, arguments):
            return AIMessage(content=f"{name} failed twice")
        call_id = f"scripted-{len(messages)}"
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

    @staticmethod
    def _failed_before(messages: Sequence[BaseMessage], name: str, arguments: dict[str, Any]) -> bool:
        """Did this very call fail already while the script drove? Then it would fail for ever."""
        calls = {c["id"]: c for m in messages if isinstance(m, AIMessage) for c in m.tool_calls}
        failed = [calls.get(m.tool_call_id) for m in messages if isinstance(m, ToolMessage) and m.status == "error"]
        mine = [c for c in failed if c and str(c["id"]).startswith("scripted-")]
        return any(c["name"] == name and c["args"] == arguments for c in mine)
