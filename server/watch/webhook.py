"""Webhook messages: one HTTP POST per event, in order, kept in the journal until the receiver accepts them.

Signed according to the Standard Webhooks specification (standardwebhooks.com): HMAC-SHA256 over "id.timestamp.body". The id
is the inspection id, by which a receiver can drop duplicates: a crash after the response repeats a message.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx2

from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.watch import Message, WatchJournal
from refdiff.model.errors import InputError, StorageError
from refdiff.server.rounds import Rounds

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
BACKOFF = Backoff(first_s=0.5, longest_s=60.0)
_PAUSE_S = 5.0  # after an error of our own; and before another look at when a message is due
# "gone", and errors of this message itself; anything else may pass once the receiver is fixed or has the right key
_FINAL = (400, 410, 413, 422)


def signing_key(secret: str) -> bytes:
    """The signing key of a secret: base64 after `whsec_`, otherwise the text itself. Raises InputError."""
    if secret.startswith("whsec_"):
        try:
            key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error as e:
            raise InputError("REFDIFF_WEBHOOK_SECRET: the text after whsec_ is not base64") from e
    else:
        key = secret.encode()
    if len(key) < 16:
        raise InputError("REFDIFF_WEBHOOK_SECRET is too short; create one: openssl rand -base64 32")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the header `webhook-signature`."""
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def check_url(url: str) -> str:
    """Returns the URL. Raises InputError, which does not repeat it, unless it is a valid http(s) URL."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL):  # unclosed brackets, a port above 65535
        good = False
    if not good:
        raise InputError("--webhook: this is no URL; give one like https://host/path")
    return url


class Webhook(Rounds):
    """Sends in its own thread, so a slow receiver never delays inspections. Use as a context manager."""

    def __init__(self, journal: WatchJournal, url: str, secret: str, note: Callable[[str], None]) -> None:
        """note: called with what a person should know (receiver down, message refused)."""
        super().__init__("webhook", TIMEOUT_S + 5)
        self._journal, self._url, self._key, self._note = journal, check_url(url), signing_key(secret), note
        self._shown = f"{urlsplit(url).scheme}://{urlsplit(url).hostname}"
        self._client = httpx2.Client(timeout=TIMEOUT_S, follow_redirects=False)
        self._down = False

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._client.close()

    def drain(self, seconds: float) -> None:
        """Wait until everything is sent, at most so many seconds."""
        self._wait_until(lambda: self._journal.next_message() is None, seconds)

    def _round(self) -> float | None:
        message = self._journal.next_message()
        if message is None:
            return None
        if (early := message.next_try - time.time()) > 0:
            return min(early, _PAUSE_S)
        self._send(message)
        return 0.0

    def _broken(self, error: Exception) -> float:
        if isinstance(error, StorageError):  # the watcher meets it too, and stops if it persists
            self._note(f"webhook: {error}")
        else:
            log.error("webhook", exc_info=error)
            self._note(f"webhook: internal error ({type(error).__name__}: {error}); retrying")
        return _PAUSE_S

    def _send(self, message: Message) -> None:
        body = json.dumps(message.event, ensure_ascii=False).encode()
        message_id, now = str(message.event["inspection_id"]), int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "refdiff",
            "webhook-id": message_id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self._key, message_id, now, body),
        }
        try:
            status = self._client.post(self._url, content=body, headers=headers).status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
            self._failed(message, type(e).__name__)
            return
        if 200 <= status < 300:
            self._journal.message_done(message.seq, "sent")
            if self._down:
                self._note(f"webhook {self._shown} is available again")
            self._down = False
        elif status in _FINAL:
            self._journal.message_done(message.seq, "refused", f"HTTP {status}")
            self._note(f"webhook {self._shown} refused {message_id} (HTTP {status}); the message is not repeated")
        else:
            self._failed(message, f"HTTP {status}")

    def _failed(self, message: Message, error: str) -> None:
        self._journal.message_failed(message.seq, error, BACKOFF.wait_s(message.tries + 1))
        if not self._down:
            self._note(f"webhook {self._shown} is unavailable ({error}); messages are kept and sent later")
        self._down = True
