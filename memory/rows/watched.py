"""A file in a watched folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class FileIdentity:
    """A file as it was found; a file of the same name with other content is another photo."""

    name: str
    size: int  # bytes
    mtime_ns: int  # last change
    inode: int

    @classmethod
    def of(cls, name: str, about: os.stat_result) -> Self:
        """The identity of the file `name` with that status."""
        return cls(name, about.st_size, about.st_mtime_ns, about.st_ino)
