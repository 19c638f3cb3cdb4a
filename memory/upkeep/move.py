"""Moving the records of a home between its SQLite file and a Postgres database, and its photos into a bucket."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, Text, delete, func, insert, select, text

from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.database.sqlite_file import SqliteFile, leave_wal
from refdiff.memory.locks import hold_lock
from refdiff.memory.photos.bucket_images import BucketImages
from refdiff.memory.photos.image_store import FolderImages
from refdiff.memory.schema import MAIN, MOVED, MOVING, new_file, open_main, open_server
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import PHOTOS, PHOTOS_MOVED, PHOTOS_MOVING, check_bucket, note_bucket
from refdiff.model.errors import DamagedError, InputError, StorageError, UnavailableError, UnknownRecordError
from refdiff.model.files import make_folder, storage_error
from refdiff.model.progress import Progress, silent

_AT_ONCE = 200  # rows


def move_records(settings: MemorySettings, progress: Progress = silent) -> dict[str, int]:
    """Copy all records of the home into the database of `settings.database_url`, which must hold none: table -> rows.

    All or none. The home then keeps its records there; the file stays as `refdiff.sqlite-moved`. Nothing else may use the
    home meanwhile.
    Raises InputError (no URL, no records in the home, a text with a NUL, records in the database), UnavailableError (also
    where another process has the file open), StorageError.
    """
    home, url = settings.home, settings.database_url
    if url is None:
        raise InputError("set REFDIFF_DATABASE_URL to the database that is to have the records")
    if not (home / MAIN).exists() and not (home / MOVING).exists():
        raise InputError(f"{home}: it has no {MAIN}; nothing is to be moved")
    with hold_lock(home / "serve.lock", UnavailableError(f"a refdiff server is using {home}; stop it first")):
        if not (home / MAIN).exists():  # an earlier move was killed
            _rename(home / MOVING, home / MAIN)
        here = settings.model_copy(update={"database_url": None})
        with open_main(here) as source:  # brought up to date
            if source.read_only:
                raise StorageError(f"{home}: it is read-only; records are moved where the folder can be written")
        file = SqliteFile(home / MAIN)
        used = UnavailableError(f"{home / MAIN}: another program has it open; stop it first, then repeat this")
        with file.alone(used) as old, open_server(home, url, lost="") as target:
            with file.errors():
                _check_texts(old)
            with _out_of_sight(home), target.transaction() as new:
                check_empty(new)
                copied = _copy(old, new, progress, file.errors)
    return copied


@dataclass
class MovedPhotos:
    photos: int  # that are in the bucket now
    damaged: list[str] = field(default_factory=list)  # sha256 of those that are not, and stay in the folder


def move_photos(settings: MemorySettings, progress: Progress = silent) -> MovedPhotos:
    """Copy all photos of the home into the bucket of `settings.objects_url`. The folder stays as `images-moved`.

    What was interrupted is repeated. Photos that other processes take meanwhile are moved, too; what one of them takes
    afterwards lies in `images` again, and is moved by another call. Raises InputError (no URL, no photos), UnavailableError,
    StorageError.
    """
    home, url = settings.home, settings.objects_url
    if url is None:
        raise InputError("set REFDIFF_OBJECTS_URL to the bucket that is to have the photos: s3://bucket/prefix")
    check_bucket(home, url)
    folder, moving, aside = home / PHOTOS, home / PHOTOS_MOVING, home / PHOTOS_MOVED
    if not folder.is_dir() and not moving.is_dir():
        raise InputError(f"{home}: it has no {PHOTOS}/; nothing is to be moved")
    with hold_lock(home / "serve.lock", UnavailableError(f"a refdiff server is using {home}; stop it first")):
        there, copied, damaged = BucketImages(url), set[str](), set[str]()

        def copy(source: Path) -> None:
            here = FolderImages(source)
            photos = sorted({*here.ids()} - copied)
            for number, sha256 in enumerate(photos, start=1):
                with contextlib.suppress(UnknownRecordError):  # pruned meanwhile
                    try:
                        here.check(sha256)
                    except DamagedError:
                        damaged.add(sha256)
                        continue
                    with here.opened(sha256) as photo:
                        there.put_file(photo)
                    copied.add(sha256)
                progress("photos", number, len(photos))

        while moving.is_dir() or folder.is_dir():
            if not moving.is_dir():
                copy(folder)
                there.ask()
                note_bucket(home, url)  # before anything else tells that they are not in the folder
                _rename(folder, moving)
            copy(moving)  # what came since, and what an interrupted move left
            if aside.exists():
                _merge(moving, aside)
            else:
                _rename(moving, aside)
    return MovedPhotos(len(copied), sorted(damaged - copied))  # which may have been sent again


def _merge(source: Path, target: Path) -> None:
    """Move the photos of one folder into another one that has some already, and remove the first."""
    here, there = FolderImages(source), FolderImages(target)
    try:
        for sha256 in list(here.ids()):
            place = there.path(sha256)
            make_folder(place.parent)
            shutil.move(here.path(sha256), place)
        shutil.rmtree(source)
    except OSError as e:
        raise storage_error(source, e) from e


def copy_to_file(source: Database, target: Path, progress: Progress = silent) -> None:
    """Copy all records of a database, as they are at one moment, into a new SQLite file. Raises StorageError."""
    with new_file(target) as file, source.snapshot() as old, file.transaction() as new:
        _copy(old, new, progress)
    leave_wal(target)


def check_empty(conn: Connection) -> None:
    """Raises InputError where a database has records."""
    if any(_count(conn, table) for table in t.METADATA.sorted_tables if table is not t.audit_end):
        raise InputError(
            "the database of REFDIFF_DATABASE_URL already has records; name an empty one. If a move was interrupted at its "
            "very end, make the database anew and repeat it"
        )


@contextlib.contextmanager
def _out_of_sight(home: Path) -> Iterator[None]:
    """What begins meanwhile finds no file, rather than waiting for one that is then written to in vain."""
    _rename(home / MAIN, home / MOVING)
    try:
        yield
    except BaseException:
        _rename(home / MOVING, home / MAIN)
        raise
    _rename(home / MOVING, home / MOVED)


def _rename(old: Path, new: Path) -> None:
    try:
        old.rename(new)
    except OSError as e:
        raise storage_error(old, e) from e


def _check_texts(old: Connection) -> None:
    """Raises InputError for a text that Postgres cannot hold."""
    for table in t.METADATA.sorted_tables:
        for column in (c for c in table.c if isinstance(c.type, Text)):
            with_nul = select(*table.primary_key).where(func.instr(column, func.char(0)) > 0)
            if (row := old.execute(with_nul.limit(1)).first()) is not None:
                key = ", ".join(f"{name} {value!r}" for name, value in row._mapping.items())
                raise InputError(
                    f"{table.name}, {key}: its {column.name} has a NUL character, which Postgres cannot hold; nothing was "
                    "moved. Keep these records in SQLite"
                )


def _copy(
    old: Connection,
    new: Connection,
    progress: Progress,
    reading: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
) -> dict[str, int]:
    """Copy all rows into the newest tables, which are empty: table -> rows. reading: turns errors of `old` into ours."""
    everything = t.METADATA.sorted_tables
    new.execute(delete(t.audit_end))
    for number, table in enumerate(everything, start=1):
        for rows in _rows(old, table, reading):
            new.execute(insert(table), rows)
        if new.dialect.name == "postgresql" and "seq" in table.c and table.c.seq.identity is not None:
            _count_on(new, table)  # SQLite does so by itself
        progress("tables", number, len(everything))
    copied = {table.name: _count(new, table) for table in everything}
    with reading():
        there = {table.name: _count(old, table) for table in everything}
    if differs := [name for name, n in copied.items() if n != there[name]]:
        raise StorageError(f"not all rows of {', '.join(differs)} arrived; nothing was copied")
    return copied


def _rows(
    old: Connection, table: Table, reading: Callable[[], AbstractContextManager[None]]
) -> Iterator[list[dict[str, Any]]]:
    with reading():
        for rows in old.execute(select(table), execution_options={"yield_per": _AT_ONCE}).partitions():
            yield [dict(row._mapping) for row in rows]


def _count(conn: Connection, table: Table) -> int:
    return int(conn.scalar(select(func.count()).select_from(table)) or 0)


def _count_on(conn: Connection, table: Table) -> None:
    """Let the numbers that the database gives follow those that were copied."""
    last = conn.scalar(select(func.max(table.c.seq)))
    if last is not None:
        conn.execute(
            text("SELECT setval(pg_get_serial_sequence(:name, 'seq'), :last)"), {"name": table.name, "last": last}
        )
