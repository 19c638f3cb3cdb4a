"""The record database of a home, and its one way to be opened: `refdiff.sqlite` in it, or a Postgres server.

Its schema is that of `database/tables.py`; Alembic's revisions bring a database there when it is opened.
"""

from __future__ import annotations

import contextlib
import re
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from refdiff.memory.audit_chain import adopt_earlier
from refdiff.memory.audit_head import NAME as AUDIT_HEAD
from refdiff.memory.audit_head import AuditHead
from refdiff.memory.database import earlier
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.database.postgres import PostgresServer
from refdiff.memory.database.sqlite_file import (
    SqliteFile,
    empty_log,
    set_user_version,
    user_version,
    written_earlier,
    written_later,
)
from refdiff.memory.locks import hold_lock, holds_lock
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import StorageError, UnavailableError
from refdiff.model.files import open_folder

MAIN = "refdiff.sqlite"
MOVING, MOVED = f"{MAIN}-moving", f"{MAIN}-moved"  # its name while `refdiff move-records` runs, and afterwards
MIGRATIONS = Path(__file__).parent / "database" / "migrations"
_REVISION = re.compile(r"r\d{4}")  # how revisions there are called
NEWEST = "r0009"  # the last revision there
_VERSION = Table(  # as Alembic makes it
    "alembic_version", MetaData(), Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)  # fmt: skip
_FENCE = 1000  # a `user_version` that versions before Alembic refuse as of a newer one
_OTHERS = ("images", "inspections", *earlier.OTHERS, "checkpoints.sqlite", "goldens.sqlite", ".restoring", AUDIT_HEAD)
_LOST = (
    "the main database is missing or empty, but this home is not new: it has {others}. Put the file back, set "
    "REFDIFF_DATABASE_URL if its records are on a server, or restore a backup into an empty folder (refdiff restore). To "
    "begin anew, set REFDIFF_HOME to another folder"
)


def other_stores(home: Path) -> list[str]:
    """What of a home is there besides the main database; [] in a new one."""
    found = (home / name for name in _OTHERS)
    return [p.name for p in found if (any(p.iterdir()) if p.is_dir() else p.exists())]


def open_main(settings: MemorySettings) -> Database:
    """Open the record database of a home, made if the home is new. Each of its commits moves the audit head.

    Raises StorageError where it is damaged, lost while other stores remain, or of a newer version, and UnavailableError
    where a server does not answer.
    """
    home = open_folder(settings.home)
    # looked for before the database is: the process that makes a home makes the database first
    lost = _LOST.format(others=", ".join(others)) if (others := other_stores(home)) else ""
    if (home / MOVING).exists() and not (home / MAIN).exists():
        raise StorageError(
            f"{home}: its records are being moved to Postgres; if that was interrupted, repeat it (refdiff move-records)"
        )
    if settings.database_url is not None:
        if (home / MAIN).exists():
            raise StorageError(
                f"{home}: it keeps its records in {MAIN}, not in the database of REFDIFF_DATABASE_URL; move them there "
                "(refdiff move-records), unset that, or set REFDIFF_HOME to another folder"
            )
        return open_server(home, settings.database_url, lost)
    path = home / MAIN
    if (home / MOVED).exists() and not path.exists():
        raise StorageError(
            f"{home}: its records were moved to a Postgres database; set REFDIFF_DATABASE_URL to that one"
        )
    if lost and not path.exists():
        raise StorageError(f"{path}: {lost}")
    db = Database(SqliteFile(path), lambda db: _migrate(db, home, str(path), lost), AuditHead(home).follow)
    if others and not db.read_only:
        earlier.set_aside(db, home)
    return db


def new_file(path: Path) -> Database:
    """A new record database in a file. Raises StorageError."""
    return Database(SqliteFile(path), _make)


def _make(db: Database) -> None:
    with db.transaction() as conn:
        make_schema(conn)
        _fence(conn)


def open_server(home: Path, url: SecretStr, lost: str) -> Database:
    """Open the record database of a home on a server. lost: what to say where it is empty; "": it may be."""
    server = PostgresServer(url)
    where = f"database {server.shown}"
    return Database(server, lambda db: _migrate(db, home, where, lost), AuditHead(home).follow)


