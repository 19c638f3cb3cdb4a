"""The files of a filed inspection (report pages and pictures), and the digests that its audit record has of them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path


def new_inspection_id() -> str:
    """Sortable by time, e.g. "insp-20260131-141500-5f3a9c1e"."""
    return f"insp-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"


def inspection_folder(home: Path, inspection_id: str) -> Path:
    """Where the files of an inspection lie; ids are made by us, never by a user."""
    return home / "inspections" / inspection_id


def digests(files: Iterable[Path]) -> dict[str, str]:
    """sha256 (hex) of each file, by its name. Raises OSError."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def not_as_filed(path: Path, sha256: str) -> str:
    """What is wrong with a file that was filed with that digest, in words; "" if nothing is."""
    try:
        same = digests([path])[path.name] == sha256
    except FileNotFoundError:
        return f"{path.name} is missing; restore it from a backup"
    except OSError as e:
        return f"{path.name} cannot be read ({e.strerror})"
    return (
        ""
        if same
        else f"{path.name} is not the file that was filed: it was changed or damaged; restore it from a backup"
    )
