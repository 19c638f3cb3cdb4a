"""One turn of a conversation: what its messages ask for, and the reply in words. Knows nothing about HTTP."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.language.intent import INSPECTION_ID, understand
from refdiff.agent.report.markdown import short_markdown
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.service import InspectionService
from refdiff.model.errors import ImageError, InputError, UnknownRecordError
from refdiff.server.base64_images import from_data_url
from refdiff.server.web.access import Caller

_SENT_AGAIN = timedelta(minutes=30)  # clients time out after ten minutes and retry twice; later it is a new request
_LOOKED_UP = 20  # longest search for inspection ids in a conversation


class TextPart(BaseModel):
    type: Literal["text"]
    text: str = Field(max_length=100_000)


class ImageUrl(BaseModel):
    url: str = Field(description="data:image/...;base64,...; URLs are not fetched")


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str, Field(max_length=200_000)] | Annotated[list[Part], Field(max_length=32)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(p.text for p in self.content or () if isinstance(p, TextPart))

    @property
    def images(self) -> list[str]:
        return (
            [p.image_url.url for p in self.content if isinstance(p, ImagePart)]
            if isinstance(self.content, list)
            else []
        )


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatBody(BaseModel):
    """A chat completion request; fields without a meaning here (temperature, ...) are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(max_length=100)
    messages: list[ChatMessage] = Field(min_length=1, max_length=500)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    metadata: dict[str, str] | None = Field(default=None, description="optional: product, part_id, scale_mm_per_px")


@dataclass(frozen=True)
class Reply:
    """A reply. report: the report that it is about, if any."""

    text: str
    report: DefectReport | None = None


@dataclass(frozen=True)
class SentBody:
    """The body as received, and whether the client marks it as a retry."""

    raw: bytes
    again: bool


class Turn:
    """What the last user message asks for, given the messages before it."""

    def __init__(self, service: InspectionService, caller: Caller, body: ChatBody, sent: SentBody) -> None:
        self._service, self._caller, self._sent = service, caller, sent
        self._given = body.metadata or {}
        digest = hashlib.sha256(f"{caller.key_id} {caller.name} ".encode() + sent.raw)
        self._origin = f"chat:{digest.hexdigest()}"
        if body.messages[-1].role != "user":
            raise InputError("the last message is not from the user; there is nothing to answer")
        self._about, since = self._report_so_far(body.messages)
        asked = [m for m in body.messages[since:] if m.role == "user"]
        self._text = asked[-1].text
        self._texts = [m.text for m in reversed(asked)]  # newest first
        if any(len(m.images) > 1 for m in asked):
            raise InputError(
                "a message has several images; send one photo of the part (the golden sample is retrieved here)"
            )
        self._image = next((m.images[0] for m in reversed(asked) if m.images), None)

    def begin(self) -> str | Reply:
        """The id of an accepted inspection, or a reply. Raises ImageError, BusyError, UnavailableError.

        A problem that the user can solve in the conversation (unknown part, missing product) is a reply.
        """
        if (known := self._service.jobs.by_origin(self._origin)) is not None:
            # a retry after a lost connection (or a crash of this server) must not start another inspection
            fresh = datetime.now(UTC) - datetime.fromisoformat(known.created_at) < _SENT_AGAIN
            if self._sent.again and (known.open or fresh):
                return known.inspection_id
            self._service.jobs.forget_origin(self._origin)
        try:
            return self._begin()
        except ImageError:
            raise
        except InputError as e:
            return Reply(str(e))

    def _begin(self) -> str | Reply:
        intent = understand(self._text, photo=self._image is not None, about=self._about)
        if intent.about is not None:
            return Reply(self._service.ask(intent.about, self._text), self._about)
        if not self._text.strip() and self._image is None:
            raise InputError("the message is empty")
        part = self._given.get("part_id") or intent.part_id
        if part is None:  # named in an earlier message that could not be answered yet
            parts = (understand(t, about=self._about).part_id for t in self._texts[1:])
            part = next((p for p in parts if p), None)
        if part is None:
            return Reply(self._service.chat(self._text) if self._image is None else _NAME_THE_PART)
        limit = self._service.workspace.model_settings.max_bytes
        photo = from_data_url(self._image, limit) if self._image else None
        request = next((t for t in self._texts if understand(t).part_id), self._text)
        job = self._service.submit(
            request, by=self._caller.name, part_id=part, product=self._product(part, photo is not None), photo=photo,
            scale_mm_per_px=self._scale() if photo else None, origin=self._origin,
        )  # fmt: skip
        return job.inspection_id

    def _report_so_far(self, messages: list[ChatMessage]) -> tuple[DefectReport | None, int]:
        """The report that the last message names, otherwise the newest one that an answer named, and the index of the first
        message that is not answered yet."""
        last, seen = len(messages) - 1, set[str]()
        for i in (last, *(i for i in reversed(range(last)) if messages[i].role == "assistant")):
            for inspection_id in reversed(INSPECTION_ID.findall(messages[i].text)):
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

    def _product(self, part: str, photo: bool) -> str | None:
        """The product named in the metadata, otherwise in the conversation."""
        return self._given.get("product") or self._service.product_named(part, self._texts, photo=photo)

    def _scale(self) -> float | None:
        text = self._given.get("scale_mm_per_px")
        try:
            scale = float(text) if text else None
        except ValueError:
            scale = math.nan
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise InputError(f"metadata.scale_mm_per_px {str(text)[:40]!r}: give a positive number")
        return scale


_NAME_THE_PART = 'Which part is it? Name it, for example: "this is part #4412".'


def finished(service: InspectionService, inspection_id: str, base_url: str) -> Reply:
    """The outcome of an inspection, in words."""
    found = service.inspection(inspection_id)
    if found.report is not None:
        link = f"{base_url}/v1/inspections/{inspection_id}/artefacts/html"
        return Reply(short_markdown(found.report, link), found.report)
    why = (found.error or {}).get("message", "it is still running")
    return Reply(f"Part {found.part_id} could not be inspected: {why}")
