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
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from refdiff.memory.rows.watched import FileIdentity
from refdiff.model.errors import InputError
from refdiff.model.files import storage_error
from refdiff.model.images import image_suffixes, is_image

DONE, QUARANTINE = "done", "quarantine"
SETTLE_S = 0.5  # a file that did not change for this long is complete
PATIENCE_S = 5.0  # how long an unreadable photo may still become complete
GROWING_S = 60.0  # the same of a file that was seen growing: its writer pauses
TAKE_BACK_S = 3600.0  # how long a file in quarantine may still become complete
FOLDERS, UNFINISHED = "sub-folders", "unfinished"  # kinds of what is left alone
_UNFINISHED = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "~")


class WatchedFolder:
    """Files stay in `root` until their report is filed, then move to `root/done` (or are deleted). Refused files move to
    `root/quarantine`, next to a text file with the reason.
    """

    def __init__(
        self,
        root: Path,
        *,
        keep: bool = True,
        recursive: bool = False,
        settle_s: float = SETTLE_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """keep: move inspected files to `done` instead of deleting them. recursive: watch sub-folders too.

        Raises InputError, StorageError.
        """
        root = root.expanduser()
        self._keep, self._recursive, self._settle_s, self._now = keep, recursive, settle_s, now
        self._first_seen: dict[FileIdentity, float] = {}
        self._growing: set[str] = set()  # names of files that changed since they were first seen
        self._other: dict[
            FileIdentity, bool
        ] = {}  # files without an image's suffix: whether they are images all the same
        self._quarantined: dict[str, tuple[FileIdentity, float]] = {}  # name in quarantine -> file as it was, and when
        self.tried: frozenset[str] = frozenset()  # suffixes of files that are photos to the product, whatever they hold
        self.step: Callable[[], object] = lambda: None  # called with each file that is looked at
        self.unsettled = 0  # files in the last listing that are still being written
        self.left_alone: dict[str, list[str]] = {}  # what the last listing left alone: kind -> names
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
        """Complete photos, in the order in which they were completed, without `exclude`. Raises StorageError.

        Hidden files are ignored. What else is left alone is listed in `left_alone`: unfinished downloads, links, sub-folders
        unless they are watched too, and files that are no images by their suffix or, with another suffix, by their content.
        """
        seen: dict[FileIdentity, float] = {}
        ready: list[FileIdentity] = []
        before = {i.name: i for i in self._first_seen}
        now, clock, unsettled = self._now(), time.time(), 0
        self.left_alone = {}
        for name, about in self._files():
            self.step()
            identity = FileIdentity.of(name, about)
            if before.get(name, identity) != identity:
                self._growing.add(name)
            first = seen[identity] = self._first_seen.get(identity, now)
            # the file's own time counts if plausible; clocks of a share may differ
            rested = now - first >= self._settle_s or self._settle_s < clock - about.st_mtime < 7 * 86400
            if not rested:
                unsettled += 1
            elif identity not in exclude and self._is_photo(identity):
                ready.append(identity)
        self._first_seen, self.unsettled = seen, unsettled
        self._other = {i: known for i, known in self._other.items() if i in seen}
        self._growing &= {i.name for i in seen}
        return sorted(ready, key=lambda i: (i.mtime_ns, _natural(i.name)))

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """(path below the root, status) of the regular files that may be photos."""
        folders = [""]
        while folders:
            inside = folders.pop()
            try:
                with os.scandir(self.root / inside) as entries:
                    for entry in entries:
                        name = f"{inside}/{entry.name}" if inside else entry.name
                        if entry.name.startswith(".") or name in (DONE, QUARANTINE):
                            continue
                        try:
                            about = entry.stat(follow_symlinks=False)
                        except FileNotFoundError:
                            continue
                        if stat.S_ISDIR(about.st_mode) and self._recursive:
                            folders.append(name)
                        elif stat.S_ISDIR(about.st_mode):
                            self._leave(FOLDERS, name)
                        elif not stat.S_ISREG(about.st_mode):
                            self._leave("links", name)
                        elif name.lower().endswith(_UNFINISHED):
                            self._leave(UNFINISHED, name)
                        else:
                            yield name, about
            except FileNotFoundError as e:
                if not inside:
                    raise storage_error(self.root, e) from e
            except OSError as e:
                raise storage_error(self.root / inside, e) from e

    def _is_photo(self, identity: FileIdentity) -> bool:
        suffix = Path(identity.name).suffix.lower()
        if suffix in image_suffixes() or suffix in self.tried:
            return True
        if identity not in self._other:
            self._other[identity] = is_image(self.path(identity))
        if not self._other[identity]:
            self._leave(suffix or "without suffix", identity.name)
        return self._other[identity]

    def _leave(self, kind: str, name: str) -> None:
        self.left_alone.setdefault(kind, []).append(name)

    def may_still_grow(self, identity: FileIdentity) -> bool:
        """Whether an unreadable photo is too young to be refused."""
        patience = GROWING_S if identity.name in self._growing else PATIENCE_S
        return self._now() - self._first_seen.get(identity, self._now()) < patience

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
            inside, name = os.path.split(identity.name)
            with self._opened(DONE, inside) as (source, done):
                os.rename(name, _free(name, done), src_dir_fd=source, dst_dir_fd=done)
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
        inside, name = os.path.split(identity.name)
        with self._opened(QUARANTINE, inside) as (source, quarantine):
            target = _free(name, quarantine)
            # a reason of the same name is from a run that was killed before it moved the file
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{target}.reason.txt", dir_fd=quarantine)
            made = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            note = os.open(f"{target}.reason.txt", made, 0o666, dir_fd=quarantine)
            with open(note, "w", encoding="utf-8", errors="replace") as file:
                file.write(reason + "\n")
            os.rename(name, target, src_dir_fd=source, dst_dir_fd=quarantine)
        self.remember_quarantined(os.path.join(inside, target), identity)

    def remember_quarantined(self, name: str, identity: FileIdentity) -> None:
        """Watch the file `name` in quarantine for a while: if it changes, it was refused while it was being written."""
        self._quarantined[name] = (identity, self._now())

    def take_back(self) -> list[str]:
        """Move files that changed in quarantine back to where they came from; returns their names. Raises as quarantine."""
        taken = []
        for name, (was, since) in list(self._quarantined.items()):
            try:
                about = os.stat(self.root / QUARANTINE / name, follow_symlinks=False)
            except OSError:
                del self._quarantined[name]  # a person took it away
                continue
            if about.st_ino != was.inode or self._now() - since > TAKE_BACK_S:
                del self._quarantined[name]
            elif (about.st_size, about.st_mtime_ns) != (was.size, was.mtime_ns):
                del self._quarantined[name]
                inside, last = os.path.split(was.name)
                with self._opened(QUARANTINE, inside) as (source, quarantine):
                    there = os.path.basename(name)
                    back = _free(last, source)
                    os.rename(there, back, src_dir_fd=quarantine, dst_dir_fd=source)
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(f"{there}.reason.txt", dir_fd=quarantine)
                taken.append(os.path.join(inside, back))
        self._growing.update(taken)
        return taken

    @contextlib.contextmanager
    def _opened(self, name: str, inside: str = "") -> Iterator[tuple[int, int]]:
        """Descriptors of the watched folder and of its sub-folder `name`, made if it is missing.

        inside: a path; then of the sub-folders of that path in both.

        Whoever may write to the watched folder could put a link in the sub-folder's place, at any time, and have files of
        his own names and contents moved to wherever it points. So it is opened anew for each move, never through a link, and
        files are moved between descriptors, not paths. Raises InputError where it is a link, StorageError.
        """
        place = self.root / name
        with contextlib.ExitStack() as stack:
            try:
                root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                stack.callback(os.close, root)
                parts = inside.split("/") if inside else []
                yield _descend(stack, root, parts), _descend(stack, root, [name, *parts])
            except OSError as e:
                if e.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InputError(
                        f"{place}: a link or a file, where a folder must be; remove it: files are moved only to folders "
                        "inside the watched one"
                    ) from e
                raise storage_error(place, e) from e


def _descend(stack: contextlib.ExitStack, folder: int, parts: Sequence[str]) -> int:
    """The descriptor of a sub-folder, made if it is missing; `stack` closes it."""
    for part in parts:
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, dir_fd=folder)
        folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        stack.callback(os.close, folder)
    return folder


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
