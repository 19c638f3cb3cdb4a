"""The chat bots of a server: which are enabled, their routes, their start and end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from refdiff.agent.service import InspectionService
from refdiff.memory.journals.chat_messages import ChatStore
from refdiff.server.chat.bot import ChatBot
from refdiff.server.extras import require_extra
from refdiff.server.settings import ChatSettings, ConfigurationError

if TYPE_CHECKING:  # importing the SDK takes a second
    from microsoft_teams.api.auth.cloud_environment import CloudEnvironment
    from microsoft_teams.api.auth.credentials import TokenProvider
    from slack_sdk.signature import SignatureVerifier

log = logging.getLogger(__name__)

SLACK_PATH = "/slack/events"
_RECONNECT_S = 30.0
_UNSIGNED_PER_MINUTE = 20  # requests of one address; signed ones are not counted


@dataclass(frozen=True)
class TeamsCloud:
    """The Microsoft cloud of Teams and the source of tokens; default: the public cloud and the client secret."""

    cloud: CloudEnvironment | None = None
    token: TokenProvider | None = None


@contextmanager
def bots(
    app: FastAPI, service: InspectionService, settings: ChatSettings, teams: TeamsCloud = TeamsCloud()
) -> Iterator[list[str]]:
    """Add each bot whose secrets are set to the app, and run it until the end. Yields their names.

    Raises ConfigurationError for incomplete settings, UnavailableError for a missing extra package.
    """
    with ExitStack() as stack:
        on = ["slack"] if _slack(app, service, settings, stack) else []
        on += ["teams"] if _teams(app, service, settings, stack, teams) else []
        yield on


def _teams(
    app: FastAPI, service: InspectionService, settings: ChatSettings, stack: ExitStack, where: TeamsCloud
) -> bool:
    if settings.teams_client_id is None:
        return False
    if settings.teams_client_secret is None and where.token is None:
        raise ConfigurationError("REFDIFF_TEAMS_CLIENT_ID is set; set REFDIFF_TEAMS_CLIENT_SECRET too")
    require_extra("teams")
    from refdiff.server.chat.teams.app import listen, make_app
    from refdiff.server.chat.teams.platform import TeamsPlatform

    secret = settings.teams_client_secret.get_secret_value() if settings.teams_client_secret else None
    teams = make_app(app, settings.teams_client_id, secret, settings.teams_tenant_id, where.cloud, where.token)
    platform = stack.enter_context(TeamsPlatform(service, teams))
    store = ChatStore(service.stores.db, platform.name)
    bot = ChatBot(service, store, platform, deciders=settings.teams_deciders, public_url=settings.public_url)
    listen(teams, platform, bot, settings.teams_tenant_id)
    stack.enter_context(bot)
    return True


def _slack(app: FastAPI, service: InspectionService, settings: ChatSettings, stack: ExitStack) -> bool:
    if settings.slack_bot_token is None:
        return False
    if settings.slack_signing_secret is None and settings.slack_app_token is None:
        raise ConfigurationError(
            "SLACK_BOT_TOKEN is set; set SLACK_SIGNING_SECRET (HTTP) or SLACK_APP_TOKEN (Socket Mode) too"
        )
    require_extra("slack")
    from refdiff.server.chat.slack.app import build_app, dispatch
    from refdiff.server.chat.slack.platform import SlackPlatform, make_client
    from refdiff.server.chat.slack.readers import SlackReaders

    client = make_client(settings.slack_bot_token.get_secret_value(), settings.slack_api_url)
    platform = SlackPlatform(service, client, SlackReaders(client, settings.slack_readers, settings.slack_deciders))
    store = ChatStore(service.stores.db, platform.name)
    bot = ChatBot(service, store, platform, deciders=settings.slack_deciders, public_url=settings.public_url)
    stack.enter_context(bot)
    secret = settings.slack_signing_secret
    bolt = build_app(platform, bot, secret.get_secret_value() if secret else None)
    if secret:
        from slack_sdk.signature import SignatureVerifier

        verifier = SignatureVerifier(secret.get_secret_value())
        window, rate = MovingWindowRateLimiter(MemoryStorage()), RateLimitItemPerMinute(_UNSIGNED_PER_MINUTE)

        @app.post(SLACK_PATH, include_in_schema=False)
        async def slack_events(request: Request) -> Response:
            body = await request.body()
            if not _is_signed(verifier, body, dict(request.headers)):  # before anything is parsed
                client = request.client.host if request.client else ""
                return Response("not signed by Slack", 401 if window.hit(rate, client) else 429)
            answer = await run_in_threadpool(dispatch, bolt, body, dict(request.headers))
            return Response(answer.body, answer.status, answer.first_headers_without_set_cookie())

    if settings.slack_app_token:
        from slack_bolt.adapter.socket_mode import SocketModeHandler

        socket = SocketModeHandler(bolt, settings.slack_app_token.get_secret_value(), web_client=client)
        stack.callback(socket.close)
        _connect(socket)
    return True


def _is_signed(verifier: SignatureVerifier, body: bytes, headers: dict[str, str]) -> bool:
    try:
        return bool(verifier.is_valid_request(body, headers))
    # a timestamp that is no number or no time, a signature that is no ASCII, a body that is no text
    except (ArithmeticError, TypeError, ValueError):
        return False


_REFUSED = (
    "invalid_auth", "not_authed", "account_inactive", "token_revoked", "token_expired", "missing_scope",
    "not_allowed_token_type", "no_permission",
)  # fmt: skip


def _connect(socket: Any) -> None:
    """Connect, and retry in the background without a network. Raises ConfigurationError if Slack refuses the token."""
    from slack_sdk.errors import SlackApiError

    try:
        socket.connect()
    except Exception as e:  # any network error
        said = e.response.get("error", "") if isinstance(e, SlackApiError) and e.response is not None else ""
        if said in _REFUSED:  # anything else may be an outage
            raise ConfigurationError(
                f"Slack refuses SLACK_APP_TOKEN ({said}); Socket Mode needs one with connections:write"
            ) from e
        log.warning("Slack is unreachable (%s); retrying every %g s", e, _RECONNECT_S)
        threading.Thread(target=_keep_trying, args=(socket,), name="slack-connect", daemon=True).start()


def _keep_trying(socket: Any) -> None:
    while not socket.client.closed:
        time.sleep(_RECONNECT_S)
        if socket.client.closed:
            return
        try:
            socket.connect()
        except Exception as e:
            log.warning("Slack is still unreachable (%s)", e)
        else:
            return
