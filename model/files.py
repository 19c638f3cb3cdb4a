"""Files on disk: atomic writes, private folders, and one wording for full disks, permissions, damage and locks."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from refdiff.model.errors import NO_MEMORY, RefDiffError, StorageError, UnavailableError, out_of_memory

TEMPORARY = ".tmp-"
_SCRATCH = f"{TEMPORARY}refdiff-"
_HELD = "held.lock"  # in a scratch folder, by the process that uses it
_ABANDONED_S = 3600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_FILES = {errno.EMFILE, errno.ENFILE}
SHORTAGES = _NO_FILES | {errno.ENOMEM}  # of the machine: they say nothing about the file that was opened
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def atomic_path(path: Path, *, private: bool = True) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` when the block ends and is removed if it fails.

    A reader sees the old file or all of the new one, also after a crash or a power cut. private: readable by the
    owner alone, else as the umask allows. Raises OSError.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666))
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name must be durable too; Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_atomic(path: Path, data: bytes, *, private: bool = True) -> None:
    """Write `data` as `path`, all of it or nothing; see `atomic_path`. Raises StorageError (disk full, not writable)."""
    try:
        with atomic_path(path, private=private) as temporary:
            temporary.write_bytes(data)
    except OSError as e:
        raise storage_error(path, e) from e


def is_leftover(path: Path) -> bool:
    """Whether a file is, by its name, what a writer works on or a crashed one left."""
    return path.name.startswith(TEMPORARY)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A private folder in `parent`, which is removed when the block ends. Raises OSError.

    First those are removed that killed processes left in `parent`: nobody holds them, and nobody wrote there for an hour.
    """
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
    before = folder.stat().st_mtime - _ABANDONED_S  # by the clock of the disk, which may be another machine's
    for left in parent.glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError, Timeout, RuntimeError):
            if not left.is_symlink() and max(p.lstat().st_mtime for p in (left, *left.rglob("*"))) < before:
                with FileLock(left / _HELD, timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)  # Windows keeps a lock's file while it is held
    held = FileLock(folder / _HELD, thread_local=False)
    try:
        with contextlib.suppress(OSError, RuntimeError):  # a file system without locks
            held.acquire(timeout=0)
        yield folder
    finally:
        held.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what crashed writers left in `folder`; only where no other process is writing."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


def mark_used(path: Path) -> None:
    """Note that a file of a cache was used now, for `make_room`."""
    with contextlib.suppress(OSError):
        os.utime(path)


def make_room(root: Path, most_bytes: int, keep: Path | None = None) -> int:
    """Remove files below a cache folder where they take more than `most_bytes`, until a tenth of it is free; those go first
    that were written or used (`mark_used`) longest ago. Folders left empty go too. Returns the bytes that remain.

    keep: a folder in which nothing is removed, however much it takes.

    Other processes may write, read and remove there meanwhile.
    """
    found = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            with contextlib.suppress(OSError):
                about = path.stat()
                found.append((about.st_mtime_ns, about.st_size, path))
    total = sum(size for _, size, _ in found)
    if total > most_bytes:
        for _, size, path in sorted(found):
            if total <= most_bytes * 9 // 10:
                break
            if path.parent == keep:
                continue
            total -= size
            with contextlib.suppress(OSError):
                path.unlink()
                if path.parent != root:
                    path.parent.rmdir()
    return total


def storage_error(path: Path, error: Exception) -> StorageError:
    """The StorageError for `error` at `path`: an OSError, an sqlite3.Error, or damage found while reading."""
    return StorageError(f"{path}: {_explain(path, error)}")


def outage(error: BaseException) -> UnavailableError | None:
    """`error` as what the machine lacks just now (memory, disk, open files), which ends; None for any other error."""
    if isinstance(error, UnavailableError):
        return error
    if isinstance(error, RefDiffError):
        return None
    if isinstance(error, sqlite3.Error):
        return storage_error(Path("a database"), error)
    if out_of_memory(error):
        return UnavailableError(NO_MEMORY)
    if isinstance(error, OSError):
        if error.errno in _NO_FILES:
            return UnavailableError(f"too many files and connections are open ({error}); raise the limit (ulimit -n)")
        # without a number it is a library's own complaint
        if error.errno is not None or isinstance(error, TimeoutError):
            return storage_error(Path(str(error.filename or "the system")), error)
    return None


def _explain(path: Path, error: Exception) -> str:
    text = str(error) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "disk is full" in text:
        return f"the disk is full ({text}); free some space or point REFDIFF_HOME to another disk"
    if number in _DENIED or "readonly" in text or "read-only" in text or "unable to open" in text:
        return f"cannot be written ({text}); check the owner and the permissions, or set REFDIFF_HOME"
    if isinstance(error, sqlite3.Error) and "locked" in text:
        return f"another process keeps it locked ({text}); try again, or stop that process"
    if "disk I/O" in text and _is_full(path):
        return f"the disk is full ({text}); free some space or point REFDIFF_HOME to another disk"
    if isinstance(error, OSError) or "disk I/O" in text:
        return f"reading or writing failed ({text}); check the disk (full, quota, file size limit, unplugged)"
    return f"the file is damaged ({text}); restore it from a backup or move it away"


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path if path.exists() else path.parent).free < 1_000_000
    except OSError:
        return False


def make_private(path: Path) -> None:
    """Create the file `path` if it is new, and let only its owner read it, whatever the umask and the folder allow.

    A file of somebody else, or on a read-only disk, stays as it is. Raises StorageError.
    """
    try:
        try:
            # never opens a file that is there: closing it would drop the locks that SQLite holds on it in this process
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if os.name == "posix" and path.stat().st_mode & 0o077:
                with contextlib.suppress(OSError):
                    path.chmod(0o600)
    except OSError as e:
        raise storage_error(path, e) from e


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, readable by the owner alone (photos of parts are confidential).

    Raises StorageError if that fails or the folder is not writable.
    """
    try:
        for folder in (*reversed(path.parents), path):  # `mkdir(parents=True)` gives parents the usual mode
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(exist_ok=True)
    except OSError as e:
        raise storage_error(path, e) from e
    if not os.access(path, os.W_OK | os.X_OK):
        raise storage_error(path, PermissionError(errno.EACCES, "Permission denied"))
    return path


def open_folder(path: Path) -> Path:
    """As `make_folder`, but a folder that is there may be read-only. Raises StorageError."""
    return path if is_read_only(path) else make_folder(path)


def is_read_only(path: Path) -> bool:
    """Whether that file or folder is there and cannot be written (its mode, or a read-only disk)."""
    return os.path.exists(path) and not os.access(path, os.W_OK)
