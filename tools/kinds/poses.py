"""Where files lie in the frame of their product, of kinds that are placed in space: small JSON files in `REFDIFF_CACHE`.

A pose is found anew where its file is missing or damaged: it saves time, nothing rests on it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from refdiff.model.errors import StorageError
from refdiff.model.files import make_folder, make_room, mark_used, write_atomic
from refdiff.tools.kinds.reading import How, Pose

_VERSION = 2  # raise when poses are found in another way
_KEPT_BYTES = 32 << 20


class PoseCache:
    """Below a folder; processes may share it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, sha256: str, how: How) -> Pose | None:
        """The pose of a file in the frame of `how.anchor`; None where it is not known."""
        path = self._path(sha256, how)
        try:
            found = Pose(**json.loads(path.read_bytes()))
            if len(found.matrix) != 16:
                return None
        except (OSError, ValueError, TypeError):
            return None
        mark_used(path)
        return found

    def put(self, sha256: str, how: How, pose: Pose) -> None:
        """Keep a pose, where the cache can be written."""
        path = self._path(sha256, how)
        try:
            make_folder(path.parent)
            write_atomic(path, json.dumps(asdict(pose)).encode())
            make_room(self._root, _KEPT_BYTES, keep=path.parent)
        except StorageError:
            return

    def _path(self, sha256: str, how: How) -> Path:
        key = json.dumps([_VERSION, sha256, how.kind, how.window, how.rules, how.anchor])
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._root / digest[:2] / f"{digest}.json"
