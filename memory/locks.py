"""Locks between processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refdiff.model.errors import RefDiffError
from refdiff.model.files import make_folder, storage_error

try:
    import fcntl
except ImportError:  # Windows: its locks cannot be shared
    fcntl = None  # type: ignore[assignment]

_LOOK_S = 0.05  # between two tries

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


@contextlib.contextmanager
def hold_shared_lock(path: Path, busy: RefDiffError, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path` together with others that share it, and against those that hold it alone by `hold_lock`.

    Raises `busy` if one still holds it alone after wait_s, StorageError if the file cannot be opened. Where locks cannot
    be shared (Windows), it is held alone.
    """
    if fcntl is None:
        with hold_lock(path, busy, wait_s=wait_s):
            yield
        return
    with _flocked(path, busy, wait_s, shared=True, remove=False):
        yield


@contextlib.contextmanager
def hold_named_lock(path: Path, busy: RefDiffError, *, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
    """As `hold_lock` or `hold_shared_lock`, for locks with many names, also such that are waited for: the last holder
    deletes the file."""
    if fcntl is None:
        with hold_lock(path, busy, wait_s=wait_s):
            yield
        return
    with _flocked(path, busy, wait_s, shared, remove=True):
        yield


@contextlib.contextmanager
def _flocked(path: Path, busy: RefDiffError, wait_s: float, shared: bool, remove: bool) -> Iterator[None]:
    if not path.parent.exists():
        make_folder(path.parent)
    deadline = time.monotonic() + wait_s
    try:
        while (file := _try_flock(path, shared)) is None:
            if time.monotonic() >= deadline:
                raise busy
            time.sleep(_LOOK_S)
    except OSError as e:
        raise storage_error(path, e) from e
    try:
        yield
    finally:
        if remove:
            with contextlib.suppress(OSError):  # others share it still: they will
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink(missing_ok=True)
        os.close(file)


def _try_flock(path: Path, shared: bool) -> int | None:
    """The descriptor of the locked file; None while another process holds it, or has just deleted it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file), path.stat()):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def holds_lock(path: Path) -> bool:
    """Whether this process holds the lock file `path`."""
    return path.resolve() in _held
