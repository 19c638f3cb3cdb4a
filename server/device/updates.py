"""Newer exports on their way down: asked for every few minutes, checked before they count, used between two photos."""

from __future__ import annotations

import contextlib
import http.client
import logging
import re
import shutil
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import DamagedError, InputError, StorageError, UnavailableError
from refdiff.model.files import atomic_path, storage_error
from refdiff.server.device.delivery import TIMEOUT_S, check_server, error_of, request
from refdiff.server.device.exports import KeptExports
from refdiff.server.rounds import Rounds
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.signing import Keys

log = logging.getLogger(__name__)

_PATH = "/v1/devices/exports/"
_DIGEST = re.compile(r'(?:W/)?"([0-9a-f]{64})"')
_CHUNK = 1 << 20
_UNKNOWN = 404, "UnknownRecordError"  # status and error type where a server has published none of the product
_ROOM_BYTES = 200_000_000  # for photos and reports, as much as a server keeps for them


class Updates(Rounds):
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
        super().__init__("updates", TIMEOUT_S + 5)
        self._kept, self._product, self._url = kept, product, f"{check_server(url)}{_PATH}{quote(product, safe='')}"
        self._key, self._note, self._keys, self._every_s = key, note, keys, every_s
        self._wrong: set[str] = set()  # published and not what it should be; asked for again by the next process
        self._said = ""

    def _round(self) -> float:
        self.ask()
        self._said = ""
        return self._every_s

    def _broken(self, error: Exception) -> float:
        log.debug("updates", exc_info=error)
        self._say(str(getattr(error, "reason", error)) or type(error).__name__)
        return self._every_s

    def ask(self) -> bool:
        """Ask once, and fetch what is new; whether something was. Raises OSError, HTTPException, RefDiffError."""
        known = [*self._kept.known(), *self._wrong]
        tags = ", ".join(f'"{digest}"' for digest in known)
        try:
            with request(self._url, self._key, {"If-None-Match": tags}) as answer:
                found = _DIGEST.fullmatch(answer.headers.get("ETag", ""))
                if found is None:
                    raise InputError(f"{self._url}: is no server that has exports for devices")
                digest = found[1]
                if digest in known:
                    return False
                if self._kept.has(digest):
                    created_at = self._kept.created_at(digest)
                    with self._held_back(digest):
                        self._check_age(digest, created_at)
                else:
                    created_at = self._fetch(digest, answer)
        except urllib.error.HTTPError as e:
            said = error_of(e)
            if said.status == http.client.NOT_MODIFIED or (said.status, said.type) == _UNKNOWN:
                return False
            raise InputError(f"HTTP {said.status}: {said.message}") from e
        self._kept.offer(digest, created_at)
        return True

    def _fetch(self, digest: str, answer: http.client.HTTPResponse) -> str:
        """Write the export to its place, once all of it has arrived and is right; when it was exported."""
        self._keys.ready()
        path = self._kept.path(digest)
        try:
            length = self._length(path.parent, answer)
            with atomic_path(path) as temporary:
                self._write(temporary, answer, length)
                with self._held_back(digest):
                    return self._check(digest, temporary)
        except OSError as e:
            raise storage_error(path, e) from e

    def _length(self, folder: Path, answer: http.client.HTTPResponse) -> int:
        """How many bytes will arrive. Raises StorageError where they would fill the disk."""
        said = answer.headers.get("Content-Length", "")
        if not said.isdecimal():
            raise UnavailableError("the answer does not say how long the export is; let no proxy between change it")
        length, free = int(said), shutil.disk_usage(folder).free
        if free - length < _ROOM_BYTES:
            raise StorageError(
                f"{folder}: {free / 1e6:.0f} MB are free, the export takes {length / 1e6:.0f} MB, and "
                f"{_ROOM_BYTES / 1e6:.0f} MB are kept for photos and reports; free some space"
            )
        return length

    def _write(self, path: Path, answer: http.client.HTTPResponse, length: int) -> None:
        size = 0
        with path.open("wb") as file:
            while chunk := self._read(answer):
                size += len(chunk)
                file.write(chunk)
        if size != length:
            raise UnavailableError(f"only {size} of {length} bytes of the export arrived")

    def _read(self, answer: http.client.HTTPResponse) -> bytes:
        if self._stopping.is_set():
            raise UnavailableError("stopped")
        try:
            return answer.read(_CHUNK)
        except (OSError, http.client.HTTPException) as e:
            raise UnavailableError(f"the connection broke ({e})") from e

    def _check(self, digest: str, path: Path) -> str:
        with Export(path, self._keys, shown=f"export {digest[:12]}") as export:
            if export.digest != digest:
                raise DamagedError("the export that arrived is not the one that the server names")
            if export.manifest.product != self._product:
                raise InputError(f"the export that arrived is of product {export.manifest.product!r}")
            created_at = to_utc(export.manifest.created_at)
        self._check_age(digest, created_at)
        return created_at

    def _check_age(self, digest: str, created_at: str) -> None:
        """An old export is as well signed as a new one, so whoever answers could bring one back."""
        if created_at < (in_use := self._kept.created_at()):
            raise InputError(
                f"export {digest[:12]} of {created_at} is older than the one in use, of {in_use}; export the product again "
                "at the server, or give refdiff-edge that file as EXPORT"
            )

    @contextlib.contextmanager
    def _held_back(self, digest: str) -> Iterator[None]:
        """What is wrong with an export is said once. Anything else may pass, and is no word against it: also damage, which
        may have happened on the way."""
        try:
            yield
        except DamagedError as e:
            raise DamagedError(f"{e}; refdiff-edge fetches it again") from e
        except InputError as e:
            self._wrong.add(digest)
            raise type(e)(f"{e}; it is held back until refdiff-edge starts again") from e

    def _say(self, why: str) -> None:
        if why != self._said and not self._stopping.is_set():
            self._note(f"no newer export: {why}; still deciding by the one in use")
        self._said = why
