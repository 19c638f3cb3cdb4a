"""The JSON lines file: one line per event, in order, exactly once even if the process is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from refdiff.model.files import storage_error

_TAIL_BYTES = 1 << 20


class JsonLinesFile(AbstractContextManager["JsonLinesFile"]):
    """Append-only. Opening the file removes a half line that a crash left at the end."""

    def __init__(self, path: Path) -> None:
        """Raises StorageError."""
        self.path = path.expanduser().absolute()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b")  # noqa: SIM115  closed by close()
            self._written = self._remove_torn_line()
        except OSError as e:
            raise storage_error(self.path, e) from e

    def _remove_torn_line(self) -> set[str]:
        """Remove a torn last line; returns the inspection ids of the last lines."""
        size = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(max(0, size - _TAIL_BYTES))
        tail = self._file.read()
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            self._file.truncate(start + whole)
        ids = set()
        for line in tail[:whole].splitlines():
            try:
                ids.add(str(json.loads(line)["inspection_id"]))
            except (ValueError, KeyError, TypeError):  # the first line may be cut off by the window; others are foreign
                continue
        return ids

    def write(self, events: Iterable[dict[str, Any]]) -> None:
        """Append the events that are new; they are on disk on return. Raises StorageError."""
        new = [e for e in events if e["inspection_id"] not in self._written]
        try:
            self._file.write(b"".join(json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in new))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as e:
            raise storage_error(self.path, e) from e
        self._written = {str(e["inspection_id"]) for e in new}

    def __exit__(self, *error: object) -> None:
        self._file.close()
