"""The watched folder: which files are complete, whose photo a file is, and where it goes afterwards.

The folder is listed again and again instead of listening to the kernel: cameras write to network shares, and those
tell nobody what other machines did.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from refdiff.memory.journals.watch import FileIdentity
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.records.products import check_product_name
from refdiff.model.errors import InputError
from refdiff.model.files import storage_error

DONE, QUARANTINE = "done", "quarantine"
SETTLE_S = 0.5  # a file that did not change for so long is complete
PATIENCE_S = 5.0  # a photo that does not read is given so long to become complete
DEFAULT_PATTERN = r"(?P<part>.+)"
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "~")


@dataclass(frozen=True)
class NamePattern:
    """Which part (and product) a file shows, from its name without the suffix."""

    expression: re.Pattern[str]
    product: str | None

    @classmethod
    def parse(cls, pattern: str, product: str | None) -> NamePattern:
        """Raises InputError: no regular expression, no group `part`, no way to know the product."""
        try:
            expression = re.compile(pattern)
        except re.error as e:
            raise InputError(f"--pattern {pattern!r}: not a regular expression ({e})") from e
        if "part" not in expression.groupindex:
            raise InputError(f"--pattern {pattern!r}: it needs a group named part, like (?P<part>\\d+)")
        if product is None and "product" not in expression.groupindex:
            raise InputError("which product are the parts? Give --product, or --pattern a group named product")
        return cls(expression, None if product is None else check_product_name(product))

    def read(self, name: str) -> tuple[str, str]:
        """Part id and product of a file. Raises InputError where the name says none."""
        stem = os.fsencode(Path(name).stem).decode("utf-8", "replace")
        match = self.expression.fullmatch(stem)
        if match is None or not match["part"]:
            raise InputError(f"the name does not match the pattern {self.expression.pattern}")
        named = match.groupdict().get("product")
        product = named or self.product
        if product is None:
            raise InputError(f"the name holds no product (pattern {self.expression.pattern})")
        return normalise_part_id(match["part"]), check_product_name(product)


class WatchedFolder:
    """Files lie in `root` until their report is filed; then they go to `root/done` (or away), refused ones to
    `root/quarantine` with a text file that holds the reason.
    """

    def __init__(
        self, root: Path, *, keep: bool = True, settle_s: float = SETTLE_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        """keep: move inspected files to `done` instead of deleting them. Raises InputError, StorageError."""
        root = root.expanduser()
        self._keep, self._settle_s, self._now = keep, settle_s, now
        self._first_seen: dict[FileIdentity, float] = {}
        self.unsettled = 0  # files of the last listing that are still being written
        if not root.is_dir():
            raise InputError(f"{root.absolute()}: no such folder; name the one that the camera writes to")
        self.root = root.resolve()  # one name a folder: journal and lock are found by it
        for name in (DONE, QUARANTINE) if keep else (QUARANTINE,):
            try:
                (self.root / name).mkdir(exist_ok=True)
            except OSError as e:
                raise storage_error(self.root / name, e) from e
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise InputError(f"{self.root}: inspected photos cannot be moved out of it; make the folder writable")

    def complete(self, but: Collection[FileIdentity] = ()) -> list[FileIdentity]:
        """Files that are complete, in the order in which they became so. but: left out. Raises StorageError.

        Hidden files, names of unfinished downloads, links and folders are nobody's photo.
        """
        seen: dict[FileIdentity, float] = {}
        ready: list[FileIdentity] = []
        now, clock, unsettled = self._now(), time.time(), 0
        try:
            with os.scandir(self.root) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower().endswith(_UNFINISHED):
                        continue
                    try:
                        about = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if not stat.S_ISREG(about.st_mode):
                        continue
                    identity = FileIdentity.of(entry.name, about)
                    first = seen[identity] = self._first_seen.get(identity, now)
                    # the file's own time helps where it is plausible; the clocks of a share may differ
                    rested = now - first >= self._settle_s or self._settle_s < clock - about.st_mtime < 7 * 86400
                    if rested and identity not in but:
                        ready.append(identity)
                    unsettled += not rested
        except OSError as e:
            raise storage_error(self.root, e) from e
        self._first_seen, self.unsettled = seen, unsettled
        return sorted(ready, key=lambda i: (i.mtime_ns, _natural(i.name)))

    def may_still_grow(self, identity: FileIdentity) -> bool:
        """Is a photo that does not read too young to be called broken?"""
        return self._now() - self._first_seen.get(identity, self._now()) < PATIENCE_S

    def is_there(self, identity: FileIdentity) -> bool:
        """Does the folder hold this very file, unchanged?"""
        try:
            about = os.stat(self.path(identity), follow_symlinks=False)
        except OSError:
            return False
        return FileIdentity.of(identity.name, about) == identity

    def path(self, identity: FileIdentity) -> Path:
        return self.root / identity.name

    def finish(self, identity: FileIdentity) -> None:
        """Move an inspected file out of the way; nothing if that was done already. Raises StorageError."""
        if not self.is_there(identity):  # moved before a kill, or overwritten: that is another photo
            return
        try:
            if self._keep:
                self.path(identity).rename(_free(self.root / DONE / identity.name))
            else:
                self.path(identity).unlink()
        except OSError as e:
            raise storage_error(self.path(identity), e) from e

    def quarantine(self, identity: FileIdentity, reason: str) -> None:
        """Put a refused file aside, with the reason beside it; nothing if that was done already. Raises StorageError."""
        if not self.is_there(identity):
            return
        target = _free(self.root / QUARANTINE / identity.name)
        try:
            note = target.with_name(target.name + ".reason.txt")
            note.write_text(reason + "\n", encoding="utf-8", errors="replace")
            self.path(identity).rename(target)
        except OSError as e:
            raise storage_error(target, e) from e


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: photo-9 before photo-10."""
    return [(0, int(t), "") if t.isdigit() and t.isascii() else (1, 0, t) for t in re.split(r"([0-9]+)", name)]


def _free(path: Path) -> Path:
    """`path`, or with a number in its name where another file has it. Only this process writes to the folder."""
    if not os.path.lexists(path):
        return path
    for number in range(2, 1_000_000):
        other = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(other):
            return other
    raise OSError(f"no free name for {path}")
