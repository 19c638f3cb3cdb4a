"""The watched folder: which files are complete, which part a file shows, and where it goes afterwards.

The folder is polled: cameras write to network shares, where the kernel does not report changes by other machines.
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
SETTLE_S = 0.5  # a file that did not change for this long is complete
PATIENCE_S = 5.0  # how long an unreadable photo may still become complete
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "~")


@dataclass(frozen=True)
class NamePattern:
    """Reads part (and product) from a file name without suffix."""

    expression: re.Pattern[str]
    product: str | None

    @classmethod
    def parse(cls, pattern: str, product: str | None) -> NamePattern:
        """Raises InputError: invalid regular expression, no group `part`, or no source for the product."""
        try:
            expression = re.compile(pattern)
        except re.error as e:
            raise InputError(f"--pattern {pattern!r}: invalid regular expression ({e})") from e
        if "part" not in expression.groupindex:
            raise InputError(f"--pattern {pattern!r}: needs a group named part, like (?P<part>\\d+)")
        if product is None and "product" not in expression.groupindex:
            raise InputError("the product is unknown; give --product, or a group named product in --pattern")
        return cls(expression, None if product is None else check_product_name(product))

    def read(self, name: str) -> tuple[str, str]:
        """(part id, product) of a file. Raises InputError if the name does not match."""
        stem = os.fsencode(Path(name).stem).decode("utf-8", "replace")
        match = self.expression.fullmatch(stem)
        if match is None or not match["part"]:
            raise InputError(f"the name does not match the pattern {self.expression.pattern}")
        named = match.groupdict().get("product")
        product = named or self.product
        if product is None:
            raise InputError(f"the name contains no product (pattern {self.expression.pattern})")
        return normalise_part_id(match["part"]), check_product_name(product)


class WatchedFolder:
    """Files stay in `root` until their report is filed, then move to `root/done` (or are deleted). Refused files move to
    `root/quarantine`, next to a text file with the reason.
    """

    def __init__(
        self, root: Path, *, keep: bool = True, settle_s: float = SETTLE_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        """keep: move inspected files to `done` instead of deleting them. Raises InputError, StorageError."""
        root = root.expanduser()
        self._keep, self._settle_s, self._now = keep, settle_s, now
        self._first_seen: dict[FileIdentity, float] = {}
        self.unsettled = 0  # files in the last listing that are still being written
        if not root.is_dir():
            raise InputError(f"{root.absolute()}: no such folder; give the folder that the camera writes to")
        self.root = root.resolve()  # one name per folder: journal and lock are found by it
        for name in (DONE, QUARANTINE) if keep else (QUARANTINE,):
            try:
                (self.root / name).mkdir(exist_ok=True)
            except OSError as e:
                raise storage_error(self.root / name, e) from e
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise InputError(
                f"{self.root}: not writable, so inspected photos cannot be moved; make the folder writable"
            )

    def complete(self, exclude: Collection[FileIdentity] = ()) -> list[FileIdentity]:
        """Complete files, in the order in which they were completed, without `exclude`. Raises StorageError.

        Hidden files, unfinished downloads, links and folders are ignored.
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
                    # the file's own time counts if plausible; clocks of a share may differ
                    rested = now - first >= self._settle_s or self._settle_s < clock - about.st_mtime < 7 * 86400
                    if rested and identity not in exclude:
                        ready.append(identity)
                    unsettled += not rested
        except OSError as e:
            raise storage_error(self.root, e) from e
        self._first_seen, self.unsettled = seen, unsettled
        return sorted(ready, key=lambda i: (i.mtime_ns, _natural(i.name)))

    def may_still_grow(self, identity: FileIdentity) -> bool:
        """Whether an unreadable photo is too young to be refused."""
        return self._now() - self._first_seen.get(identity, self._now()) < PATIENCE_S

    def is_there(self, identity: FileIdentity) -> bool:
        """Whether the folder still holds this file, unchanged."""
        try:
            about = os.stat(self.path(identity), follow_symlinks=False)
        except OSError:
            return False
        return FileIdentity.of(identity.name, about) == identity

    def path(self, identity: FileIdentity) -> Path:
        return self.root / identity.name

    def finish(self, identity: FileIdentity) -> None:
        """Move or delete an inspected file; does nothing if that already happened. Raises StorageError."""
        if not self.is_there(identity):  # moved before a crash, or overwritten by another photo
            return
        try:
            if self._keep:
                self.path(identity).rename(_free(self.root / DONE / identity.name))
            else:
                self.path(identity).unlink()
        except OSError as e:
            raise storage_error(self.path(identity), e) from e

    def quarantine(self, identity: FileIdentity, reason: str) -> None:
        """Move a refused file to quarantine, with the reason; does nothing if that already happened. Raises StorageError."""
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
    """Sort key that puts photo-9 before photo-10."""
    return [(0, int(t), "") if t.isdigit() and t.isascii() else (1, 0, t) for t in re.split(r"([0-9]+)", name)]


def _free(path: Path) -> Path:
    """`path`, with a number added if the name is taken. Only this process writes to the folder."""
    if not os.path.lexists(path):
        return path
    for number in range(2, 1_000_000):
        other = path.with_name(f"{path.stem}-{number}{path.suffix}")
        if not os.path.lexists(other):
            return other
    raise OSError(f"no free name for {path}")
