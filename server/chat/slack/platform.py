"""Slack's Web API, as the chat bot uses it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.http_retry.builtin_handlers import (
    ConnectionErrorRetryHandler,
    RateLimitErrorRetryHandler,
    ServerErrorRetryHandler,
)

from refdiff.agent.report.summary import ReportSummary
from refdiff.agent.service import InspectionService, Upload
from refdiff.model.errors import InputError, UnavailableError
from refdiff.model.images import media_type
from refdiff.server.chat.bot import ChatRequest
from refdiff.server.chat.download import download
from refdiff.server.chat.pictures import crops, overlay
from refdiff.server.chat.slack import blocks
from refdiff.server.chat.slack.readers import SlackReaders

_TIMEOUT_S = 30
_NAMES_KEPT = 1000


def make_client(token: str, api_url: str) -> WebClient:
    retries = [ConnectionErrorRetryHandler(max_retry_count=2), RateLimitErrorRetryHandler(max_retry_count=5),
               ServerErrorRetryHandler(max_retry_count=2)]  # fmt: skip
    base = api_url if api_url.endswith("/") else f"{api_url}/"
    return WebClient(token=token, base_url=base, timeout=_TIMEOUT_S, retry_handlers=retries)


class SlackPlatform:
    name = "slack"
    shared_threads = True

    def __init__(self, service: InspectionService, client: WebClient, readers: SlackReaders) -> None:
        self._service, self.client, self._readers = service, client, readers
        self._names: OrderedDict[str, str] = OrderedDict()
        self._announced: OrderedDict[str, None] = OrderedDict()  # requests whose status is posted as a message
        self._pictured: OrderedDict[str, None] = OrderedDict()  # requests whose picture is already posted
        self._mutex = threading.Lock()

    def name_of(self, user: str) -> str:
        with self._mutex:
            if user in self._names:
                return self._names[user]
        try:
            found = self.client.users_info(user=user)["user"]
            name = str(found.get("real_name") or found.get("name") or "")
        except (SlackClientError, KeyError, OSError):  # missing scope, or a guest of another workspace
            name = ""
        with self._mutex:
            self._names[user] = name
            while len(self._names) > _NAMES_KEPT:
                self._names.popitem(last=False)
        return name

    def refusal(self, user: str, place: dict[str, Any]) -> str:
        try:
            return self._readers.refusal(user, str(place.get("channel") or ""), place.get("shared"))
        except (SlackClientError, OSError) as e:
            raise UnavailableError(f"Slack does not say who you are ({e}); try again later") from e

    def opened(self, request: ChatRequest) -> ChatRequest:
        """Open a thread with a message to the person, because a dialog belongs to no conversation."""
        place = request.place
        posted = self.client.chat_postMessage(channel=place["channel"], text=blocks.escape(place["opening"]))
        channel, ts = str(posted["channel"]), str(posted["ts"])
        thread = f"{place['team']}:{channel}:{ts}"
        return replace(request, thread=thread, place={"channel": channel, "thread_ts": ts, "ts": ts, "shared": False})

    def files(self, request: ChatRequest) -> list[dict[str, Any]] | None:
        place = request.place
        try:
            found = (
                self.client.conversations_replies(
                    channel=place["channel"],
                    ts=place["thread_ts"],
                    oldest=place["ts"],
                    latest=place["ts"],
                    inclusive=True,
                    limit=1,
                ).get("messages")
                or []
            )  # the first of a thread comes, too
        except (SlackClientError, OSError):  # not in the channel, or without the scope
            return None
        return next((files_of(m) for m in found if m.get("ts") == place["ts"]), None)

    def photo(self, request: ChatRequest) -> Upload | None:
        if not request.photos:
            return None
        file = request.photos[0]
        name = str(file.get("name") or "photo")
        url = file.get("url_private_download") or file.get("url_private")
        if not url and file.get("id"):  # files of a shared channel come without a URL
            try:
                found = self.client.files_info(file=file["id"]).get("file") or {}
            except SlackApiError as e:  # deleted, for example
                said = e.response.get("error", "")
                raise InputError(f"Slack does not hand over the attached file {name} ({said}); send it again") from e
            url = found.get("url_private_download") or found.get("url_private")
        return Upload(name, self._download(str(url or ""), name))

    def working(self, request: ChatRequest, text: str) -> None:
        channel, thread = request.place["channel"], request.place["thread_ts"]
        try:
            self.client.assistant_threads_setStatus(channel_id=channel, thread_ts=thread, status=f"{text[:140]}…")
        except SlackApiError:  # no status here: post one message instead, once
            if not self._first(self._announced, request.key):
                return
            self.say(request, f"{text[:1].upper()}{text[1:]}…")

    def say(self, request: ChatRequest, text: str) -> None:
        self.client.chat_postMessage(
            channel=request.place["channel"], thread_ts=request.place["thread_ts"], text=blocks.escape(text),
            unfurl_links=False, unfurl_media=False,
        )  # fmt: skip

    def show(self, request: ChatRequest, report: ReportSummary) -> None:
        channel, thread = request.place["channel"], request.place["thread_ts"]
        if request.key not in self._pictured:  # the message below may fail and be repeated
            picture = overlay(self._service, report.inspection_id)
            self.client.files_upload_v2(
                channel=channel, thread_ts=thread, file=picture, filename=f"{report.inspection_id}{_suffix(picture)}",
                title=report.title, alt_txt=f"Photo of part {report.part_id} with its findings drawn in",
            )  # fmt: skip
            self._first(self._pictured, request.key)
        self.client.chat_postMessage(
            channel=channel, thread_ts=thread, text=blocks.escape(f"{report.title}. {report.reason}"),
            blocks=blocks.answer(report), unfurl_links=False, unfurl_media=False,
        )  # fmt: skip

    def update(self, channel: str, ts: str, report: ReportSummary) -> None:
        """Update a posted report after a decision."""
        self.client.chat_update(
            channel=channel, ts=ts, text=blocks.escape(f"{report.title}. {report.reason}"), blocks=blocks.answer(report)
        )

    def zoom(self, channel: str, thread: str, inspection_id: str) -> None:
        """Post the enlarged findings as pictures in the thread."""
        made = crops(self._service, inspection_id)
        if not made:
            self.client.chat_postMessage(channel=channel, thread_ts=thread, text="There is no finding to enlarge.")
            return
        uploads = [
            {"file": data, "filename": f"{title}{_suffix(data)}", "title": title, "alt_txt": f"{title}, enlarged"}
            for title, data in made
        ]
        self.client.files_upload_v2(channel=channel, thread_ts=thread, file_uploads=uploads)

    def _first(self, seen: OrderedDict[str, None], key: str) -> bool:
        """Remember a request; returns whether it is new."""
        with self._mutex:
            if key in seen:
                return False
            seen[key] = None
            while len(seen) > _NAMES_KEPT:
                seen.popitem(last=False)
            return True

    def _download(self, url: str, name: str) -> bytes:
        """Download a file from Slack. The token is sent to Slack only, whatever URL an event names."""
        parts, api = urlsplit(url), urlsplit(self.client.base_url)
        at_slack = parts.scheme == "https" and (parts.hostname or "").endswith(".slack.com")
        if not at_slack and (parts.scheme, parts.netloc) != (api.scheme, api.netloc):
            raise InputError(f"the attached {name} is not a file stored in Slack; attach the image itself")
        headers = {"Authorization": f"Bearer {self.client.token}"}
        return download(url, name, "Slack", headers, self._service.workspace.model_settings.max_bytes)


def _suffix(picture: bytes) -> str:
    return ".png" if media_type(picture) == "image/png" else ".jpg"


def files_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """All files of a message and of a message shared in it: whether they are photos, their bytes tell. Pictures that a
    program's message only shows count too."""
    kept = ("id", "name", "url_private", "url_private_download")
    holders = [message, *_dicts(message, "attachments")]
    files = [f for h in holders for f in _dicts(h, "files")]
    for holder in holders:
        shown = [b for b in _dicts(holder, "blocks") if b.get("type") == "image"]
        files += [
            {"name": b.get("alt_text")} | (b.get("slack_file") or {"url_private": b.get("image_url")}) for b in shown
        ]
        if holder.get("image_url"):
            files.append({"name": holder.get("title"), "url_private": holder["image_url"]})
    return [{k: f[k] for k in kept if f.get(k)} | ({"url_private": f["url"]} if f.get("url") else {}) for f in files]


def _dicts(holder: dict[str, Any], name: str) -> list[dict[str, Any]]:
    listed = holder.get(name)
    return [d for d in listed if isinstance(d, dict)] if isinstance(listed, list) else []
