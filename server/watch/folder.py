"""The watched folder: which files are complete, which part a file shows, and where it goes afterwards.

The folder is polled: cameras write to network shares, where the kernel does not report changes by other machines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import regex

from refdiff.memory.journals.watch import FileIdentity
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.records.products import check_product_name
from refdiff.model.errors import InputError
from refdiff.model.files import storage_error

DONE, QUARANTINE = "done", "quarantine"
SETTLE_S = 0.5  # a file that did not change for this long is complete
PATIENCE_S = 5.0  # how long an unreadable photo may still become complete
MATCH_S = (
    1.0  # how long the pattern may take for one name: names come from outside, and a pattern can backtrack for hours
)
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "~")


@dataclass(frozen=True)
class NamePattern:
    """Reads part (and product) from a file name without suffix."""

    expression: regex.Pattern[str]  # this library, because its search can be given a time limit
    product: str | None

    @classmethod
    def parse(cls, pattern: str, product: str | None) -> NamePattern:
        """Raises InputError: invalid regular expression, no group `part`, or no source for the product."""
        try:
            expression = regex.compile(pattern)
        except regex.error as e:
            raise InputError(f"--pattern {pattern!r}: invalid regular expression ({e})") from e
        if "part" not in expression.groupindex:
            raise InputError(f"--pattern {pattern!r}: needs a group named part, like (?P<part>\\d+)")
        if product is None and "product" not in expression.groupindex:
            raise InputError("the product is unknown; give --product, or a group named product in --pattern")
        return cls(expression, None if product is None else check_product_name(product))

    def read(self, name: str) -> tuple[str, str]:
        """(part id, product) of a file. Raises InputError if the name does not match, or not within `MATCH_S`."""
        stem = os.fsencode(Path(name).stem).decode("utf-8", "replace")
        try:
            match = self.expression.fullmatch(stem, timeout=MATCH_S)
        except TimeoutError as e:
            raise InputError(
                f"the pattern {self.expression.pattern} took more than {MATCH_S:g} s for this name; "
                "write it without repeats inside repeats"
            ) from e
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
            with self._opened(name):
                pass
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
        """Move or delete an inspected file; does nothing if that already happened. Raises InputError, StorageError."""
        if not self.is_there(identity):  # moved before a crash, or overwritten by another photo
            return
        if self._keep:
            with self._opened(DONE) as (root, done):
                os.rename(identity.name, _free(identity.name, done), src_dir_fd=root, dst_dir_fd=done)
            return
        try:
            self.path(identity).unlink()
        except OSError as e:
            raise storage_error(self.path(identity), e) from e

    def quarantine(self, identity: FileIdentity, reason: str) -> None:
        """Move a refused file to quarantine, with the reason; does nothing if that already happened.

        Raises InputError, StorageError.
        """
        if not self.is_there(identity):
            return
        with self._opened(QUARANTINE) as (root, quarantine):
            target = _free(identity.name, quarantine)
            # a reason of the same name is from a run that was killed before it moved the file
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{target}.reason.txt", dir_fd=quarantine)
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            note = os.open(f"{target}.reason.txt", made, 0o666, dir_fd=quarantine)
            with open(note, "w", encoding="utf-8", errors="replace") as file:
                file.write(reason + "\n")
            os.rename(identity.name, target, src_dir_fd=root, dst_dir_fd=quarantine)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[int, int]]:
        """Descriptors of the watched folder and of its sub-folder `name`, made if it is missing.

        Whoever may write to the watched folder could put a link in the sub-folder's place, at any time, and have files of
        his own names and contents moved to wherever it points. So it is opened anew for each move, never through a link, and
        files are moved between descriptors, not paths. Raises InputError where it is a link, StorageError.
        """
        place = self.root / name
        with contextlib.ExitStack() as stack:
            try:
                root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                stack.callback(os.close, root)
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=root)
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
                stack.callback(os.close, inner)
                yield root, inner
            except OSError as e:
                if e.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InputError(
                        f"{place}: a link or a file, where a folder must be; remove it: files are moved only to folders "
                        "inside the watched one"
                    ) from e
                raise storage_error(place, e) from e


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts photo-9 before photo-10."""
    return [(0, int(t), "") if t.isdigit() and t.isascii() else (1, 0, t) for t in re.split(r"([0-9]+)", name)]


def _free(name: str, folder: int) -> str:
    """`name`, with a number added if it is taken in the folder of that descriptor. Only this process writes to it."""
    stem, suffix = os.path.splitext(name)
    number = 1
    while _is_in(name, folder):
        number += 1
        name = f"{stem}-{number}{suffix}"
    return name


def _is_in(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
