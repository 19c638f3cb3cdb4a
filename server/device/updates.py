"""Newer exports on their way down: asked for every few minutes, checked before they count, used between two photos."""

from __future__ import annotations

import http.client
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self
from urllib.parse import quote

from refdiff.model.errors import DamagedError, InputError, RefDiffError, UnavailableError
from refdiff.model.files import atomic_path, storage_error
from refdiff.server.device.delivery import TIMEOUT_S, ask, check_server, message_of
from refdiff.server.device.exports import KeptExports
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.signing import Keys

log = logging.getLogger(__name__)

_PATH = "/v1/devices/exports/"
_DIGEST = re.compile(r'(?:W/)?"([0-9a-f]{64})"')
_CHUNK = 1 << 20
_NONE_PUBLISHED = 404


class Updates:
    """Asks in its own thread. Use as a context manager."""

    def __init__(
        self,
        kept: KeptExports,
        product: str,
        url: str,
        key: str | None,
        note: Callable[[str], None],
        *,
        keys: Keys,
        every_s: float,
    ) -> None:
        """key: API key of the role inspector. note: called with what a person should know. keys: exports are checked by
        them."""
        self._kept, self._product, self._url = kept, product, f"{check_server(url)}{_PATH}{quote(product, safe='')}"
        self._key, self._note, self._keys, self._every_s = key, note, keys, every_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updates", daemon=True)
        self._wrong: set[str] = set()  # came down and was not what it should be; asked for again by the next process
        self._said = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT_S + 5)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.ask()
                self._said = ""
            except Exception as e:  # the next time may be better
                log.debug("updates", exc_info=True)
                self._say(str(getattr(e, "reason", e)) or type(e).__name__)
            self._stopping.wait(self._every_s)

    def ask(self) -> bool:
        """Ask once, and fetch what is new; whether something was. Raises OSError, HTTPException, RefDiffError."""
        known = [*self._kept.known(), *self._wrong]
        tags = ", ".join(f'"{digest}"' for digest in known)
        request = urllib.request.Request(self._url, headers={"If-None-Match": tags, "User-Agent": "refdiff-edge"})
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        try:
            with ask(request) as answer:
                found = _DIGEST.fullmatch(answer.headers.get("ETag", ""))
                if found is None:
                    raise InputError(f"{self._url}: is no server that has exports for devices")
                digest = found[1]
                if digest in known:
                    return False
                if not self._kept.has(digest):
                    self._fetch(digest, answer)
        except urllib.error.HTTPError as e:
            with e:
                if e.code in (http.client.NOT_MODIFIED, _NONE_PUBLISHED):
                    return False
                raise InputError(f"HTTP {e.code}: {message_of(e.read(64_000))}") from e
        self._kept.offer(digest)
        return True

    def _fetch(self, digest: str, answer: http.client.HTTPResponse) -> None:
        """Write the export to its place, once all of it has arrived and is right."""
        path = self._kept.path(digest)
        try:
            with atomic_path(path) as temporary:
                self._write(temporary, answer)
                self._check(digest, temporary)
        except OSError as e:
            raise storage_error(path, e) from e

    def _write(self, path: Path, answer: http.client.HTTPResponse) -> None:
        size, length = 0, answer.headers.get("Content-Length", "")
        with path.open("wb") as file:
            while chunk := self._read(answer):
                size += len(chunk)
                file.write(chunk)
        if not length.isdecimal() or size != int(length):
            raise UnavailableError(f"only {size} of {length or '?'} bytes of the export arrived")

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        if self._stopping.is_set():
            raise UnavailableError("stopped")
        try:
            return answer.read(_CHUNK)
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(f"the connection broke ({e})") from e

    def _check(self, digest: str, path: Path) -> None:
        try:
            with Export(path, self._keys, shown=f"export {digest[:12]}") as export:
                if export.digest != digest:
                    raise DamagedError("the export that arrived is not the one that the server names")
                if export.manifest.product != self._product:
                    raise InputError(f"the export that arrived is of product {export.manifest.product!r}")
        except RefDiffError:
            self._wrong.add(digest)
            raise

    def _say(self, why: str) -> None:
        if why != self._said and not self._stopping.is_set():
            self._note(f"no newer export: {why}; still deciding by the one in use")
        self._said = why
