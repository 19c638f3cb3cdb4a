"""Connecting to Qdrant, embedded or server, and translating its errors."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from refdiff.memory.golden_bank.bank_file import BankFile
from refdiff.memory.golden_bank.old_bank import move_old_bank
from refdiff.memory.locks import hold_lock, hold_shared_lock
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import BankBusyError, UnavailableError
from refdiff.model.files import is_read_only, open_folder, storage_error

log = logging.getLogger(__name__)
SERVER_TIMEOUT_S = 15
_BROKEN_OFF = {"ReadTimeout", "WriteTimeout", "ReadError", "WriteError", "RemoteProtocolError"}  # of the client's HTTP


class QdrantConnection:
    """An open Qdrant client: of a server, or in memory over the bank file of the home folder."""

    def __init__(self, settings: MemorySettings, shared: bool = False) -> None:
        """Open the bank file under `settings.home`, or connect to the server at `settings.qdrant_url`.

        shared: let other processes that share it have the bank file too.
        Raises BankBusyError, StorageError (embedded), UnavailableError (server).
        """
        self.shared, self.settings = shared, settings
        self.path = settings.home / "goldens.sqlite"
        self.file: BankFile | None = None  # None: Qdrant is a server
        self._lock = contextlib.ExitStack()
        if settings.qdrant_url is None:
            self.shown_url = ""
            self.file = self._open_file(settings)
            self.client = QdrantClient(":memory:")
        else:
            self.shown_url = _without_credentials(settings.qdrant_url)
            key = settings.qdrant_api_key
            try:
                with (
                    warnings.catch_warnings()
                ):  # http:// with a key is usual inside a cluster; the manual speaks of TLS
                    warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
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
        """Close the client and the file, and release the lock."""
        with self._lock:
            if self.file is not None:
                self.file.close()
            self.client.close()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn Qdrant's errors into UnavailableError (server) or StorageError (embedded)."""
        try:
            yield
        except (json.JSONDecodeError, AssertionError) as e:  # how the client takes a page, or JSON without a result
            raise self._no_qdrant() from e
        except ResponseHandlingException as e:
            source = type(e.source).__name__
            if isinstance(e.source, ValidationError):
                raise self._no_qdrant() from e
            if source in _BROKEN_OFF:
                raise UnavailableError(
                    f"Qdrant at {self.shown_url} broke off or took over {SERVER_TIMEOUT_S} s ({source}); see its log and "
                    "load, then repeat the command: what is enrolled already is not enrolled twice"
                ) from e
            raise UnavailableError(
                f"Qdrant at {self.shown_url} does not answer ({source}); start it or "
                "correct QDRANT_URL, or unset QDRANT_URL to use the embedded bank"
            ) from e
        except UnexpectedResponse as e:
            said = f"{e.status_code}: {_reason(e)}"
            if e.status_code in (401, 403):
                raise UnavailableError(
                    f"Qdrant at {self.shown_url} refuses the key ({said}); set QDRANT_API_KEY"
                ) from e
            if e.status_code == 404:
                raise UnavailableError(
                    f"Qdrant at {self.shown_url} has lost the golden samples ({said}); restore its snapshot, or start "
                    "this program anew and enrol them again"
                ) from e
            raise UnavailableError(f"Qdrant at {self.shown_url} failed ({said}); see its log") from e
        except ResourceExhaustedResponse as e:
            raise UnavailableError(f"Qdrant at {self.shown_url} is overloaded ({e}); try again later") from e
        except OSError as e:
            raise storage_error(self.path, e) from e

    def _no_qdrant(self) -> UnavailableError:
        return UnavailableError(
            f"what answers at {self.shown_url} is no Qdrant that this version knows; correct QDRANT_URL, or use "
            "a Qdrant at most one minor version from that in compose.yaml"
        )

    def _open_file(self, settings: MemorySettings) -> BankFile:
        home, wait_s = open_folder(settings.home), settings.bank_wait_s
        if is_read_only(home):  # nothing can be changed there, so nothing is locked or moved
            return BankFile(self.path)
        busy = BankBusyError(
            f"the golden bank in {self.path} is in use by another process (waited {wait_s:g} s); "
            "stop that process (perhaps `refdiff serve`), raise REFDIFF_BANK_WAIT_S, or run a Qdrant server "
            "and set QDRANT_URL"
        )
        # the name that versions with a bank in `qdrant/` lock too: an old and a new process keep each other out
        hold = hold_shared_lock if self.shared else hold_lock
        self._lock.enter_context(hold(home / "qdrant.lock", busy, wait_s=wait_s))
        with contextlib.ExitStack() as opened:
            opened.push(self._lock)
            file = BankFile(self.path)
            opened.callback(file.close)
            aside = move_old_bank(home / "qdrant", file)
            opened.pop_all()
        if aside:
            log.info("the golden samples are in %s now; %s is kept and may be deleted", self.path, aside)
        return file


def _without_credentials(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    return f"{parts.scheme + '://' if parts.scheme else ''}{parts.netloc.rpartition('@')[2]}"


def _reason(answer: UnexpectedResponse) -> str:
    """What the server said, or the words of its status."""
    try:
        return str(json.loads(answer.content)["status"]["error"])
    except (ValueError, LookupError, TypeError):
        return answer.content.decode(errors="replace").strip()[:200] or answer.reason_phrase
