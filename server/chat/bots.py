"""The chat bots of a server: which are on, their routes, and their life."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from refdiff.memory.chat import ChatStore
from refdiff.model.errors import InputError
from refdiff.server.chat.host import ChatHost
from refdiff.server.chat.settings import ChatSettings
from refdiff.server.desk import Desk

log = logging.getLogger(__name__)

SLACK_PATH = "/slack/events"


@contextmanager
def bots(app: FastAPI, desk: Desk, settings: ChatSettings) -> Iterator[list[str]]:
    """Add the bots whose secrets are set to the app; they run until the end. Yields their names.

    Raises InputError where a bot's settings are incomplete.
    """
    with ExitStack() as stack:
        on = [name for name, start in (("slack", _slack),) if start(app, desk, settings, stack)]
        yield on


def _slack(app: FastAPI, desk: Desk, settings: ChatSettings, stack: ExitStack) -> bool:
    if settings.slack_bot_token is None:
        return False
    if settings.slack_signing_secret is None and settings.slack_app_token is None:
        raise InputError("SLACK_BOT_TOKEN is set; set SLACK_SIGNING_SECRET (HTTP) or SLACK_APP_TOKEN (Socket Mode) too")
    from refdiff.server.slack.app import build_app, dispatch
    from refdiff.server.slack.platform import SlackPlatform, make_client

    client = make_client(settings.slack_bot_token.get_secret_value(), settings.slack_api_url)
    platform = SlackPlatform(desk, client)
    store = stack.enter_context(ChatStore(desk.stores.settings.home, platform.name))
    host = ChatHost(desk, store, platform, deciders=settings.slack_deciders, public_url=settings.public_url)
    stack.enter_context(host)
    secret = settings.slack_signing_secret
    bolt = build_app(platform, host, secret.get_secret_value() if secret else None)
    if secret:

        @app.post(SLACK_PATH, include_in_schema=False)
        async def slack_events(request: Request) -> Response:
            body = await request.body()
            answer = await run_in_threadpool(dispatch, bolt, body, dict(request.headers))
            return Response(answer.body, answer.status, answer.first_headers_without_set_cookie())

    if settings.slack_app_token:
        from slack_bolt.adapter.socket_mode import SocketModeHandler

        socket = SocketModeHandler(bolt, settings.slack_app_token.get_secret_value(), web_client=client)
        socket.connect()  # type: ignore[no-untyped-call]
        stack.callback(socket.close)
    return True
