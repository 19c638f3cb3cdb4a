"""What a device keeps of inspected photos until it is where it belongs: a crash between any two steps loses nothing and
repeats nothing.

    spool/KEY    report, photo and map of a photo that may still lie in the watched folder; KEY names the photo
    outbox/ID    the same once the photo has left the folder: waits for the server
    refused/ID   what the server will never take, with its reason
    reports/ID.json   the report, for good

Each step renames one whole folder or file. Where no server is named, what would wait for it is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refdiff.agent.device.device import DeviceRecord
from refdiff.memory.rows.watched import FileIdentity
from refdiff.model.errors import DamagedError
from refdiff.model.files import make_folder, storage_error, write_atomic

REPORT, PHOTO, DIFFERENCE, ABOUT = "report.json", "photo", "difference.png", "about.json"
_TRASH = ".removing-"


@dataclass(frozen=True)
class Entry:
    """A spooled photo. folder: where its files are."""

    folder: Path
    inspection_id: str
    verdict: str
    filename: str
    identity: FileIdentity

    def read(self, name: str) -> bytes:
        """One of its files. Raises StorageError."""
        path = self.folder / name
        try:
            return path.read_bytes()
        except OSError as e:
            raise storage_error(path, e) from e


class Spool:
    """One folder of a device; one process uses it. Every method raises StorageError where the disk fails."""

    def __init__(self, root: Path, *, sends: bool) -> None:
        """sends: what is finished waits in the outbox."""
        self.root, self._sends = root, sends
        self._spool, self._outbox, self._reports, self._refused = (
            make_folder(root / name) for name in ("spool", "outbox", "reports", "refused")
        )
        for folder in (self._spool, self._outbox):
            for left in folder.glob(f"{_TRASH}*"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)

    def find(self, identity: FileIdentity) -> Entry | None:
        """The entry of a photo that was inspected already and has not been finished."""
        folder = self._spool / _key(identity)
        return _entry(folder) if folder.is_dir() else None

    def unfinished(self) -> list[Entry]:
        """Entries of photos that may still lie in the watched folder."""
        return [e for folder in sorted(self._spool.iterdir()) if (e := _entry(folder)) is not None]

    def put(self, identity: FileIdentity, photo: bytes, record: DeviceRecord) -> Entry:
        """Keep what is known of a photo, durably on return, all of it or nothing."""
        report = record.report
        entry = Entry(self._spool / _key(identity), report.inspection_id, str(report.verdict), identity.name, identity)
        making = self._spool / f"{_TRASH}{secrets.token_hex(8)}"
        about = {**asdict(entry), "folder": None}
        files = {REPORT: report.model_dump_json().encode(), ABOUT: json.dumps(about).encode()}
        if self._sends:
            files |= {PHOTO: photo, DIFFERENCE: record.difference}
        make_folder(making)
        try:
            for name, data in files.items():
                write_atomic(making / name, data)
            _renamed(making, entry.folder)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        return entry

    def finish(self, entry: Entry) -> None:
        """The photo has left the watched folder: its report is kept, and waits for the server where there is one."""
        write_atomic(self._reports / f"{entry.inspection_id}.json", entry.read(REPORT))
        if self._sends:
            _renamed(entry.folder, self._outbox / entry.inspection_id)
        else:
            _removed(entry.folder)

    def waiting(self) -> list[Entry]:
        """Entries that wait for the server, oldest first."""
        return [e for folder in sorted(self._outbox.iterdir()) if (e := _entry(folder)) is not None]

    def sent(self, entry: Entry) -> None:
        """The server has it."""
        _removed(entry.folder)

    def refuse(self, entry: Entry, reason: str) -> None:
        """The server will never take it."""
        write_atomic(entry.folder / "reason.txt", reason.encode())
        _renamed(entry.folder, self._refused / entry.inspection_id)

    def counts(self) -> dict[str, int]:
        """How many reports there are, wait for the server, and were refused by it."""
        folders = {"reports": self._reports, "waiting": self._outbox, "refused": self._refused}
        return {name: sum(1 for _ in _listed(folder)) for name, folder in folders.items()}


def _key(identity: FileIdentity) -> str:
    return hashlib.sha256(repr((identity.name, identity.size, identity.mtime_ns, identity.inode)).encode()).hexdigest()[
        :24
    ]


def _listed(folder: Path) -> Iterator[Path]:
    return (p for p in folder.iterdir() if not p.name.startswith("."))


def _entry(folder: Path) -> Entry | None:
    if folder.name.startswith("."):
        return None
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_bytes())
        return Entry(**{**about, "folder": folder, "identity": FileIdentity(**about["identity"])})
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DamagedError(f"{folder}: is damaged ({e}); move it away: its photo is in the folder `done`") from e


def _renamed(one: Path, other: Path) -> None:
    try:
        one.rename(other)
        for parent in {one.parent, other.parent}:
            _synced(parent)
    except OSError as e:
        raise storage_error(other, e) from e


def _removed(folder: Path) -> None:
    trash = folder.with_name(f"{_TRASH}{secrets.token_hex(8)}")
    _renamed(folder, trash)
    shutil.rmtree(trash, ignore_errors=True)


def _synced(folder: Path) -> None:
    """The new names must be durable too; Windows cannot open folders."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):
            os.fsync(opened)
        os.close(opened)
