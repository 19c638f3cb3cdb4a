"""The Bolt app: events become messages to the chat bot, buttons and dialogs become decisions and names.

A message is stored before Slack gets its acknowledgement; the work follows afterwards, which keeps acknowledgements
quick. Bolt checks the signature of every HTTP request and answers 401 to a bad one.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from typing import Any

from slack_bolt import App, BoltRequest, BoltResponse
from slack_bolt.authorization import AuthorizeResult
from slack_sdk.errors import SlackClientError

from refdiff.model.errors import InputError, RefDiffError
from refdiff.server.chat.bot import ChatBot, ChatRequest
from refdiff.server.chat.slack import blocks
from refdiff.server.chat.slack.platform import SlackPlatform, files_of

log = logging.getLogger(__name__)

INSPECT_MESSAGE, INSPECT_PART = "refdiff_inspect_message", "refdiff_inspect_part"
_MENTION = re.compile(r"<@[A-Z0-9]+(?:\|[^>]*)?>")
_LINK = re.compile(r"<(?:[^|>]*\|)?([^>]*)>")
_SUBTYPES = (None, "file_share", "thread_broadcast")  # subtypes of messages that people write
# what Bolt and we stumble over where a field is missing or of another type than Slack's
_SENSELESS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError, InputError)


def build_app(platform: SlackPlatform, bot: ChatBot, signing_secret: str | None) -> App:
    """signing_secret: None if only Socket Mode is used."""
    # our identity is known; a call of auth.test would delay every acknowledgement
    ourselves = AuthorizeResult(enterprise_id=None, team_id=None, bot_token=platform.client.token)
    app = App(client=platform.client, signing_secret=signing_secret or "", name="refdiff", authorize=lambda: ourselves)
    app.error(_answer_to)
    app.middleware(lambda body, next: _keep(bot, body) or next())
    _add_shortcuts(app, bot)
    _add_buttons(app, platform, bot)
    return app


def _keep(bot: ChatBot, body: dict[str, Any]) -> BoltResponse | None:
    """Store an event that is a message to the bot; returns the answer to Slack, None for anything but events."""
    event = body.get("event") or {}
    if body.get("type") != "event_callback":
        return None
    request = message_of(event, str(body.get("team_id") or ""), bool(body.get("is_ext_shared_channel")))
    if request is None:
        return BoltResponse(status=200, body="")
    addressed = _is_for_us(event, body)
    if addressed or bot.knows_thread(request.thread):
        bot.receive(replace(request, addressed=addressed))
    return BoltResponse(status=200, body="")


def _is_for_us(event: dict[str, Any], body: dict[str, Any]) -> bool:
    """A mention counts whichever event brings it: a message with files may come as a message only."""
    if event["type"] == "app_mention" or event.get("channel_type") == "im":
        return True
    known = body.get("authorizations")
    users = [str(a.get("user_id")) for a in known if isinstance(a, dict)] if isinstance(known, list) else []
    return any(re.search(rf"<@{re.escape(user)}[|>]", str(event.get("text") or "")) for user in users)


def message_of(event: dict[str, Any], team: str, shared: bool = False) -> ChatRequest | None:
    """A message event as a request; None for messages of bots, edits and the like. shared: with other organisations.

    The key identifies the message: Slack sends up to two events per message (app_mention, message), each with retries.
    """
    if event.get("type") not in ("app_mention", "message") or event.get("subtype") not in _SUBTYPES:
        return None
    if event.get("bot_id") or not event.get("user") or not event.get("channel") or not event.get("ts"):
        return None
    channel, ts = str(event["channel"]), str(event["ts"])
    thread_ts = str(event.get("thread_ts") or ts)
    photos = files_of(event)
    return ChatRequest(
        key=f"{team}:{channel}:{ts}",
        thread=f"{team}:{channel}:{thread_ts}",
        user=str(event["user"]),
        user_name="",
        text=plain(str(event.get("text") or "")),
        place={"channel": channel, "thread_ts": thread_ts, "ts": ts, "shared": shared},
        photos=photos,
        halves=not photos and event.get("channel_type") != "im",
    )


def plain(text: str) -> str:
    """The typed text, without Slack's markup and mentions."""
    text = _LINK.sub(r"\1", _MENTION.sub(" ", text))
    return " ".join(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").split())


def _add_shortcuts(app: App, bot: ChatBot) -> None:
    @app.shortcut(INSPECT_MESSAGE)
    def inspect_message(ack: Any, shortcut: dict[str, Any]) -> None:
        message, channel = shortcut["message"], str(shortcut["channel"]["id"])
        team, thread_ts = str(shortcut["team"]["id"]), str(message.get("thread_ts") or message["ts"])
        request = ChatRequest(
            key=f"{team}:{channel}:{message['ts']}:{shortcut['action_ts']}",
            thread=f"{team}:{channel}:{thread_ts}",
            user=str(shortcut["user"]["id"]),
            user_name="",
            text=f"inspect {plain(str(message.get('text') or ''))}",
            place={"channel": channel, "thread_ts": thread_ts, "ts": str(message["ts"])},
            photos=files_of(message),
        )
        bot.receive(request)
        ack()

    @app.shortcut(INSPECT_PART)
    def inspect_part(ack: Any, shortcut: dict[str, Any], client: Any) -> None:
        ack()
        client.views_open(trigger_id=shortcut["trigger_id"], view=blocks.inspect_view())

    @app.view(blocks.INSPECT_VIEW)
    def inspect_wanted(ack: Any, body: dict[str, Any]) -> None:
        part = body["view"]["state"]["values"]["part"]["part"]["value"].strip().lstrip("#")
        user, team = str(body["user"]["id"]), str(body["team"]["id"])
        # the part is in the key: a corrected part in the same dialog is another request
        bot.receive(ChatRequest(
            key=f"{team}:{body['view']['id']}:{part}", thread="", user=user, user_name="", text=f"inspect part #{part}",
            place={"team": team, "channel": user, "opening": f"You asked for an inspection of part #{part}."},
        ))  # fmt: skip
        ack()


def _add_buttons(app: App, platform: SlackPlatform, bot: ChatBot) -> None:
    def tell(client: Any, channel: str, user: str, thread: str | None, text: str) -> None:
        """Tell one person only."""
        client.chat_postEphemeral(channel=channel, user=user, thread_ts=thread, text=blocks.escape(text))

    def refresh(channel: str, ts: str, inspection_id: str) -> None:
        try:
            platform.update(channel, ts, bot.summary(inspection_id))
        except (SlackClientError, OSError) as e:  # what was said is stored, and the review page shows it
            log.warning("cannot update the message about %s: %s", inspection_id, e)

    @app.action(blocks.ACCEPT)
    def accept(ack: Any, body: dict[str, Any], client: Any) -> None:
        ack()
        channel, ts, thread, inspection_id = _where(body)
        user = str(body["user"]["id"])
        try:
            bot.decide(inspection_id, "accept", user, str(body["user"].get("name") or ""), "accepted in Slack")
        except RefDiffError as e:
            tell(client, channel, user, thread, str(e))
        refresh(channel, ts, inspection_id)

    @app.action(blocks.OVERRIDE)
    def override(ack: Any, body: dict[str, Any], client: Any) -> None:
        ack()
        channel, ts, thread, inspection_id = _where(body)
        user = str(body["user"]["id"])
        try:
            bot.check_may_decide(user)
        except RefDiffError as e:
            tell(client, channel, user, thread, str(e))
            return
        client.views_open(trigger_id=body["trigger_id"], view=blocks.override_view(inspection_id, channel, ts))

    @app.view(blocks.OVERRIDE_VIEW)
    def overridden(ack: Any, body: dict[str, Any]) -> None:
        about = json.loads(body["view"]["private_metadata"])
        reason = str(body["view"]["state"]["values"]["reason"]["reason"]["value"] or "")
        user = body["user"]
        try:
            bot.decide(about["inspection_id"], "override", str(user["id"]), str(user.get("name") or ""), reason)
        except RefDiffError as e:
            ack(response_action="errors", errors={"reason": str(e)[:2000]})
            return
        ack()
        refresh(about["channel"], about["ts"], about["inspection_id"])

    @app.action(blocks.NAME)
    def name(ack: Any, body: dict[str, Any], client: Any) -> None:
        ack()
        channel, ts, thread, inspection_id = _where(body)
        user = str(body["user"]["id"])
        try:
            bot.check_may_decide(user)
            view = blocks.name_view(bot.summary(inspection_id), channel, ts, thread)
        except RefDiffError as e:
            tell(client, channel, user, thread, str(e))
            return
        client.views_open(trigger_id=body["trigger_id"], view=view)

    @app.view(blocks.NAME_VIEW)
    def named(ack: Any, body: dict[str, Any], client: Any) -> None:
        about = json.loads(body["view"]["private_metadata"])
        channel, ts, inspection_id = str(about["channel"]), str(about["ts"]), str(about["inspection_id"])
        values, user = body["view"]["state"]["values"], body["user"]
        finding, known = _selected(values, "finding"), _selected(values, "known")
        typed, by = str(values["name"]["name"]["value"] or ""), str(user["id"])
        try:
            name = bot.name_given(inspection_id, finding, typed, known, by)
        except RefDiffError as e:
            ack(response_action="errors", errors={"name": str(e)[:2000]})
            return
        ack()  # within three seconds

        def store() -> None:
            try:
                bot.name_finding(inspection_id, finding, name, by, str(user.get("name") or ""))
            except RefDiffError as e:
                tell(client, channel, by, about["thread"], f"{finding} was not named {name!r}: {e}")
                return
            refresh(channel, ts, inspection_id)

        bot.run_later(store)

    @app.action(blocks.ZOOM)
    def zoom(ack: Any, body: dict[str, Any], client: Any) -> None:
        ack()
        channel, ts, thread, inspection_id = _where(body)
        user = str(body["user"]["id"])
        if refusal := platform.refusal(user, {"channel": channel}):
            tell(client, channel, user, thread, refusal)
            return
        platform.zoom(channel, thread or ts, inspection_id)

    @app.action(blocks.PAGE)
    def page(ack: Any) -> None:
        ack()  # the browser opens the URL


def _where(body: dict[str, Any]) -> tuple[str, str, str | None, str]:
    """(channel, message, thread, inspection) of a button."""
    container = body["container"]
    thread = container.get("thread_ts") or (body.get("message") or {}).get("thread_ts")
    return str(container["channel_id"]), str(container["message_ts"]), thread, str(body["actions"][0]["value"])


def _selected(values: dict[str, Any], name: str) -> str:
    """What was chosen in a select of a dialog; "" for nothing, or where the dialog has no such select."""
    chosen = values.get(name, {}).get(name, {}).get("selected_option")
    return str(chosen["value"]) if chosen else ""


def dispatch(app: App, body: bytes, headers: dict[str, str]) -> BoltResponse:
    """Answer an HTTP request from Slack; 400 if it makes no sense. Blocks until the acknowledgement."""
    try:
        return app.dispatch(BoltRequest(body=body.decode("utf-8", "replace"), headers=dict(headers)))
    except _SENSELESS as e:  # Bolt parses some of it outside its own error handling
        return _answer_to(e) or BoltResponse(status=500)


def _answer_to(error: Exception) -> BoltResponse | None:
    """What Slack gets for a request that failed; None: 500, and Slack sends it again."""
    senseless = isinstance(error, _SENSELESS)
    log.warning("a request of Slack %s", "makes no sense" if senseless else "failed", exc_info=error)
    return BoltResponse(status=400, body="not what Slack sends") if senseless else None
