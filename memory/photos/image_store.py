"""Image files as they arrived, under the sha256 of their bytes. Knows nothing about what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from io import BufferedIOBase
from pathlib import Path

from refdiff.model.errors import DamagedError, InputError, UnknownRecordError
from refdiff.model.files import TEMPORARY, make_folder, storage_error, write_atomic

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Whether it is 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def check_sha256(sha256: str) -> str:
    """`sha256` itself if it is 64 lower-case hex digits, else InputError: no path is made of user text."""
    if not isinstance(sha256, str) or not is_sha256(sha256):
        raise InputError(f"{sha256!r} is not an image id; an image id is the sha256 of a file, 64 hex digits")
    return sha256


class ImageStore(ABC):
    """Photos by sha256, written once and never changed. Safe to share between threads and processes.

    Every method raises InputError where an id is none, and StorageError or UnavailableError where the disk or the server
    fails.
    """

    @abstractmethod
    def where(self, sha256: str) -> str:
        """Where the photo of that id is or would be, for people: a path or a URL."""

    @abstractmethod
    def ids(self) -> Iterator[str]:
        """The ids of all images that are kept, in no order."""

    @abstractmethod
    def put(self, data: bytes) -> str:
        """Keep `data`, durably on return, and return its sha256. The same bytes again change nothing, but mark them as used.

        Where it fails, nothing half-written is visible.
        """

    @abstractmethod
    def opened(self, sha256: str) -> AbstractContextManager[BufferedIOBase]:
        """What is kept under that id, damaged or not, to be read once, in pieces. Raises UnknownRecordError if absent."""

    def get(self, sha256: str) -> bytes:
        """The bytes of that image. Raises UnknownRecordError if absent, DamagedError."""
        with self.opened(sha256) as file:
            data = file.read()
        self._compare(sha256, hashlib.sha256(data).hexdigest())
        return data

    def check(self, sha256: str) -> None:
        """As `get`, but without holding the image in memory."""
        with self.opened(sha256) as file:
            self._compare(sha256, hashlib.file_digest(file, "sha256").hexdigest())

    def _compare(self, sha256: str, found: str) -> None:
        if found != sha256:
            raise DamagedError(
                f"{self.where(sha256)}: the image is damaged (its sha256 differs from its name); send the photo again"
            )

    @abstractmethod
    def size(self, sha256: str) -> int | None:
        """In bytes; None if it is not there."""

    @abstractmethod
    def used_at(self, sha256: str) -> float | None:
        """When it was written or marked as used, whichever was later (s, Unix); None if it is not there."""

    @abstractmethod
    def mark_used(self, sha256: str) -> bool:
        """Keep a photo from being removed within the next hour: a record that names it follows. False if it is not there."""

    @abstractmethod
    def remove_unused(self, sha256: str, since: float) -> int | None:
        """Remove a photo that was neither written nor marked as used since that point in time (s, Unix).

        Its size in bytes; 0 if it is not there, None if it was used. If it is killed meanwhile, `put_back` undoes it.
        """

    @abstractmethod
    def put_back(self, since: float) -> int:
        """Put back what `remove_unused` of a process that was killed, or lost its store, had not removed for good: how many.

        Also forgets marks of use older than `since` that newer ones have made needless. since: as of `remove_unused`. Safe
        while another process removes photos.
        """


class FolderImages(ImageStore):
    """Files `root/<first two digits>/<sha256>`; the folder is made with the first one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, sha256: str) -> Path:
        """Where the file of that id is or would be. Raises InputError if `sha256` is not one."""
        check_sha256(sha256)
        return self.root / sha256[:2] / sha256

    def where(self, sha256: str) -> str:
        return str(self.path(sha256))

    def ids(self) -> Iterator[str]:
        yield from (path.name for path in self.root.glob("[0-9a-f][0-9a-f]/*") if is_sha256(path.name))

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.path(sha256)
        try:
            if self._holds(path, data) and self.mark_used(sha256):
                return sha256
            # a differing file under this name is damaged: writing it anew repairs it
            make_folder(path.parent)
            write_atomic(path, data)
        except OSError as e:
            raise storage_error(path, e) from e
        return sha256

    @staticmethod
    def _holds(path: Path, data: bytes) -> bool:
        """Raises OSError."""
        try:
            return path.is_file() and path.read_bytes() == data
        except FileNotFoundError:  # it is being removed
            return False

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[BufferedIOBase]:
        path = self.path(sha256)
        try:
            file = path.open("rb")
        except FileNotFoundError as e:
            raise UnknownRecordError(f"image {sha256[:12]}... is not in {self.root}; send the photo again") from e
        except OSError as e:
            raise storage_error(path, e) from e
        with file:
            try:
                yield file
            except OSError as e:
                raise storage_error(path, e) from e

    def size(self, sha256: str) -> int | None:
        about = self._stat(sha256)
        return None if about is None else about.st_size

    def used_at(self, sha256: str) -> float | None:
        about = self._stat(sha256)
        return None if about is None else about.st_mtime

    def _stat(self, sha256: str) -> os.stat_result | None:
        path = self.path(sha256)
        try:
            return path.stat()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise storage_error(path, e) from e

    def mark_used(self, sha256: str) -> bool:
        try:
            os.utime(self.path(sha256))
        except FileNotFoundError:
            return False
        except OSError:  # a read-only home, where nothing is removed either
            return True
        return True

    def remove_unused(self, sha256: str, since: float) -> int | None:
        path = self.path(sha256)
        aside = path.with_name(f"{TEMPORARY}{sha256}-{secrets.token_hex(8)}")
        try:
            if path.stat().st_mtime >= since:
                return None
            path.rename(aside)
            about = aside.stat()
            if about.st_mtime >= since:  # marked just before: whoever did so relies on it
                if not path.exists():
                    aside.rename(path)
                aside.unlink(missing_ok=True)
                return None
            aside.unlink()
        except FileNotFoundError:
            return 0
        except OSError as e:
            raise storage_error(path, e) from e
        return about.st_size

    def put_back(self, since: float) -> int:
        put_back = 0
        for aside in self.root.glob(f"[0-9a-f][0-9a-f]/{TEMPORARY}*-*"):
            path = aside.with_name(aside.name.removeprefix(TEMPORARY).partition("-")[0])
            try:
                # without a mark it was to go, and goes as what any killed process leaves
                if is_sha256(path.name) and aside.stat().st_mtime >= since and not path.exists():
                    aside.rename(path)
                    put_back += 1
            except FileNotFoundError:  # its process lives
                continue
            except OSError as e:
                raise storage_error(path, e) from e
        return put_back
