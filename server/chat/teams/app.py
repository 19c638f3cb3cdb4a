"""The Teams app on the HTTP server: activities become messages to the chat bot, card actions become decisions and names.

The SDK checks the token of every request (401 without a valid one). A message is stored before Teams gets its
acknowledgement; the work follows afterwards.
"""

from __future__ import annotations

import html
import json
import logging
import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from microsoft_teams.api.activities.invoke.adaptive_card import AdaptiveCardInvokeActivity
from microsoft_teams.api.activities.message import MessageActivity
from microsoft_teams.api.auth.cloud_environment import CloudEnvironment
from microsoft_teams.api.auth.credentials import TokenProvider
from microsoft_teams.api.models.adaptive_card import (
    AdaptiveCardActionCardResponse,
    AdaptiveCardActionMessageResponse,
)
from microsoft_teams.apps import ActivityContext, App
from microsoft_teams.apps.http.adapter import HttpMethod, HttpRequest, HttpRouteHandler
from microsoft_teams.cards import AdaptiveCard
from starlette.concurrency import run_in_threadpool

from refdiff.model.errors import RefDiffError
from refdiff.server.chat.bot import ChatBot, ChatRequest
from refdiff.server.chat.teams import cards
from refdiff.server.chat.teams.platform import TeamsPlatform

log = logging.getLogger(__name__)

PATH = "/api/messages"
_MENTION = re.compile(r"<at\b[^>]*>.*?</at>", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_FILE = "application/vnd.microsoft.teams.file.download.info"


class _Routes:
    """The SDK's endpoint on our app. (Its own FastAPI adapter replaces the app's lifespan and fails on bad JSON.)"""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def register_route(self, method: HttpMethod, path: str, handler: HttpRouteHandler) -> None:
        async def route(request: Request) -> Response:
            try:
                body = await request.json()
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
                body = None
            if not isinstance(body, dict):
                return JSONResponse({"error": "the body is not a JSON object"}, 400)
            answer = await handler(HttpRequest(body=body, headers=dict(request.headers)))
            shown = answer.get("body")
            return Response(status_code=answer["status"]) if shown is None else JSONResponse(shown, answer["status"])

        self._app.add_api_route(path, route, methods=[method], include_in_schema=False)

    def serve_static(self, path: str, directory: str) -> None:
        """Unused: nothing is served from folders."""

    async def start(self, port: int) -> None:
        """Nothing to do: our server is already running."""

    async def stop(self) -> None:
        """Nothing to do: our server has its own shutdown."""


def make_app(
    app: FastAPI,
    client_id: str,
    client_secret: str | None,
    tenant_id: str | None,
    cloud: CloudEnvironment | None = None,
    token: TokenProvider | None = None,
) -> App:
    """The SDK's app with its endpoint on our server. cloud, token: for any other than the public cloud."""
    return App(
        client_id=client_id, client_secret=client_secret, tenant_id=tenant_id, cloud=cloud, token=token,
        http_server_adapter=_Routes(app), messaging_endpoint=PATH, telemetry={"agent365": False},
        dangerously_allow_unauthenticated_requests=False,  # regardless of the environment
    )  # fmt: skip


def listen(app: App, platform: TeamsPlatform, bot: ChatBot, tenant_id: str | None) -> None:
    """Handle messages and card actions. tenant_id: only people of this tenant; None: of any."""

    @app.on_message
    async def on_message(context: ActivityContext[MessageActivity]) -> None:
        request = message_of(context.activity)
        if request is not None and _is_of(context.activity, tenant_id):
            await run_in_threadpool(bot.receive, request)

    @app.on_card_action
    async def on_card_action(context: ActivityContext[AdaptiveCardInvokeActivity]) -> Any:
        if not _is_of(context.activity, tenant_id):
            return AdaptiveCardActionMessageResponse(value="RefDiff belongs to another organisation.")
        return await run_in_threadpool(_act, context.activity, platform, bot)


def _is_of(activity: Any, tenant_id: str | None) -> bool:
    if tenant_id is None:
        return True
    data = activity.channel_data
    found = activity.conversation.tenant_id or (data.tenant.id if data is not None and data.tenant else None)
    return bool(found == tenant_id)


def _act(activity: AdaptiveCardInvokeActivity, platform: TeamsPlatform, bot: ChatBot) -> Any:
    """Handle a button. The answer changes the card for the person who pressed it, an update for everyone else."""
    action = activity.value.action
    inspection_id, place = str(action.data.get("inspection_id", "")), _place(activity)
    user, name = _user(activity), str(activity.from_.name or "")
    try:
        if action.verb == cards.ZOOM:
            bot.run_later(lambda: platform.zoom(place, inspection_id))
            return AdaptiveCardActionMessageResponse(value="The enlarged findings follow.")
        if action.verb == cards.ACCEPT:
            bot.decide(inspection_id, "accept", user, name, "accepted in Teams")
        elif action.verb == cards.OVERRIDE:
            bot.decide(inspection_id, "override", user, name, str(action.data.get("reason") or ""))
        elif action.verb == cards.NAME:
            finding, typed, known = (str(action.data.get(key) or "") for key in ("finding", "name", "known"))
            given = bot.name_given(inspection_id, finding, typed, known, user)
            bot.name_finding(inspection_id, finding, given, user, name)
        else:
            return AdaptiveCardActionMessageResponse(value="This button belongs to another version of RefDiff.")
    except RefDiffError as e:
        return AdaptiveCardActionMessageResponse(value=str(e))
    report = bot.summary(inspection_id)
    if activity.reply_to_id:
        message_id = activity.reply_to_id
        bot.run_later(lambda: platform.update(place, message_id, report))
    return AdaptiveCardActionCardResponse(value=AdaptiveCard.model_validate(platform.card(report)))


def message_of(activity: MessageActivity) -> ChatRequest | None:
    """A message as a request. The key identifies the message, which Teams repeats if it gets no answer in time."""
    if not activity.id or not activity.conversation or not activity.from_:
        return None
    conversation = str(activity.conversation.id)
    return ChatRequest(
        key=f"{conversation}:{activity.id}",
        thread=conversation,  # names the thread of a channel; a chat has only one
        user=_user(activity),
        user_name=str(activity.from_.name or ""),
        text=plain(str(activity.text or "")),
        place=_place(activity),
        photos=_files(activity.attachments or []),
    )


def plain(text: str) -> str:
    """The typed text, without mentions and markup."""
    return " ".join(html.unescape(_TAG.sub(" ", _MENTION.sub(" ", text))).split())


def _user(activity: Any) -> str:
    return str(activity.from_.aad_object_id or activity.from_.id)


def _place(activity: Any) -> dict[str, Any]:
    return {"conversation": str(activity.conversation.id), "service_url": str(activity.service_url)}


def _files(attachments: list[Any]) -> list[dict[str, Any]]:
    """All attached files: whether they are photos, their bytes tell. Not the message as HTML, nor what it replies to."""
    found = []
    for a in attachments:
        kind = str(a.content_type or "")
        if kind.startswith(("text/html", "application/vnd.microsoft.card")) or kind == "messageReference":
            continue
        download = a.content.get("downloadUrl") if isinstance(a.content, dict) else None
        url = download if kind == _FILE else a.content_url
        found.append({"name": a.name or "", "url": url or ""})
    return found