def _migrate(db: Database, home: Path, where: str, lost: str) -> None:
    """Bring the schema up to date, in one transaction, by one process at a time."""
    with db.connection() as conn:
        # in this order: a process that makes the database in between gives it both, and then only the revision counts
        old, version = _old_version(conn), _revision(conn)
    if version == NEWEST:
        return  # the usual case takes no turn to write
    _refuse_other(where, version, old)
    if db.read_only:
        raise written_earlier(Path(where), version or str(old), NEWEST)
    with contextlib.ExitStack() as held, db.transaction() as conn:
        version, old = _revision(conn), _old_version(conn)  # again: another process may have migrated meanwhile
        if version == NEWEST:
            return
        if version is None and old == 0 and lost:
            raise StorageError(f"{where}: {lost}")
        _refuse_other(where, version, old)
        if version is not None:
            _run_revisions(conn)
        elif old:
            held.enter_context(_without_server(home))  # until all is committed
            earlier.bring_up(conn, old)
            _run_revisions(conn, stamped=earlier.REVISION)
            if earlier.was_before_audit(old):
                adopt_earlier(conn)
            earlier.take_over(conn, home)
        else:
            theirs = {*inspect(conn).get_table_names()} & {*t.METADATA.tables, _VERSION.name}
            if theirs:
                raise _foreign(where, f"it has a table {min(theirs)}, and says no version of refdiff's")
            make_schema(conn)
        _fence(conn)
    if db.path is not None:
        with db.connection() as conn:
            empty_log(conn)


def make_schema(conn: Connection) -> None:
    """Make the newest schema in an empty database: what all revisions make, in less time and without Alembic."""
    t.METADATA.create_all(conn, checkfirst=False)
    conn.execute(insert(t.audit_end).values(seq=0))
    _VERSION.create(conn)
    conn.execute(insert(_VERSION).values(version_num=NEWEST))


def _fence(conn: Connection) -> None:
    """Keep versions before Alembic out of a file."""
    if conn.dialect.name == "sqlite":
        set_user_version(conn, _FENCE)


def _refuse_other(where: str, version: str | None, old: int) -> None:
    """Raises StorageError for a database of a newer version, or of another program."""
    if version is not None and not _REVISION.fullmatch(version):
        raise _foreign(where, f"its {_VERSION.name} says {version!r}, which is no version of refdiff's")
    if version is not None and version > NEWEST:
        raise written_later(where, version, NEWEST)
    if version is None and old > earlier.newest():
        raise written_later(where, str(old), str(earlier.newest()))


def _foreign(where: str, what: str) -> StorageError:
    return StorageError(f"{where}: it belongs to another program: {what}; name a database that refdiff has for itself")


def _without_server(home: Path) -> AbstractContextManager[None]:
    """Held while no server uses the home: one of an earlier version would go on writing into what is moved."""
    lock = home / "serve.lock"
    if holds_lock(lock):
        return contextlib.nullcontext()
    return hold_lock(lock, UnavailableError(
        f"a refdiff server of an earlier version is using {home}; stop the server first, then repeat this: "
        "it brings the home up to date"
    ))  # fmt: skip


def _revision(conn: Connection) -> str | None:
    """Alembic's revision of the database; None where it has none."""
    if not inspect(conn).has_table(_VERSION.name):
        return None
    return conn.scalar(select(_VERSION.c.version_num))


def _old_version(conn: Connection) -> int:
    """The `user_version` of versions before Alembic; 0 in a new database."""
    return user_version(conn) if conn.dialect.name == "sqlite" else 0


def _run_revisions(conn: Connection, stamped: str | None = None) -> None:
    """Run those that the database lacks. stamped: the revision that it is at without knowing it."""
    from alembic import command  # takes longer to import than to see that nothing is to be done
    from alembic.config import Config

    config = Config(attributes={"connection": conn})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if stamped is not None:
        command.stamp(config, stamped)
    command.upgrade(config, NEWEST)
