"""What stands for Slack: its Web API over real HTTP, which remembers what it was asked, and a sender of signed events."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx2
from slack_sdk.signature import SignatureVerifier

from .bot_server import FakeServer

SECRET, TOKEN, TEAM, BOT = "8f742231b10e8888abcd99yyyzzz85a5", "xoxb-test", "T1", "UBOT"


@dataclass
class FakeSlack:
    """calls: (method, arguments) in order. files: what was uploaded, by id. photos: what can be downloaded, by name.

    fail: method -> how many calls of it fail with HTTP 500, or an error text for "ok": false. slow: method -> s.
    """

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    photos: dict[str, bytes] = field(default_factory=dict)
    fail: dict[str, int | str] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    people: dict[str, dict[str, Any]] = field(default_factory=dict)  # what users.info says beyond a member's profile
    shared: set[str] = field(default_factory=set)  # channels with another organisation
    messages: list[dict[str, Any]] = field(default_factory=list)  # what channels hold
    sent: httpx2.Request = field(init=False)  # last
    socket_url: str = ""  # where Socket Mode is told to connect

    def __post_init__(self) -> None:
        fake, numbers = self, itertools.count(1)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if self.path.startswith("/upload/"):
                    fake.files[self.path.rpartition("/")[2]] = body
                    return self._send(200, b"OK", "text/plain")
                return self._call(self.path.rpartition("/")[2], body)

            def do_GET(self) -> None:
                path, _, query = self.path.partition("?")
                if path.startswith("/files/"):
                    fake.downloads.append(self.headers.get("authorization", ""))
                    return self._send(200, fake.photos[path.rpartition("/")[2]], "image/png")
                return self._call(path.rpartition("/")[2], query.encode())

            def _call(self, method: str, body: bytes) -> None:
                if self.headers.get("content-type", "").startswith("application/json"):
                    arguments = json.loads(body or b"{}")
                else:
                    arguments = {k: v[0] for k, v in parse_qs(body.decode()).items()}
                for name in ("blocks", "view", "files"):
                    if isinstance(arguments.get(name), str):
                        arguments[name] = json.loads(arguments[name])
                time.sleep(fake.slow.get(method, 0.0))
                failing = fake.fail.get(method)
                if isinstance(failing, int) and failing > 0:
                    fake.fail[method] = failing - 1
                    return self._send(500, b"down", "text/plain")
                if isinstance(failing, str):
                    return self._json({"ok": False, "error": failing})
                fake.calls.append((method, arguments))
                return self._json({"ok": True} | fake._answer(method, arguments, next(numbers)))

            def _json(self, answer: dict[str, Any]) -> None:
                self._send(200, json.dumps(answer).encode(), "application/json")

            def _send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = FakeServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.client = httpx2.Client(timeout=30)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, method: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
        if method == "auth.test":
            return {"user_id": BOT, "bot_id": "B1", "team_id": TEAM, "team": "t", "user": "refdiff", "url": self.url}
        if method == "apps.connections.open":
            return {"url": self.socket_url}
        if method == "users.info":
            known = {"id": arguments["user"], "real_name": f"Name of {arguments['user']}", "team_id": TEAM}
            return {"user": known | self.people.get(arguments["user"], {})}
        if method == "conversations.info":
            return {"channel": {"id": arguments["channel"], "is_ext_shared": arguments["channel"] in self.shared}}
        if method == "conversations.replies":
            known = [m for m in self.messages if m["channel"] == arguments["channel"]]
            thread = [m for m in known if arguments["ts"] in (m["ts"], m.get("thread_ts"))]
            return {"messages": [m for m in thread if m["ts"] in (arguments["ts"], arguments["latest"])]}
        if method == "chat.postMessage":
            return {"channel": f"D{arguments['channel']}" if arguments["channel"].startswith("U") else arguments["channel"],
                    "ts": f"9000.{number:06}"}  # fmt: skip
        if method == "files.getUploadURLExternal":
            return {"file_id": f"F{number}", "upload_url": f"{self.url}/upload/F{number}"}
        if method == "files.completeUploadExternal":
            return {"files": arguments["files"]}
        return {}

    def close(self) -> None:
        self.client.close()
        self.server.shutdown()

    # -- what it was asked

    def of(self, method: str) -> list[dict[str, Any]]:
        return [a for m, a in list(self.calls) if m == method]

    def posts(self) -> dict[str, list[dict[str, Any]]]:
        """Messages by thread."""
        by_thread = defaultdict(list)
        for arguments in self.of("chat.postMessage"):
            by_thread[arguments.get("thread_ts", "")].append(arguments)
        return by_thread

    # -- what it sends

    def send(self, app: str, body: str, content_type: str, *, secret: str = SECRET, age_s: int = 0,
             headers: dict[str, str] | None = None) -> httpx2.Response:  # fmt: skip
        """A signed request to the app under test."""
        timestamp = str(int(time.time()) - age_s)
        signature = SignatureVerifier(secret).generate_signature(timestamp=timestamp, body=body)
        signed = {"x-slack-request-timestamp": timestamp, "x-slack-signature": signature, "content-type": content_type}
        self.sent = httpx2.Request("POST", f"{app}/slack/events", content=body, headers=signed | (headers or {}))
        return self.client.send(self.sent)

    def event(self, app: str, event: dict[str, Any], event_id: str = "Ev1", **how: Any) -> httpx2.Response:
        body = {"type": "event_callback", "team_id": TEAM, "api_app_id": "A1", "event_id": event_id, "event": event,
                "is_ext_shared_channel": event.get("channel") in self.shared,
                "authorizations": [{"team_id": TEAM, "user_id": BOT, "is_bot": True}]}  # fmt: skip
        return self.send(app, json.dumps(body), "application/json", **how)

    def interact(self, app: str, payload: dict[str, Any], **how: Any) -> httpx2.Response:
        payload = {
            "team": {"id": TEAM},
            "user": {"id": "U1", "name": "ada", "team_id": TEAM},
            "trigger_id": "trig",
        } | payload
        return self.send(app, urlencode({"payload": json.dumps(payload)}), "application/x-www-form-urlencoded", **how)


def mention(text: str, ts: str, *, user: str = "U1", channel: str = "C1", **more: Any) -> dict[str, Any]:
    return {"type": "app_mention", "user": user, "channel": channel, "ts": ts, "text": f"<@{BOT}> {text}", **more}
