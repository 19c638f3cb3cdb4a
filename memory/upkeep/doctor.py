"""What is wrong with a home folder: its databases, files and golden samples compared with each other. Mends what is safe.

Safe while a server runs. Nothing that a person made or that proves something is ever changed or deleted: photos, reports and
records are only named.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Connection, func, inspect, select, text

from refdiff.memory.audit_chain import ARTEFACTS, FILED, NO_REPORT
from refdiff.memory.database import tables as t
from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.locks import hold_lock
from refdiff.memory.photos.image_store import ImageStore
from refdiff.memory.records.api_keys import KEYS, ApiKey, keys_of
from refdiff.memory.records.defect_names import NAMED_NOW
from refdiff.memory.schema import MAIN, MOVED, MOVING, other_stores
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores, open_images
from refdiff.memory.timestamps import to_utc
from refdiff.memory.upkeep.contents import (
    STAGING,
    check_database,
    files,
    is_database,
    like_sha256,
    reading,
    sha256_in,
)
from refdiff.memory.upkeep.leftovers import abandoned, remove
from refdiff.model.errors import DamagedError, RefDiffError, StorageError, UnavailableError, UnknownRecordError
from refdiff.model.progress import Progress, silent

Kind = Literal["missing", "damaged", "unreadable", "orphaned", "leftover", "exposed", "unchecked"]
SERIOUS: tuple[Kind, ...] = ("missing", "damaged", "unreadable")  # something is, or may be, lost until it is restored

NEWEST_RECORDS = 1000  # of the audit trail, checked without `deep`
LATELY_DAYS = 7
_STREAMED: dict[str, Any] = {"execution_options": {"yield_per": 500}}  # of statements with many rows


@dataclass
class Finding:
    """Something that is wrong."""

    kind: Kind
    what: str  # in words
    names: list[str]
    remedy: str
    mended: bool = False

    @property
    def serious(self) -> bool:
        return self.kind in SERIOUS and not self.mended


@dataclass(frozen=True)
class BankContents:
    """What the golden bank says of itself."""

    goldens: list[Golden]  # of all encoders
    damaged: list[str]  # names of goldens that cannot be read, with the reason


@dataclass
class Examination:
    """The result of an examination."""

    findings: list[Finding] = field(default_factory=list)
    filed: int = 0  # inspections
    inspections: int = 0  # of those, not removed by `refdiff prune`
    lately: int = 0  # filed in the last `LATELY_DAYS` days
    newest_at: str | None = None  # when the newest audit record was made; ISO 8601, UTC
    keys: list[ApiKey] = field(default_factory=list)  # that are not revoked
    schema: str | None = None  # of the database; None: it could not be read
    audit_records: int = 0
    audited: int = 0  # of those, that hold; without `deep`, of the newest `NEWEST_RECORDS`
    bytes: dict[str, int] = field(default_factory=dict)  # by store: "images", "inspections", "refdiff.sqlite", ...

    @property
    def sound(self) -> bool:
        """Whether the records could be read and nothing is missing or damaged."""
        return not any(f.serious for f in self.findings)

    @property
    def unread(self) -> bool:
        """Whether the records could not be read, so what they name was not looked for."""
        return any(f.kind == "unreadable" for f in self.findings)


def examine(
    settings: MemorySettings,
    bank: BankContents | str,
    repair: bool = False,
    progress: Progress = silent,
    deep: bool = True,
) -> Examination:
    """Examine the home of `settings`, and with `repair` mend what is safe.

    bank: what the golden bank holds, or in words why that is not known. deep: read every photo, report and record; else look
    only for what can be told in seconds, whatever the home holds.
    """
    return _Doctor(settings, bank, repair, progress, deep).examine()


class _Doctor:
    def __init__(
        self, settings: MemorySettings, bank: BankContents | str, repair: bool, progress: Progress, deep: bool
    ) -> None:
        self._settings, self._home, self._repair, self._progress = settings, settings.home, repair, progress
        self._deep = deep
        self._bank_contents = bank
        self._found = Examination()
        self._files = list(files(self._home))
        self._named: dict[str, str] = {}  # sha256 of each photo that is needed -> what needs it
        self._mentioned: set[str] | None = None  # what looks like a sha256 in the records; None: they could not be read

    def examine(self) -> Examination:
        for place in self._files:
            with contextlib.suppress(FileNotFoundError):  # a server removed it meanwhile
                size = (self._home / place).lstat().st_size
                store = place.parts[0].removesuffix("-wal").removesuffix("-shm")
                self._found.bytes[store] = self._found.bytes.get(store, 0) + size
        sound = self._databases()
        images, photos = self._listed()
        if Path(MAIN) in sound or self._settings.database_url is not None:
            self._records(sound)
            sound = {
                place for place in sound if (self._home / place).exists()
            }  # opening it may have moved earlier ones
        self._bank()
        if images is not None:
            self._photos(images, photos, sound)
        self._leftovers()
        self._exposed()
        return self._found

    def _add(
        self, kind: Kind, what: str, names: Iterable[str], remedy: str, mend: Callable[[], None] | None = None
    ) -> None:
        if not (listed := sorted(names)):
            return
        finding = Finding(kind, what, listed, remedy)
        self._found.findings.append(finding)
        if self._repair and mend is not None:
            with contextlib.suppress(OSError, RefDiffError):
                mend()
                finding.mended = True

    # -- databases

    def _databases(self) -> set[Path]:
        """Check all databases; those that are sound."""
        sound, wrong = set(), {}
        for place in filter(is_database, self._files):
            try:
                said = check_database(self._home / place, whole=self._deep)
            except RefDiffError as e:
                said = str(e).removeprefix(f"{self._home / place}: ")
            if said:
                wrong[place] = said
            else:
                sound.add(place)
        in_folder = self._settings.database_url is None
        if in_folder and Path(MAIN) not in self._files and (others := other_stores(self._home)):
            again = "repeat the restore that was interrupted here (refdiff restore)"
            remedy = "put the file back, or restore a backup into an empty folder (refdiff restore)"
            if (self._home / MOVED).exists():
                remedy = "its records were moved to Postgres: set REFDIFF_DATABASE_URL to that database"
            if (self._home / MOVING).exists():
                remedy = "moving its records to Postgres was interrupted: repeat it (refdiff move-records)"
            self._add("missing", f"the main database, though {', '.join(others)} are there", [MAIN],
                      again if (self._home / STAGING).exists() else remedy)  # fmt: skip
        checkpoints = Path("checkpoints.sqlite")
        self._add("damaged", "databases", (f"{p}: {said}" for p, said in wrong.items() if p != checkpoints),
                  "restore a backup into an empty folder (refdiff restore)")  # fmt: skip
        if checkpoints in wrong:
            self._add("damaged", "the checkpoints of unfinished inspections; these begin anew without them",
                      [f"{checkpoints}: {wrong[checkpoints]}"], "stop the server, and run: refdiff doctor --repair",
                      lambda: self._set_aside(checkpoints))  # fmt: skip
        return sound

    def _set_aside(self, place: Path) -> None:
        """Rename a database and its companions, while no server uses them."""
        with hold_lock(self._home / "serve.lock", UnavailableError("a server uses it")):
            for name in (f"{place}-wal", f"{place}-shm", str(place)):
                with contextlib.suppress(FileNotFoundError):
                    (self._home / name).rename(self._home / f"{name}.damaged-{int(time.time())}")

    def _records(self, sound: set[Path]) -> None:
        try:
            with Stores.open(self._settings) as stores:
                with stores.db.snapshot() as conn:
                    self._counted(stores, conn)
                    if self._deep:
                        self._inspections(conn, sound)
                        self._mentioned = self._sha256_of(conn)
                    self._needed(conn)
                audit = stores.audit
                checked = audit.verify_store() if self._deep else audit.verify_newest(NEWEST_RECORDS)
                problem, self._found.audited = checked.problem, checked.records
                self._found.audit_records = audit.head()[0]
        except RefDiffError as e:
            self._add("unreadable", "the records and the audit trail", [str(e)], "see the message")
            return
        if problem is not None:
            self._add("damaged", "the audit trail", [str(problem)],
                      "find out who changed it; a backup from before holds what was there")  # fmt: skip

    # -- inspections

    def _counted(self, stores: Stores, conn: Connection) -> None:
        """What use there is to expect, and what the clock says."""
        i, found = t.inspections.c, self._found
        found.filed = int(conn.scalar(select(func.count()).select_from(t.inspections)) or 0)
        found.inspections = int(conn.scalar(select(func.count()).where(i.report != NO_REPORT)) or 0)
        lately = to_utc(datetime.now(UTC) - timedelta(days=LATELY_DAYS))
        found.lately = int(conn.scalar(select(func.count()).where(i.created_at >= lately)) or 0)
        found.newest_at = conn.scalar(select(func.max(t.audit.c.at)))
        found.keys = [k for k in keys_of(conn).values() if k.revoked_at is None and k.key_id.startswith(f"{KEYS[1]}-")]
        found.schema = str(conn.scalar(text("SELECT version_num FROM alembic_version")))
        if stores.db.path is None:
            found.bytes["records in Postgres"] = int(
                conn.scalar(text("SELECT pg_database_size(current_database())")) or 0
            )

    def _inspections(self, conn: Connection, sound: set[Path]) -> None:
        there = {place for place in self._files if place.parts[0] == "inspections"}
        folders = {place.parts[1] for place in there if len(place.parts) > 2}
        filed, missing, empty = set(), [], []
        i, a = t.inspections.c, t.audit.c
        of_filing = t.inspections.outerjoin(t.audit, (a.inspection_id == i.inspection_id) & (a.kind == FILED))
        for row in conn.execute(select(i.inspection_id, i.report, a.facts).select_from(of_filing), **_STREAMED):
            inspection_id = row.inspection_id
            filed.add(inspection_id)
            if row.report == NO_REPORT:  # removed; without a record of that, the audit check tells
                continue
            written = _json(row.facts or "").get(ARTEFACTS)  # earlier versions wrote all that the report names
            report = _json(row.report)
            named = (report.get("artefacts") or {}).values() if written is None else written
            for path in filter(None, named):
                place = Path("inspections", inspection_id, Path(path).name)
                file = self._home / place
                if place not in there and not file.exists():  # not written since they were listed either
                    missing.append(f"{inspection_id}/{place.name}")
                elif file.exists() and not file.stat().st_size:
                    empty.append(f"{inspection_id}/{place.name}")
        remedy = "take them from a backup; photo and report are still in the home if nothing else is named here"
        self._add("missing", "files of filed inspections", missing, remedy)
        self._add("damaged", "files of filed inspections (empty)", empty, remedy)
        done, unfinished = self._jobs(conn, sound)
        self._add("missing", "inspections that the journal of jobs says are filed", done - filed,
                  "they were removed from the database: restore a backup")  # fmt: skip
        self._add("orphaned", "folders of inspections that were never filed", folders - filed - unfinished,
                  "delete them, or keep them; nothing names them")  # fmt: skip

    def _jobs(self, conn: Connection, sound: set[Path]) -> tuple[set[str], set[str]]:
        """Inspections that were requested and are (done, not done); those with a checkpoint are not done."""
        done: set[str] = set()
        unfinished: set[str] = set()
        for inspection_id, state in conn.execute(select(t.jobs.c.inspection_id, t.jobs.c.state)):
            (done if state == "done" else unfinished).add(inspection_id)
        threads = "SELECT DISTINCT thread_id FROM checkpoints"
        if inspect(conn).has_table("checkpoints"):
            unfinished |= {*conn.scalars(text(threads))}
        if Path("checkpoints.sqlite") in sound:
            with reading(self._home / "checkpoints.sqlite") as kept:
                unfinished |= {row[0] for row in kept.execute(threads)}
        return done, unfinished

    # -- photos and goldens

    def _needed(self, conn: Connection) -> None:
        c, i = t.captures.c, t.inspections.c
        photos = select(i.inspection_id, i.photo).where(i.photo.is_not(None), i.report != NO_REPORT)
        for inspected in conn.execute(photos, **_STREAMED):
            self._named[inspected.photo] = f"photo of inspection {inspected.inspection_id}"
        for row in conn.execute(select(c.part_id, c.capture_id, c.sha256), **_STREAMED):
            self._named[row.sha256] = f"photo {row.capture_id} of part {row.part_id}"
        for named in conn.execute(NAMED_NOW, **_STREAMED):
            self._named.setdefault(named.picture, f"picture of named finding {named.finding} of part {named.part_id}")

    def _bank(self) -> None:
        bank = self._bank_contents
        if isinstance(bank, str):
            self._add("unchecked", "the golden samples", [bank], "mend what the message names, and run it again")
            return
        self._add(
            "damaged", "golden samples", bank.damaged, "refdiff goldens reenroll makes them anew from their photos"
        )
        for golden in bank.goldens:
            self._named[golden.sha256] = f"golden {golden.golden_id} of {golden.product} ({golden.filename})"

    def _listed(self) -> tuple[ImageStore | None, set[str]]:
        """All photos. Before the records are read: what is removed meanwhile is not missing."""
        try:
            images = open_images(self._settings)
            return images, {*images.ids()}
        except RefDiffError as e:
            self._add("unreadable", "the photos", [str(e)], "see the message")
            return None, set()

    def _photos(self, images: ImageStore, photos: set[str], sound: set[Path]) -> None:
        damaged = []
        try:
            if missing := self._named.keys() - photos:
                missing -= {*images.ids()}  # those that came since
            for done, sha256 in enumerate(sorted(photos) if self._deep else (), start=1):
                self._progress("reading photos", done, len(photos))
                if _is_damaged(images, sha256):
                    damaged.append(f"{self._named.get(sha256, 'photo')} ({sha256})")
        except RefDiffError as e:
            self._add("unreadable", "the photos", [str(e)], "see the message")
            return
        remedy = "take them from a backup, or send the same files again (refdiff capture, refdiff enroll)"
        self._add("missing", "photos", (f"{self._named[sha]} ({sha})" for sha in missing), remedy)
        self._add("damaged", "photos", damaged, remedy)
        if self._mentioned is not None:
            others = (sha256_in(self._home / place) for place in sorted(sound - {Path(MAIN)}))
            mentioned = self._mentioned.union(*others)
            self._add("orphaned", "photos that nothing in the home names", photos - mentioned,
                      "delete them, or keep them: of refused requests, or of records that were lost")  # fmt: skip

    def _sha256_of(self, conn: Connection) -> set[str]:
        """Everything in the records that looks like a sha256."""
        found: set[str] = set()
        for number, table in enumerate(t.METADATA.sorted_tables, start=1):
            self._progress("reading records", number, len(t.METADATA.tables))
            for row in conn.execute(select(table), **_STREAMED):
                found.update(like_sha256(row))
        return found

    # -- what killed processes left, and who may read

    def _leftovers(self) -> None:
        left = list(abandoned(self._home, self._files))

        def clear() -> None:
            for place in left:
                remove(self._home, place)

        self._add("leftover", "files of processes that were killed", map(str, left), "refdiff doctor --repair removes them",
                  clear)  # fmt: skip

    def _exposed(self) -> None:
        if os.name != "posix":
            return
        below = {parent for place in self._files for parent in place.parents} - {Path()}
        exposed = []
        for place in (*below, *self._files):
            with contextlib.suppress(FileNotFoundError):
                if not (path := self._home / place).is_symlink() and path.stat().st_mode & 0o077:
                    exposed.append(place)

        def close() -> None:
            for place in exposed:
                path = self._home / place
                path.chmod(path.stat().st_mode & 0o700)

        self._add("exposed", "files and folders that others on this machine may read", map(str, exposed),
                  "refdiff doctor --repair closes them", close)  # fmt: skip


def _json(data: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # the audit check tells
        return {}
    return found if isinstance(found, dict) else {}


def _is_damaged(images: ImageStore, sha256: str) -> bool:
    try:
        images.check(sha256)
    except (DamagedError, StorageError):  # also a file that cannot be read
        return True
    except UnknownRecordError:  # removed meanwhile
        return False
    return False
