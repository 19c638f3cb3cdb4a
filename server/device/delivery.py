"""Reports on their way to the server: kept on the disk until it has taken them, in the order of the inspections.

The server knows a report by its inspection id, so a message that is repeated after a crash files nothing twice.
"""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from refdiff.memory.journals.backoff import Backoff
from refdiff.model.errors import InputError, StorageError
from refdiff.server.device.spool import DIFFERENCE, PHOTO, REPORT, Entry, Spool
from refdiff.server.rounds import Rounds

log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
BACKOFF = Backoff(first_s=0.5, longest_s=60.0)
# errors of this message itself; anything else may pass once the server is up, is updated, or has the right key
_FINAL = (400, 413, 422)
_FILED, _NOT_OURS = 201, 502
_PATH = "/v1/devices/reports"
_SHOWN = 300  # characters of an answer
_MOST_BYTES = 64_000  # read of an answer


def check_server(url: str) -> str:
    """The address without a slash at its end. Raises InputError unless it is http(s)."""
    try:
        parts = urlsplit(url)
        named = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of brackets
        named = False
    if not named:
        raise InputError("--server: is no address; give one like https://host:8000")
    return url.rstrip("/")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are not followed: the key and the photo are for the address that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def request(url: str, key: str | None, headers: Mapping[str, str], body: bytes | None = None) -> Any:
    """The answer, as `urlopen` gives it: to GET, with a body to POST. key: API key. Raises OSError, HTTPException;
    HTTPError also for a redirect."""
    asked = urllib.request.Request(url, body, {"User-Agent": "refdiff-edge", **headers})
    if key:
        asked.add_header("Authorization", f"Bearer {key}")
    https = urllib.request.HTTPSHandler(context=ssl.create_default_context())
    return urllib.request.build_opener(_NoRedirect, https).open(asked, timeout=TIMEOUT_S)


@dataclass(frozen=True)
class ServerError:
    """type: as RefDiff servers name it; "" if something else answers."""

    status: int
    type: str
    message: str


def error_of(error: urllib.error.HTTPError) -> ServerError:
    """What the answer says; the rest of it is not read."""
    with error:
        data = error.read(_MOST_BYTES)
    said = _json(data, "error")
    if isinstance(said, dict) and "message" in said:
        return ServerError(error.code, str(said.get("type", "")), str(said["message"])[:_SHOWN])
    return ServerError(error.code, "", data[:_SHOWN].decode("utf-8", "replace"))


class Delivery(Rounds):
    """Sends in its own thread, so that a slow server never delays inspections. Use as a context manager."""

    def __init__(self, spool: Spool, url: str, key: str | None, note: Callable[[str], None]) -> None:
        """key: API key of the role inspector. note: called with what a person should know."""
        super().__init__("delivery", TIMEOUT_S + 5)
        self._spool, self._url, self._key, self._note = spool, check_server(url), key, note
        self._failures = 0
        self._said = ""

    def drain(self, seconds: float) -> None:
        """Wait until nothing waits any more, at most so many seconds."""
        self._wait_until(lambda: not self._spool.waiting(), seconds)

    def _broken(self, error: Exception) -> float:
        log.debug("delivery", exc_info=error)
        named = isinstance(error, StorageError | InputError)
        return self._failed(f"{error}" if named else f"{type(error).__name__}: {error}")

    def _round(self) -> float | None:
        """Send all that waits, until the server cannot take something."""
        for entry in self._spool.waiting():
            if self._stopping.is_set():
                return None
            try:
                status, answer = self._post(entry)
            except (OSError, http.client.HTTPException) as e:
                return self._failed(str(getattr(e, "reason", e)) or type(e).__name__)
            if status == _FILED:
                self._spool.sent(entry)
                if self._failures:
                    self._note(f"server {self._shown} is available again")
                self._failures, self._said = 0, ""
            elif status in _FINAL:
                self._spool.refuse(entry, f"HTTP {status}: {answer}")
                self._note(
                    f"server {self._shown} refused {entry.inspection_id} (HTTP {status}: {answer}); kept in refused/"
                )
            else:
                return self._failed(f"HTTP {status}: {answer}")
        return None

    def _failed(self, why: str) -> float:
        """Seconds until the next try."""
        self._failures += 1
        if why != self._said:
            self._note(f"server {self._shown}: {why}; reports are kept and sent later")
        self._said = why
        return BACKOFF.wait_s(self._failures)

    @property
    def _shown(self) -> str:
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname}"

    def _post(self, entry: Entry) -> tuple[int, str]:
        """Status and, where that is an error, the message of the answer: `_FILED` only if a server of RefDiff says that it
        has this very report, as a login page of the network is answered 200, too. Raises OSError, HTTPException."""
        files = {
            "report": (REPORT, entry.read(REPORT)),
            "image": (entry.filename, entry.read(PHOTO)),
            "difference": (DIFFERENCE, entry.read(DIFFERENCE)),
        }
        body, kind = form(files)
        try:
            with request(f"{self._url}{_PATH}", self._key, {"Content-Type": kind}, body) as answer:
                filed = _json(answer.read(_MOST_BYTES), "inspection_id")
                if int(answer.status) == _FILED and filed == entry.inspection_id:
                    return _FILED, ""
                return _NOT_OURS, "what answers is no RefDiff server; check the address"
        except urllib.error.HTTPError as e:
            said = error_of(e)
            return said.status, said.message


def _json(answer: bytes, name: str) -> object:
    """A value of a JSON object; None for any other answer."""
    try:
        return json.loads(answer)[name]
    except (ValueError, KeyError, TypeError):
        return None


def form(files: Mapping[str, tuple[str, bytes]]) -> tuple[bytes, str]:
    """Body and content type of a multipart form: field -> file name and content."""
    boundary = secrets.token_hex(16)
    parts = []
    for field, (name, data) in files.items():
        safe = "".join(c if c.isprintable() and c not in '"\\' else "_" for c in name)
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{safe}"\r\n\r\n'
        parts += [head.encode("utf-8", "replace"), data, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"
