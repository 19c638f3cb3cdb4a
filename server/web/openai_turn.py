"""One turn of a conversation: what its messages ask for, and the reply in words. Knows nothing about HTTP."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from refdiff.agent.language.intent import INSPECTION_ID, Said
from refdiff.agent.language.parts import own_words
from refdiff.agent.report.markdown import short_markdown
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.summary import review_page
from refdiff.agent.service import InspectionService, Upload
from refdiff.model.errors import ImageError, InputError, UnknownRecordError
from refdiff.server.base64_images import from_base64, from_data_url
from refdiff.server.web.access import Caller
from refdiff.tools.inspection.captures import find_part

_SENT_AGAIN = timedelta(minutes=30)  # clients time out after ten minutes and retry twice; later it is a new request
_MOMENT = timedelta(minutes=2)
_LONG = 1000  # characters
_LOOKED_UP = 20  # longest search for inspection ids in a conversation


class ChatMessage(BaseModel):
    """A message. Only what a user sends is read: text parts, image parts with a `data:` URL, and files that are images."""

    model_config = ConfigDict(extra="ignore")

    role: str = Field(description="user, assistant, system, ...")
    content: str | list[Any] | dict[str, Any] | None = None

    @property
    def parts(self) -> list[dict[str, Any]]:
        if isinstance(self.content, list):
            return [p if isinstance(p, dict) else {"type": "text", "text": str(p)} for p in self.content]
        return [self.content if isinstance(self.content, dict) else {"type": "text", "text": self.content or ""}]

    @property
    def text(self) -> str:
        texts = (p.get("text") for p in self.parts if _kind(p) in _TEXTS)
        return "\n".join(t[:_MAX_TEXT] for t in texts if isinstance(t, str))[:_MAX_TEXT]

    @property
    def files(self) -> list[dict[str, Any]]:
        """Everything but texts: images, and what cannot be read."""
        return [p for p in self.parts if _kind(p) not in _TEXTS]


_TEXTS = ("text", "input_text", "output_text")
_MAX_TEXT = 200_000
_REPORT_TOKENS = 100  # of the shortest report, about
_MAX_MESSAGES = 500  # the newest ones are read
_MAX_PAIRS = 100
_JSON = json.JSONEncoder(sort_keys=True)
_DIGESTED = 65_536  # characters at a time


def _kind(part: dict[str, Any]) -> str:
    return str(part.get("type", "text"))


def _photo(part: dict[str, Any], max_bytes: int) -> Upload:
    """The image in a part of a user's message. Raises ImageError, and InputError for what cannot be read."""
    kind = _kind(part)
    if kind in ("image_url", "input_image"):
        image = part.get("image_url")
        return from_data_url(str(image.get("url", "") if isinstance(image, dict) else image or ""), max_bytes)
    file = part.get("file") if kind == "file" else part
    if kind in ("file", "input_file") and isinstance(file, dict) and isinstance(file.get("file_data"), str):
        photo = from_base64(file["file_data"], max_bytes)
        return Upload(str(file.get("filename") or photo.name), photo.data)
    source = part.get("source")
    if kind == "image" and isinstance(source, dict) and isinstance(source.get("data"), str):
        return from_base64(source["data"], max_bytes)
    raise InputError(
        f"your message holds something of the type {kind[:40]!r}, which cannot be read here; send the photo itself as an "
        "image (image_url with a data: URL)"
    )


def _newest(messages: Any) -> Any:
    return messages[-_MAX_MESSAGES:] if isinstance(messages, list) else messages


