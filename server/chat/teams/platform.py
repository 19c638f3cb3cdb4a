"""Teams, as the chat bot uses it: all calls go through one event loop in a separate thread."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Coroutine
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from microsoft_teams.api.activities.message import MessageActivityInput
from microsoft_teams.api.activities.typing import TypingActivityInput
from microsoft_teams.api.models.attachment import Attachment
from microsoft_teams.apps import App

from refdiff.agent.report.summary import ReportSummary
from refdiff.agent.service import InspectionService, Upload
from refdiff.model.errors import InputError
from refdiff.model.images import decode_image
from refdiff.server.chat.bot import ChatRequest
from refdiff.server.chat.download import download
from refdiff.server.chat.pictures import crops, overlay
from refdiff.server.chat.teams import cards

T = TypeVar("T")

_TIMEOUT_S = 30.0
_KEPT = 1000
_FILES = (".sharepoint.com", ".sharepoint.us", ".1drv.com")  # where Teams stores attached files


class TeamsPlatform:
    """Use as a context manager."""

    name = "teams"
    shared_threads = False  # a thread is a whole conversation, of several people

    def __init__(self, service: InspectionService, app: App) -> None:
        self._service, self._app = service, app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="teams", daemon=True)
        self._status: OrderedDict[str, str] = OrderedDict()  # request key -> id of the status message
        self._mutex = threading.Lock()

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._app.initialize())
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT_S)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the event loop and wait; call it from other threads only."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_TIMEOUT_S * 2)

    def name_of(self, user: str) -> str:
        return ""  # every message carries its sender's name

    def refusal(self, user: str, place: dict[str, Any]) -> str:
        return ""  # people of other tenants are refused before (REFDIFF_TEAMS_TENANT_ID)

    def opened(self, request: ChatRequest) -> ChatRequest:
        return request  # every message belongs to a conversation

    def files(self, request: ChatRequest) -> list[dict[str, Any]] | None:
        return request.photos  # every message comes whole

    def photo(self, request: ChatRequest) -> Upload | None:
        if not request.photos:
            return None
        name, url = str(request.photos[0].get("name") or "photo"), str(request.photos[0]["url"])
        parts, service = urlsplit(url), urlsplit(str(request.place["service_url"]))
        headers = {}
        if (parts.scheme, parts.netloc) == (service.scheme, service.netloc):  # images pasted into the chat
            headers = {"Authorization": f"Bearer {self.run(self._token())}"}
        elif parts.scheme != "https" or not (parts.hostname or "").endswith(_FILES):
            raise InputError(f"the photo {name} is not stored in Teams; attach the image itself")
        return Upload(name, download(url, name, "Teams", headers, self._service.workspace.model_settings.max_bytes))

    def working(self, request: ChatRequest, text: str) -> None:
        line = f"{text[:1].upper()}{text[1:200]}…"
        self._try_typing(request)
        with self._mutex:
            known = self._status.get(request.key)
        sent = self._send(request, MessageActivityInput(text=cards.escape(line), id=known))
        self._keep(request.key, sent)

    def say(self, request: ChatRequest, text: str) -> None:
        self._replace_status(request, MessageActivityInput(text=cards.escape(text)))

    def show(self, request: ChatRequest, report: ReportSummary) -> None:
        self._replace_status(request, _with_card(self.card(report)))

    def card(self, report: ReportSummary) -> cards.Card:
        picture = cards.data_url(decode_image(overlay(self._service, report.inspection_id)))
        return cards.answer(report, picture)

    def update(self, place: dict[str, Any], message_id: str, report: ReportSummary) -> None:
        """Update a posted report after a decision."""
        activity = _with_card(self.card(report))
        activity.id = message_id
        self._post(place, activity)

    def zoom(self, place: dict[str, Any], inspection_id: str) -> None:
        """Post the enlarged findings, one card each."""
        made = crops(self._service, inspection_id)
        for title, data in made:
            self._post(place, _with_card(cards.pictured(title, cards.data_url(decode_image(data)))))
        if not made:
            self._post(place, MessageActivityInput(text="There is no finding to enlarge."))

    # -- inside

    def _replace_status(self, request: ChatRequest, activity: MessageActivityInput) -> None:
        """Replace the status message with the answer; if that fails, post a new message."""
        with self._mutex:
            known = self._status.pop(request.key, None)
        if known:
            activity.id = known
            try:
                self._send(request, activity)
                return
            except Exception:  # deleted, for example
                activity.id = None
        self._send(request, activity)

    def _send(self, request: ChatRequest, activity: MessageActivityInput | TypingActivityInput) -> str:
        return self._post(request.place, activity)

    def _post(self, place: dict[str, Any], activity: MessageActivityInput | TypingActivityInput) -> str:
        sending = self._app.send(place["conversation"], activity, service_url=place["service_url"])
        return str(self.run(sending).id)

    def _try_typing(self, request: ChatRequest) -> None:
        try:
            self._send(request, TypingActivityInput())
        except Exception:  # not every conversation supports it
            return

    def _keep(self, key: str, message_id: str) -> None:
        with self._mutex:
            self._status[key] = message_id
            while len(self._status) > _KEPT:
                self._status.popitem(last=False)

    async def _token(self) -> str:
        return str(await self._app._get_bot_token() or "")  # type: ignore[no-untyped-call]


def _with_card(card: cards.Card) -> MessageActivityInput:
    attachment = Attachment(content_type="application/vnd.microsoft.card.adaptive", content=card)
    return MessageActivityInput().add_attachments(attachment)
