"""Connecting to Qdrant, embedded or server, and translating its errors."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pickle import UnpicklingError
from urllib.parse import urlsplit

from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from refdiff.memory.locks import hold_lock
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import BankBusyError, StorageError, UnavailableError
from refdiff.model.files import make_folder, storage_error

SERVER_TIMEOUT_S = 15


class QdrantConnection:
    """An open Qdrant client."""

    def __init__(self, settings: MemorySettings) -> None:
        """Open the bank under `settings.home`, or connect to the server at `settings.qdrant_url`.

        Raises BankBusyError, StorageError (embedded), UnavailableError (server).
        """
        self.embedded = settings.qdrant_url is None  # in this process, locked against others
        self.path = settings.home / "qdrant"
        self._lock = contextlib.ExitStack()
        if settings.qdrant_url is None:
            self.shown_url = ""
            self.client = self._open_embedded(settings)
        else:
            self.shown_url = _without_credentials(settings.qdrant_url)
            key = settings.qdrant_api_key
            try:
                self.client = QdrantClient(
                    url=settings.qdrant_url,
                    api_key=None if key is None else key.get_secret_value(),
                    timeout=SERVER_TIMEOUT_S,
                    check_compatibility=False,  # it asks from a thread and warns on stderr
                )
            except ValueError as e:
                raise UnavailableError(
                    f"QDRANT_URL {self.shown_url}: not an address of a Qdrant server; write http://host:6333"
                ) from e

    def close(self) -> None:
        """Close the client and release the lock."""
        try:
            self.client.close()
        finally:
            self._lock.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn Qdrant's errors into UnavailableError (server) or StorageError (embedded)."""
        try:
            yield
        except ResponseHandlingException as e:
            raise UnavailableError(
                f"Qdrant at {self.shown_url} does not answer ({type(e.source).__name__}); start it or "
                "correct QDRANT_URL, or unset QDRANT_URL to use the embedded bank"
            ) from e
        except UnexpectedResponse as e:
            if e.status_code in (401, 403):
                raise UnavailableError(
                    f"Qdrant at {self.shown_url} refuses the key ({e.status_code}); set QDRANT_API_KEY"
                ) from e
            raise UnavailableError(f"Qdrant at {self.shown_url} failed: {e}; see its log") from e
        except ResourceExhaustedResponse as e:
            raise UnavailableError(f"Qdrant at {self.shown_url} is overloaded ({e}); try again later") from e
        except (sqlite3.Error, OSError) as e:
            raise storage_error(self.path, e) from e

    def _open_embedded(self, settings: MemorySettings) -> QdrantClient:
        home, wait_s = make_folder(settings.home), settings.bank_wait_s
        busy = BankBusyError(
            f"the golden bank in {self.path} is in use by another process (waited {wait_s:g} s); "
            "stop that process (perhaps `refdiff serve`), raise REFDIFF_BANK_WAIT_S, or run a Qdrant server "
            "and set QDRANT_URL"
        )
        # Qdrant's own lock fails at once, and only after reading everything; this one waits, and comes first
        self._lock.enter_context(hold_lock(home / "qdrant.lock", busy, wait_s=wait_s))
        try:
            self._drop_unborn_bank()
            # our own lock around every call keeps threads apart, so SQLite's thread check is not needed
            return QdrantClient(path=str(self.path), force_disable_check_same_thread=True)
        except BaseException as e:
            self._lock.close()
            if isinstance(e, RuntimeError) and "already accessed" in str(e):
                raise busy from e
            if isinstance(e, sqlite3.Error | OSError | ValueError | KeyError | EOFError | UnpicklingError):
                raise storage_error(self.path, e) from e
            raise

    def _drop_unborn_bank(self) -> None:
        """Qdrant writes its first meta.json in place: a crash or a full disk then leaves an empty file."""
        meta = self.path / "meta.json"
        if meta.is_file() and meta.stat().st_size == 0:
            if (self.path / "collection").exists():
                raise StorageError(f"{meta}: the file is damaged (empty); restore it from a backup")
            meta.unlink()


def _without_credentials(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    return f"{parts.scheme + '://' if parts.scheme else ''}{parts.netloc.rpartition('@')[2]}"