def _few(pairs: Any) -> Any:
    if isinstance(pairs, dict) and len(pairs) > _MAX_PAIRS:  # here: each wrong one would be an error of its own
        raise ValueError(f"more than {_MAX_PAIRS} pairs")
    return pairs


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    """A chat completion request; fields without a meaning here (temperature, ...) are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=100)
    messages: Annotated[list[ChatMessage], BeforeValidator(_newest)] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_few)] | None = Field(
        default=None, description="optional: product, part_id, scale_mm_per_px"
    )
    response_format: dict[str, Any] | None = Field(default=None, description="an inspection is told in words only")
    tool_choice: str | dict[str, Any] | None = None
    max_tokens: int | None = Field(default=None, description=f"nothing is inspected for a reply below {_REPORT_TOKENS}")
    max_completion_tokens: int | None = None

    @property
    def fits_no_report(self) -> bool:
        """Whether the reply must have a form or a length that no report has, as programs ask for titles and tags."""
        format_ = (self.response_format or {}).get("type", "text")
        longest = min(self.max_tokens or _REPORT_TOKENS, self.max_completion_tokens or _REPORT_TOKENS)
        return format_ != "text" or self.tool_choice not in (None, "none", "auto") or longest < _REPORT_TOKENS


@dataclass(frozen=True)
class Reply:
    """A reply. report: the report that it is about, if any."""

    text: str
    report: DefectReport | None = None


class Turn:
    """What the last user message asks for, given the messages before it. again: the client marks it as a retry."""

    def __init__(self, service: InspectionService, caller: Caller, body: ChatBody, again: bool) -> None:
        self._service, self._caller, self._again, self._body = service, caller, again, body
        self._given = body.metadata or {}
        messages = body.messages
        if messages[-1].role != "user":
            raise InputError("the last message is not from the user; there is nothing to answer")
        self._about, since = self._report_so_far(messages)
        self._asked = [m for m in reversed(messages[since:]) if m.role == "user"]  # newest first
        self._text = self._asked[0].text
        # "Generate a title for this conversation:" in a message of its own, as some programs do, introduces the next one
        before = messages[-2].text if len(messages) > 1 and messages[-2].role == "user" else ""
        self._introduced = f"{before}\n{self._text}" if before.rstrip().endswith((":", "：")) else self._text
        self._told = _digest([m.text for m in messages if m.role not in ("user", "assistant")])
        content = [m.content for m in self._asked], self._given, self._about and self._about.inspection_id
        self._origin = f"chat:{_digest([caller.key_id, caller.name, content])}:{self._told}"

    def begin(self) -> str | Reply:
        """The id of an accepted inspection, or a reply. Raises ImageError, BusyError, UnavailableError.

        A problem that the user can solve in the conversation (unknown part, missing product) is a reply.
        """
        if (known := self._service.jobs.by_origin(self._origin)) is not None:
            # a retry after a lost connection (or a crash of this server) must not start another inspection
            fresh = datetime.now(UTC) - datetime.fromisoformat(known.created_at) < _SENT_AGAIN
            if self._again and (known.open or fresh):
                return known.inspection_id
            self._service.jobs.forget_origin(self._origin, known.inspection_id)
        try:
            return self._begin()
        except ImageError:
            raise
        except InputError as e:
            return Reply(str(e))

    def _begin(self) -> str | Reply:
        if not self._text.strip() and not self._asked[0].files:
            raise InputError("the message is empty")
        said = [Said(m.text, len(m.files), prompt=True) for m in self._asked]
        said[0] = replace(said[0], text=self._introduced)
        intent = self._service.understand(said, self._about)
        if intent.about is not None:
            return Reply(self._service.ask(intent.about, self._text), self._about)
        if self._body.fits_no_report:
            return Reply("Nothing was inspected: leave out response_format, tool_choice and a small max_tokens.")
        part = self._given.get("part_id") or intent.part_id
        if intent.ask is not None and (part is None or not intent.lacks_part):
            return Reply(intent.ask)
        if part is None:
            return Reply(self._service.chat(self._text))
        if (same := self._said_with_other_instructions()) is not None:
            return same
        photo, i = None, intent.photo
        if intent.part_id is None:  # the part is in the metadata
            i = next((n for n, m in enumerate(said) if m.files), None)
        if i is not None:
            photo = _photo(self._asked[i].files[0], self._service.workspace.model_settings.max_bytes)
        texts = [m.text for m in self._asked[: intent.since + 1]]
        product = self._given.get("product") or self._service.product_named(
            part, texts, photo=photo is not None, about=self._about
        )
        job = self._service.submit(
            next((t for t in texts if self._service.names_part(t)), self._text), by=self._caller.name, part_id=part,
            product=product, photo=photo, scale_mm_per_px=self._scale() if photo else None, origin=self._origin,
        )  # fmt: skip
        return job.inspection_id

    def _said_with_other_instructions(self) -> str | None:
        """The inspection that the same message asked for a moment ago beside other instructions: chat programs have a title
        made of a message by sending it a second time."""
        job = self._service.jobs.newest_of_origins(self._origin.rpartition(":")[0])
        if job is None or job.origin == self._origin:
            return None
        now = find_part(self._service.stores, job.request["part_id"], job.request["product"])
        recent = job.open or datetime.now(UTC) - datetime.fromisoformat(job.updated_at) < _MOMENT
        return job.inspection_id if recent and now.capture_id == job.request["capture_id"] else None

    def _report_so_far(self, messages: list[ChatMessage]) -> tuple[DefectReport | None, int]:
        """The report that the last message names, otherwise the newest one that an answer named, and the index of the first
        message that is not answered yet."""
        last, seen = len(messages) - 1, set[str]()
        for i in (last, *(i for i in reversed(range(last)) if messages[i].role == "assistant")):
            # a prompt that quotes a report is not about it
            text = own_words(messages[i].text) if i == last else messages[i].text
            for inspection_id in reversed(INSPECTION_ID.findall(text)):
                if inspection_id in seen:
                    continue
                if len(seen) == _LOOKED_UP:
                    return None, 0
                seen.add(inspection_id)
                try:
                    return self._service.report(inspection_id), min(i + 1, last)
                except UnknownRecordError:
                    continue
        return None, 0

    def _scale(self) -> float | None:
        text = self._given.get("scale_mm_per_px")
        try:
            scale = float(text) if text else None
        except ValueError:
            scale = math.nan
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise InputError(f"metadata.scale_mm_per_px {str(text)[:40]!r}: give a positive number")
        return scale


def _digest(data: Any) -> str:
    found = hashlib.sha256()
    for piece in _JSON.iterencode(_shortened(data)):  # in pieces, as everywhere here: other threads have their turn
        found.update(piece.encode())
    return found.hexdigest()


def _shortened(data: Any) -> Any:
    """The data with digests for long texts: writing a photo as JSON would keep other threads waiting for a second."""
    if isinstance(data, str):
        return data if len(data) < _LONG else _digest_of_text(data)
    if isinstance(data, dict):
        return {name: _shortened(value) for name, value in data.items()}
    return [_shortened(value) for value in data] if isinstance(data, list | tuple) else data


def _digest_of_text(text: str) -> str:
    found = hashlib.sha256()
    for i in range(0, len(text), _DIGESTED):
        found.update(text[i : i + _DIGESTED].encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def finished(service: InspectionService, inspection_id: str, base_url: str, public_url: str | None) -> Reply:
    """The outcome of an inspection, in words."""
    found = service.inspection(inspection_id)
    if found.report is not None:
        link = review_page(public_url, inspection_id) or f"{base_url}/v1/inspections/{inspection_id}/artefacts/html"
        return Reply(short_markdown(found.report, link), found.report)
    why = (found.error or {}).get("message", "it is still running")
    return Reply(f"Part {found.part_id} could not be inspected: {why}")
