"""Locks between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refdiff.model.errors import RefDiffError
from refdiff.model.files import make_folder, storage_error

_held: set[Path] = set()  # by this process


@contextlib.contextmanager
def hold_lock(path: Path, busy: RefDiffError, *, wait_s: float = 0.0, remove: bool = False) -> Iterator[None]:
    """Hold the lock file `path` against other processes until the block ends, or the process does.

    wait_s: how long to wait for another holder. remove: delete the file at the end, so files of locks with many names do
    not pile up; only for locks that nobody waits for. Raises `busy` if another process still holds it, StorageError if the
    file cannot be opened.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    # the thread that closes the owner may not be the one that opened it
    lock = FileLock(path, mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout as e:
        raise busy from e
    except OSError as e:
        raise storage_error(path, e) from e
    _held.add(place := path.resolve())
    try:
        yield
    finally:
        _held.discard(place)
        if remove:
            path.unlink(missing_ok=True)
        lock.release()


def holds_lock(path: Path) -> bool:
    """Whether this process holds the lock file `path`."""
    return path.resolve() in _held
