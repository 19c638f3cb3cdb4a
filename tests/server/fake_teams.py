"""What stands for Teams: its connector over real HTTP, keys that tokens are checked with, a sender of signed activities."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx2
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from microsoft_teams.api.auth.cloud_environment import PUBLIC, with_overrides

from refdiff.server.chat.bots import TeamsCloud

from .bot_server import FakeServer

CLIENT, TENANT = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
_ISSUER = "https://api.botframework.com"
_ACTIVITY = re.compile(r"/teams/v3/conversations/([^/]+)/activities(?:/([^/]+))?$")


@dataclass
class FakeTeams:
    """sent: (conversation, id, activity) in order, updates too. photos: what can be downloaded. fail: calls that will."""

    sent: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    photos: dict[str, bytes] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    fail: int = 0

    def __post_init__(self) -> None:
        fake, numbers = self, itertools.count(1)
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        keys = {"keys": [public | {"kid": "k1", "use": "sig", "alg": "RS256"}]}

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/v1/.well-known/keys":
                    return self._send(200, json.dumps(keys).encode())
                fake.downloads.append(self.headers.get("authorization", ""))
                return self._send(200, fake.photos[self.path.rpartition("/")[2]])

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                match = _ACTIVITY.search(self.path)
                assert match is not None, self.path
                assert self.headers["authorization"] == f"Bearer {fake.bot_token}"
                if fake.fail:
                    fake.fail -= 1
                    return self._send(502, b"{}")
                message_id = match[2] or f"m{next(numbers)}"
                fake.sent.append((match[1], message_id, body))
                return self._send(200, json.dumps({"id": message_id}).encode())

            do_PUT = do_POST

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = FakeServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.client = httpx2.Client(timeout=30)
        self.bot_token = self.token(aud=_ISSUER, iss="https://login.example")
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def cloud(self) -> TeamsCloud:
        """As the public cloud, but with this server's keys; and a token without asking Microsoft."""
        metadata = f"{self.url}/v1/.well-known/openidconfiguration"
        return TeamsCloud(with_overrides(PUBLIC, openid_metadata_url=metadata), lambda scope, tenant: self.bot_token)

    def close(self) -> None:
        self.client.close()
        self.server.shutdown()

    # -- what it was sent

    def shown(self, conversation: str) -> list[dict[str, Any]]:
        """Messages of a conversation as people see them now: updates take the place of what they update."""
        messages: dict[str, dict[str, Any]] = {}
        for where, message_id, activity in list(self.sent):
            if where == conversation and activity["type"] == "message":
                messages[message_id] = activity
        return list(messages.values())

    def cards(self, conversation: str) -> list[dict[str, Any]]:
        return [a["content"] for m in self.shown(conversation) for a in m.get("attachments", ())]

    def id_of_card(self, conversation: str) -> str:
        return [i for c, i, a in self.sent if c == conversation and a.get("attachments")][-1]

    # -- what it sends

    def token(self, **claims: Any) -> str:
        now = int(time.time())
        made = {
            "iss": _ISSUER,
            "aud": CLIENT,
            "iat": now,
            "nbf": now,
            "exp": now + 3600,
            "serviceurl": f"{self.url}/teams",
        }
        return jwt.encode(made | claims, self.key, algorithm="RS256", headers={"kid": "k1"})

    def send(self, app: str, activity: dict[str, Any], token: str | None = "") -> httpx2.Response:
        """token: "" for a good one, None for no header."""
        headers = {} if token is None else {"authorization": f"Bearer {token or self.token()}"}
        return self.client.post(f"{app}/api/messages", json=activity, headers=headers)

    def activity(self, conversation: str, **more: Any) -> dict[str, Any]:
        return {
            "channelId": "msteams", "serviceUrl": f"{self.url}/teams",
            "from": {"id": "29:1", "name": "Ada", "aadObjectId": "aad-1"},
            "recipient": {"id": f"28:{CLIENT}", "name": "refdiff"},
            "conversation": {"id": conversation, "conversationType": "channel", "tenantId": TENANT, "isGroup": True},
            "channelData": {"tenant": {"id": TENANT}},
        } | more  # fmt: skip

    def message(self, text: str, activity_id: str, conversation: str = "19:c@thread.tacv2;messageid=1",
                **more: Any) -> dict[str, Any]:  # fmt: skip
        return self.activity(conversation, type="message", id=activity_id, text=f"<at>refdiff</at> {text}",
                             textFormat="plain", **more)  # fmt: skip

    def press(self, app: str, verb: str, data: dict[str, Any], conversation: str, reply_to: str, user: str) -> Any:
        action = {"type": "Action.Execute", "verb": verb, "data": data}
        activity = self.activity(
            conversation, type="invoke", name="adaptiveCard/action", id=f"i-{time.monotonic_ns()}",
            value={"action": action, "trigger": "manual"}, replyToId=reply_to,
        ) | {"from": {"id": f"29:{user}", "name": user.title(), "aadObjectId": user}}  # fmt: skip
        answer = self.send(app, activity)
        assert answer.status_code == 200, answer.text
        return answer.json()
