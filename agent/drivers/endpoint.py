"""An OpenAI-compatible endpoint as the driver: our own model under vLLM, or any model with tool calls and vision.

Pictures are kept in messages as `image_ref` blocks (sha256) and become data URLs only on their way out.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import openai
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolCall
from langchain_core.tools import BaseTool
from langchain_openai import ChatOpenAI
from pydantic import SecretStr, ValidationError

from refdiff.agent.drivers.driver import OWN_MODEL, reading_of
from refdiff.agent.report.schema import LlmReading
from refdiff.agent.settings import AgentSettings
from refdiff.model.defect_types import READING_TYPES
from refdiff.model.errors import LLMError
from refdiff.model.language.reading import READING_SCHEMA

_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_MAX_CALLS = 4  # tool calls of one message; one was asked for
_MAX_ANSWER_BYTES = 4 * 2**20


class _Limited(httpx2.SyncByteStream):
    """A response body with a deadline and a maximum size; the client's own timeouts restart with every byte."""

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


class EndpointDriver:
    """An OpenAI-compatible endpoint. Every failure, whatever its kind, becomes an LLMError naming the URL.

    The message is filed in reports, so it never holds text of the server; that is in `__cause__`.
    """

    via: Literal["endpoint", "embedded"] = "endpoint"

    def __init__(self, settings: AgentSettings, image_url: Callable[[str], str]) -> None:
        """image_url: sha256 -> data URL of a stored picture."""
        if not settings.llm_base_url:
            raise LLMError("no endpoint is configured; set REFDIFF_LLM_BASE_URL")
        self.url: str | None = _shown(settings.llm_base_url)
        self.weights: dict[str, str] = {}
        self.model = settings.llm_model
        self._own = settings.llm_model == OWN_MODEL
        self._image_url = image_url if settings.llm_images else None
        self._chat = ChatOpenAI(
            model=settings.llm_model,
            base_url=settings.llm_base_url,
            # local servers need no key, but the client requires one
            api_key=settings.llm_api_key or SecretStr("none"),
            timeout=httpx2.Timeout(settings.llm_timeout_s, connect=min(10.0, settings.llm_timeout_s)),
            http_client=openai.DefaultHttpxClient(event_hooks=_limits(settings.llm_timeout_s)),
            max_retries=settings.llm_retries,
            temperature=0,
            max_completion_tokens=settings.llm_max_tokens,
            extra_body=settings.llm_extra_body or None,
        )

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """The model's next message. It may hold no (or malformed) tool calls: the graph decides what then."""
        bound = self._chat.bind_tools(list(tools), strict=True, parallel_tool_calls=False)
        try:
            message = self._call(lambda: bound.invoke([self._posted(m) for m in messages]))
        except LLMError as e:
            if isinstance(e.__cause__, ValidationError):  # arguments that are not an object count as no call
                return AIMessage(content="")
            raise
        if not isinstance(message, AIMessage):
            raise LLMError(f"{self.url} returned a {type(message).__name__} instead of an assistant message")
        # some servers number calls wrongly or not at all
        calls: list[ToolCall] = [
            {"name": c["name"], "args": c["args"], "id": f"call-{len(messages)}-{i}", "type": "tool_call"}
            for i, c in enumerate(message.tool_calls[:_MAX_CALLS])
        ]
        # usage and reasoning fields differ between servers and do not belong in a checkpoint
        return AIMessage(content=message.text[:2000], tool_calls=calls)

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The model's own reading of a pair (sha256 each), greedily, from a fixed prompt."""
        if not self._own:  # one that was not trained on the question needs the words, and a server may not know schemas
            prompt = f"{prompt}\nAllowed words: {', '.join(READING_TYPES)}."
        bound = self._chat.bind(**self._form("reading", READING_SCHEMA))
        content: list[str | dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_ref", "sha256": s} for s in (reference, query)]
        message = self._call(lambda: bound.invoke([self._posted(HumanMessage(content))]))
        try:
            answer = _json_of(message.text)
            if self._own and (sure := _sureness(message)) is not None:
                return reading_of({**answer, "confidence": 100 * sure}, probability=True)
            return reading_of(answer)
        # int(inf) overflows, and brackets nested deeply enough exhaust the parser
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as e:
            raise LLMError(f"{self.url} returned no usable reading of the image pair") from e

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        """The one of the options that answers the text, of our model also its probability; an LLMError if it answers with
        anything else."""
        schema = {
            "title": "choice", "type": "object", "additionalProperties": False, "required": ["answer"],
            "properties": {"answer": {"enum": list(options)}},
        }  # fmt: skip
        if not self._own:
            listed = "\n".join(f"- {o}" for o in options)
            text = f'{text}\nAnswer as JSON, {{"answer": ...}}, with one of:\n{listed}'
        bound = self._chat.bind(**self._form("choice", schema))
        message = self._call(lambda: bound.invoke([("system", prompt), ("human", text)]))
        try:
            said = _json_of(message.text)["answer"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise LLMError(f"{self.url} returned no usable answer") from e
        if said not in options:
            raise LLMError(f"{self.url} returned an answer that was not among the options")
        return str(said), _certainty(message) if self._own else None

    def _form(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        """What asks for an answer in a schema, of our own model with the probabilities, which not every server has."""
        asked = {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
        return {"response_format": asked} | ({"logprobs": True} if self._own else {})

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
        except Exception as e:  # malformed responses can make the client raise anything
            raise LLMError(f"{self.url} returned an unreadable answer ({type(e).__name__})") from e

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


def _json_of(text: str) -> Any:
    """The JSON of an answer, also after thoughts and in a code fence. Raises ValueError, RecursionError."""
    said = text.rpartition("</think>")[2].strip()
    if fenced := _FENCE.fullmatch(said):
        said = fenced[1]
    return json.loads(said)


def _certainty(message: BaseMessage) -> float | None:
    """Probability of the whole answer, None if the server does not report it; tokens forced by the grammar count as 1."""
    tokens = (message.response_metadata.get("logprobs") or {}).get("content")
    return math.exp(min(0.0, sum(float(t["logprob"]) for t in tokens))) if tokens else None


def _sureness(message: BaseMessage) -> float | None:
    """Probability of the yes or no of a reading, as the embedded engine reports it; None if the server does not."""
    logprobs = message.response_metadata.get("logprobs") or {}
    for token in logprobs.get("content") or []:
        if str(token["token"]).strip() in ("true", "false"):
            return math.exp(min(0.0, float(token["logprob"])))
    return None
