"""What a home folder holds on the disk, by place and name; opens databases read-only and changes nothing."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from refdiff.memory.kinds import OPERATOR_FILE
from refdiff.memory.schema import MOVED
from refdiff.memory.stores import PHOTOS_MOVED, PHOTOS_MOVING, PHOTOS_URL
from refdiff.model.files import is_leftover, storage_error

STAGING = ".restoring"  # where a restore collects files until they are checked
_BUSY_S = 30.0
_SHA256 = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_TRANSIENT = ("-wal", "-shm", "-journal", ".lock")
# the operator's key is made anew where it is missing, and a home that is restored has its photos in its folder at first
_NOT_KEPT = {"locks", "logs", STAGING, MOVED, OPERATOR_FILE, PHOTOS_MOVED, PHOTOS_MOVING, PHOTOS_URL}


def is_kept(place: Path) -> bool:
    """Whether a file belongs to the home's contents. place: relative to the home.

    Locks, logs, leftovers, records and photos that were moved to a server, and the operator's key do not.
    """
    return not (place.parts[0] in _NOT_KEPT or place.name.endswith(_TRANSIENT) or is_leftover(place))


def files(home: Path) -> Iterator[Path]:
    """All files below `home`, relative to it, sorted within each folder. Folders may be links (to a larger disk)."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(home, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link in a circle
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        yield from (Path(folder, name).relative_to(home) for name in sorted(names))


def is_database(place: Path) -> bool:
    return place.suffix == ".sqlite"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read-only connection to a database that may be in use. Raises StorageError, also in the block."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as conn:
            conn.row_factory = sqlite3.Row
            yield conn
    except sqlite3.Error as e:
        raise storage_error(path, e) from e


def check_database(path: Path, whole: bool = True) -> str:
    """What is wrong with a database; "" if nothing. whole: read all of it, else its list of tables."""
    with reading(path) as conn:
        found = conn.execute("PRAGMA quick_check(1)").fetchone()[0] if whole else "ok"
        if found != "ok":
            return str(found)
        return "" if conn.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() else "it is empty"


def like_sha256(row: Iterable[Any]) -> Iterator[str]:
    """Everything in the texts and bytes of a row that looks like a sha256 (hex)."""
    for value in row:
        data = value.encode() if isinstance(value, str) else value
        if isinstance(data, bytes):
            yield from (m.decode() for m in _SHA256.findall(data))


def sha256_in(path: Path) -> set[str]:
    """Everything in a SQLite file that looks like one. Raises StorageError."""
    found: set[str] = set()
    with reading(path) as conn:
        for (table,) in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in conn.execute(f'SELECT * FROM "{table}"'):
                found.update(like_sha256(row))
    return found
