"""The OpenAI-compatible facade: OpenAI clients and chat front ends request inspections and ask about reports.

The model is `refdiff-inspector`. The conversation is its own memory: the replies contain the inspection id.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from refdiff.agent.service import InspectionService, Progress
from refdiff.server.progress import progress_of
from refdiff.server.web.access import InspectorRole, TheService, Viewer
from refdiff.server.web.errors import Refused, responses
from refdiff.server.web.large_json import LargeJson
from refdiff.server.web.openai_turn import ChatBody, Reply, Turn, finished
from refdiff.server.web.routes.inspections import event_stream

router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"], route_class=LargeJson)
MODEL = "refdiff-inspector"
_CREATED = 1764547200
_SHOWN = ("calibrating", "llm", "tool", "verify", "fallback", "retry")
_MODEL = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "refdiff"}
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}  # inspections do not count tokens


@router.get("/models", responses=responses())
def list_models(_caller: Viewer) -> dict[str, Any]:
    """The one available model."""
    return {"object": "list", "data": [_MODEL]}


@router.get("/models/{model}", responses=responses(404))
def get_model(_caller: Viewer, model: str) -> dict[str, Any]:
    _check_model(model)
    return _MODEL


@router.post("/chat/completions", response_class=JSONResponse, responses=responses(404, 413))
async def complete(
    request: Request,
    service: TheService,
    caller: InspectorRole,
    body: ChatBody,
    retry: Annotated[int, Header(alias="X-Stainless-Retry-Count", ge=0, le=100)] = 0,
) -> Response:
    """Inspect a part, or answer a question about a report, in a conversation.

    For example "inspect part #4412 against the nearest good sample", with or without a photo (an image part with a data:
    URL; then name the product too, in the text or as metadata.product). Follow-up questions are answered from the
    report's evidence. With `stream`, progress comes first, as deltas that begin with ">".
    """
    _check_model(body.model)
    links = str(request.base_url).rstrip("/"), request.app.state.public_url
    # in a thread: searching a large body would block the event loop
    begun = await run_sync(lambda: Turn(service, caller, body, again=retry > 0).begin())
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        return event_stream(_stream(service, begun, links, usage))
    if isinstance(begun, str):
        async for _ in progress_of(service, begun):
            pass
        begun = await run_sync(finished, service, begun, *links)
    message = {"role": "assistant", "content": begun.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    return JSONResponse(_head("chat.completion") | {"choices": [choice], "usage": _USAGE} | _more(begun))


async def _stream(
    service: InspectionService, begun: str | Reply, links: tuple[str, str | None], usage: bool
) -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk")

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _data(head | {"choices": [choice]} | more)

    yield chunk({"role": "assistant", "content": ""})
    if isinstance(begun, str):
        any_progress = False
        async for progress in progress_of(service, begun):
            if progress is None:
                yield KEEPALIVE_COMMENT
            elif line := _line(progress):
                any_progress = True
                yield chunk({"content": f"> {line}\n"})
        begun = await run_sync(finished, service, begun, *links)
        if any_progress:
            yield chunk({"content": "\n"})
    yield chunk({"content": begun.text})
    yield chunk({}, "stop", **_more(begun))
    if usage:
        yield _data(head | {"choices": [], "usage": _USAGE})
    yield format_sse_event(data_str="[DONE]")


def _line(progress: Progress) -> str | None:
    """Progress worth showing, on one line; otherwise None."""
    if progress.kind == "queued" and not progress.message.startswith("0 "):
        return progress.message
    if progress.kind == "calibrating" and progress.done > 1:
        return None
    if progress.message.startswith("submit_report:"):  # the report itself follows
        return "writing the report"
    return " ".join(progress.message.split()) if progress.kind in _SHOWN else None


def _data(document: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(document, ensure_ascii=False))


def _head(kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": MODEL}


def _more(reply: Reply) -> dict[str, Any]:
    """Our extension of OpenAI's format: the report itself."""
    if reply.report is None:
        return {}
    report = reply.report.model_dump(mode="json", exclude={"artefacts"})
    return {"refdiff": {"inspection_id": report["inspection_id"], "verdict": report["verdict"], "report": report}}


def _check_model(model: str) -> None:
    if model != MODEL:
        raise Refused(404, f"no model {model[:100]!r}; use {MODEL}")
