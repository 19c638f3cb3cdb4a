"""One wording for what goes wrong underneath the stores: full disk, no permission, damage, locks."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

from refdiff.model.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


def storage_error(path: Path, error: Exception) -> StorageError:
    """What to tell the user about `error` (OSError, sqlite3.Error or damage met while reading) at `path`."""
    return StorageError(f"{path}: {_explain(path, error)}")


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
        usage = os.statvfs(path if path.exists() else path.parent)
    except (OSError, AttributeError):  # no statvfs on Windows
        return False
    return usage.f_bavail * usage.f_frsize < 1_000_000


def make_folder(path: Path) -> Path:
    """Create `path` and its parents, readable by the owner alone (photos of parts are confidential).

    Raises StorageError if that fails or the folder is not writable.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise storage_error(path, e) from e
    if not os.access(path, os.W_OK | os.X_OK):
        raise storage_error(path, PermissionError(errno.EACCES, "Permission denied"))
    return path
