"""The driver that runs the RefDiff language model in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool

from refdiff.agent.drivers.allowed_calls import allowed_calls
from refdiff.agent.drivers.driver import T, reading_of, tool_call
from refdiff.agent.prompts import CAUSES
from refdiff.agent.report.schema import LlmReading
from refdiff.model.errors import LLMError
from refdiff.model.images import RgbImage
from refdiff.model.language.folder import built_sha256

if TYPE_CHECKING:
    from refdiff.model.language.engine import Engine


class EmbeddedDriver:
    """The RefDiff model in this process, loaded at the first question. Every failure becomes an LLMError."""

    via: Literal["endpoint", "embedded"] = "embedded"
    model = "refdiff"
    url: str | None = None

    def __init__(self, folder: Path, pictures: Callable[[str], RgbImage], threads: int | None = None) -> None:
        """folder: of `refdiff model build`. pictures: sha256 -> (H, W, 3) uint8 RGB."""
        self._folder, self._pictures, self._threads = folder, pictures, threads
        self.weights = {"language": built_sha256(folder)}

    @property
    def engine(self) -> Engine:
        return shared_engine(self._folder, self._threads)

    def next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        """One valid tool call, which can succeed now."""
        return self._safely(lambda: self._next_call(messages, tools))

    def _next_call(self, messages: Sequence[AnyMessage], tools: Sequence[BaseTool]) -> AIMessage:
        described = [convert_to_openai_tool(t, strict=True) for t in tools]
        call = self.engine.call(plain_messages(messages), described, self._pictures, allowed_calls(messages, described))
        for claim in call["arguments"].get("findings", ()):
            if claim["probable_cause"] not in CAUSES.get(claim["type"], ()):
                claim["probable_cause"] = None  # one of another type of defect
        return tool_call(call["name"], call["arguments"], f"call-{len(messages)}")

    def read_pair(self, prompt: str, reference: str, query: str) -> LlmReading:
        """The reading of a pair (sha256 each); the prompt is the model's own, whatever is given here."""
        return self._safely(
            lambda: reading_of(self.engine.read(self._pictures(reference), self._pictures(query)), True)
        )

    def answer(self, prompt: str, text: str) -> str:
        return self._safely(lambda: self.engine.answer(_asked(prompt, text))[:2000])

    def choose(self, prompt: str, text: str, options: Sequence[str]) -> tuple[str, float | None]:
        return self._safely(lambda: self.engine.choose(_asked(prompt, text), options))

    @staticmethod
    def _safely(call: Callable[[], T]) -> T:
        try:
            return call()
        except LLMError:
            raise
        except Exception as e:  # a damaged folder or a strange conversation may fail anywhere; the inspection continues
            raise LLMError(f"the embedded model failed ({type(e).__name__})") from e


def _asked(prompt: str, text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": prompt}, {"role": "user", "content": text}]


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
