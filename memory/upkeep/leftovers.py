"""What killed processes left in a home folder: temporary files, half a restore, locks of inspections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from refdiff.memory.locks import hold_lock
from refdiff.memory.schema import MAIN
from refdiff.memory.upkeep.contents import STAGING, files
from refdiff.model.errors import UnavailableError
from refdiff.model.files import is_leftover

_ABANDONED_S = 3600.0  # no file is written, and no new lock waited for, that long


def abandoned(home: Path, places: Iterable[Path]) -> Iterator[Path]:
    """Those of some files of a home (relative to it) that nobody wrote to for an hour; of locks, those that nobody holds."""
    before = time.time() - _ABANDONED_S
    whole = (home / MAIN).exists()  # else a restore was killed, which is to be repeated
    for place in places:
        if not (_is_lock(place) or is_leftover(place) or (whole and place.parts[0] == STAGING)):
            continue
        with contextlib.suppress(OSError, UnavailableError):
            if (home / place).lstat().st_mtime < before:
                with _unheld(home, place):
                    yield place


def remove(home: Path, place: Path) -> None:
    """Remove one of them; a lock that a process has taken since stays. Raises OSError."""
    with contextlib.suppress(UnavailableError), _unheld(home, place):
        (home / place).unlink(missing_ok=True)
    if place.parts[0] == STAGING:
        with contextlib.suppress(OSError):  # until one is not empty
            for folder in place.parents[:-1]:
                (home / folder).rmdir()


def remove_abandoned(home: Path) -> int:
    """Remove all of them; how many. Safe beside other processes. Raises OSError."""
    left = list(abandoned(home, files(home)))
    if (home / MAIN).exists():
        with contextlib.suppress(OSError):  # there, and empty
            (home / STAGING).rmdir()
    for place in left:
        remove(home, place)
    return len(left)


def _is_lock(place: Path) -> bool:
    return place.parts[0] == "locks" and place.suffix == ".lock"


def _unheld(home: Path, place: Path) -> contextlib.AbstractContextManager[None]:
    """Holds a lock meanwhile, so that no process takes it. Raises UnavailableError if one has."""
    return hold_lock(home / place, UnavailableError("held")) if _is_lock(place) else contextlib.nullcontext()
