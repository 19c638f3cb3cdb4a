"""Locks between processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refdiff.model.errors import RefDiffError
from refdiff.model.files import leftovers, storage_error

_ABANDONED_S = 3600.0  # no file is written and no new lock waited for that long


@contextlib.contextmanager
def hold_lock(path: Path, busy: RefDiffError, *, wait_s: float = 0.0, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path` against other processes until the block ends, or the process does.

    wait_s: how long to wait for another holder. remove: delete the file at the end, so files of locks with many names do
    not pile up; only for locks that nobody waits for. Raises `busy` if another process still holds it, StorageError if the
    file cannot be opened.
    """
    lock = FileLock(
        path, mode=0o600, thread_local=False
    )  # the thread that closes the owner may not be the one that opened it
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as e:
        raise busy from e
    except OSError as e:
        raise storage_error(path, e) from e
    try:
        yield
    finally:
        if remove:
            path.unlink(missing_ok=True)
        lock.release()


def remove_abandoned(home: Path) -> int:
    """Remove temporary files and locks of inspections that killed processes left in a home folder; how many.

    Safe beside other processes: only what is an hour old and, of locks, what nobody holds. Raises OSError.
    """
    removed = 0
    before = time.time() - _ABANDONED_S
    folders = [home, *(f for room in ("images", "inspections", "lines") for f in _folders(home / room))]
    for path in (p for folder in folders for p in leftovers(folder)):
        if _changed_at(path) < before:
            path.unlink(missing_ok=True)
            removed += 1
    for path in (home / "locks").glob("*.lock"):
        if _changed_at(path) < before:
            with contextlib.suppress(Timeout, OSError), FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
                removed += 1
    return removed


def _folders(room: Path) -> list[Path]:
    return [room, *(p for p in room.iterdir() if p.is_dir())] if room.is_dir() else []


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
