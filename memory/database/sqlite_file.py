"""SQLite files: one connection that writes, some that read, in WAL mode; a commit is on the disk (`synchronous=FULL`)."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.pool import NullPool, QueuePool

from refdiff.memory.database.database import READERS, TAKES_NO_TURN, Database
from refdiff.memory.locks import hold_named_lock
from refdiff.model.errors import InputError, RefDiffError, StorageError
from refdiff.model.files import is_read_only, make_private, open_folder, storage_error

BUSY_TIMEOUT_S = 30.0

Step = str | Callable[[Connection], None]  # an SQL statement, or a function that runs some

# Entry i brings the file from user_version i to i + 1. Entries are only ever appended.
Steps = tuple[tuple[Step, ...], ...]


class SqliteFile:
    """The engine of a file, made if new, readable by the owner alone.

    One that cannot be written (its mode, its folder's, or a read-only disk) is opened for reading.
    """

    out_of_turn: Engine | None = None  # a file has one writer at a time

    def __init__(self, path: Path, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """busy_timeout_s: how long to wait for another process that writes. Raises StorageError."""
        self._file, self._busy_timeout_s = path, busy_timeout_s
        open_folder(path.parent)
        self.read_only = is_read_only(path) or (is_read_only(path.parent) and path.exists())
        if not self.read_only:
            make_private(path)
        self.writer, self.reader = (
            create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=size, max_overflow=0)
            for connect, size in ((self._writing, 1), (self._reading, READERS))
        )
        self.snapshots = create_engine("sqlite://", creator=self._reading, poolclass=NullPool)
        # SQLAlchemy leaves it to sqlite3, which guesses, where transactions begin; here they begin where they are opened
        _begins_with(self.writer, "BEGIN IMMEDIATE")
        _begins_with(self.snapshots, "BEGIN")

    @property
    def path(self) -> Path:
        return self._file

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's errors as StorageError; InputError for what it has no form for."""
        try:
            with unstorable_values():
                yield
        except DBAPIError as e:
            if isinstance(e.orig, sqlite3.Error):
                raise storage_error(self._file, e.orig) from e
            raise
        except sqlite3.Error as e:
            raise storage_error(self._file, e) from e
        except NoneFree as e:
            raise StorageError(f"{self._file}: busy for too long; try again") from e

    def lock(
        self, name: str, busy: RefDiffError, wait_s: float = 0.0, shared: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """By a lock file beside the database."""
        path = self._file.parent / "locks" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        return hold_named_lock(path, busy, wait_s=wait_s, shared=shared)

    @contextlib.contextmanager
    def alone(self, busy: RefDiffError) -> Iterator[Connection]:
        """A connection that keeps all others out of the file until the block ends. Raises `busy` if one has it open."""

        def connect() -> sqlite3.Connection:
            conn = self._connected(str(self._file))
            try:
                # only the last connection can leave WAL; the file then has no companions, and can be renamed
                if conn.execute("PRAGMA journal_mode=DELETE").fetchone()[0] != "delete":
                    raise busy
                return conn
            except BaseException as e:
                conn.close()
                if isinstance(e, sqlite3.OperationalError) and "locked" in str(e):
                    raise busy from e
                raise

        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
        _begins_with(engine, "BEGIN EXCLUSIVE")
        with contextlib.ExitStack() as held:
            with self.errors():
                conn = held.enter_context(engine.connect())
                held.enter_context(conn.begin())
            yield conn

    def _writing(self) -> sqlite3.Connection:
        if self.read_only:
            return self._reading()
        conn = self._connected(str(self._file))
        try:
            if not conn.execute("PRAGMA page_count").fetchone()[0]:  # only a new file takes it
                conn.execute("PRAGMA auto_vacuum=INCREMENTAL")
            _enter_wal(conn, self._busy_timeout_s)
            conn.execute("PRAGMA synchronous=FULL")
            conn.execute("PRAGMA foreign_keys=ON")
        except BaseException:
            conn.close()
            raise
        return conn

    def _reading(self) -> sqlite3.Connection:
        conn = self._of_read_only_file() if self.read_only else self._connected(str(self._file))
        conn.execute("PRAGMA query_only=ON")
        return conn

    def _of_read_only_file(self) -> sqlite3.Connection:
        uri = f"{self._file.absolute().as_uri()}?mode=ro"
        conn = self._connected(uri, uri=True)
        try:
            conn.execute("PRAGMA user_version").fetchone()
            return conn
        except sqlite3.OperationalError as e:
            conn.close()
            # a reader makes the log's index beside the file; without a log and without a writer there is nothing to index
            log = self._file.with_name(f"{self._file.name}-wal")
            if log.exists() and log.stat().st_size:
                raise StorageError(
                    f"{self._file}: its last changes are still in {log.name}, which cannot be read in a read-only folder "
                    f"({e}); copy the home folder to a place where you may write, and set REFDIFF_HOME to it"
                ) from e
            return self._connected(f"{uri}&immutable=1", uri=True)

    def _connected(self, name: str, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(
            name, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False, uri=uri
        )


def open_local(path: Path, steps: Steps) -> Database:
    """A file of this machine alone, which no server ever holds. Raises StorageError, also where a newer version wrote it."""
    return Database(SqliteFile(path), lambda db: _take_steps(db, path, steps))


def run_steps(conn: Connection, steps: Steps, done: int) -> None:
    """Bring the schema from version `done` to the newest, in the caller's transaction."""
    for step in (s for entry in steps[done:] for s in entry):
        if isinstance(step, str):
            conn.exec_driver_sql(step)
        else:
            step(conn)


def user_version(conn: Connection) -> int:
    return int(conn.exec_driver_sql("PRAGMA user_version").scalar_one())


def set_user_version(conn: Connection, version: int) -> None:
    conn.exec_driver_sql(f"PRAGMA user_version={version:d}")


def empty_log(conn: Connection) -> None:
    """Bring what is in the log into the file, and the log to 0 bytes. Waits for readers, no longer than for a writer."""
    user_version(conn)  # a connection sees the log from its first read on
    conn.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def free_bytes(conn: Connection) -> int:
    """Bytes of the file that hold nothing: they are written to again before it grows."""
    pages, size = (conn.exec_driver_sql(f"PRAGMA {of}").scalar_one() for of in ("freelist_count", "page_size"))
    return int(pages) * int(size)


def give_back(conn: Connection, pages: int) -> bool:
    """Cut free pages off the file, at most so many, within a write transaction; False if none was, e.g. as an earlier
    version made the file."""
    before = free_bytes(conn)
    # each page is a step of the statement
    conn.connection.driver_connection.execute(f"PRAGMA incremental_vacuum({pages:d})").fetchall()  # type: ignore[union-attr]
    return free_bytes(conn) < before


def leave_wal(path: Path) -> None:
    """End the file's WAL mode, so it has no companions. Raises StorageError, also while somebody has it open."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)) as conn:
            conn.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as e:
        raise storage_error(path, e) from e


def not_storable(error: Exception) -> InputError:
    """For a value that no database can hold."""
    return InputError(f"a text or number cannot be stored or looked up ({error}); correct it")


@contextlib.contextmanager
def unstorable_values() -> Iterator[None]:
    """InputError for what no database has a form for: half surrogates and 65-bit numbers."""
    try:
        yield
    except (UnicodeEncodeError, OverflowError) as e:
        raise not_storable(e) from e
    except StatementError as e:
        if isinstance(e.orig, UnicodeEncodeError | OverflowError):
            raise not_storable(e.orig) from e
        raise


def written_earlier(path: Path, version: str, newest: str) -> StorageError:
    """For a file of an earlier version in a read-only folder."""
    return StorageError(
        f"{path}: written by an earlier refdiff (schema {version}, this one writes {newest}), "
        "and it cannot be brought up to date in a read-only folder; copy the home folder to a place where you may "
        "write, and set REFDIFF_HOME to it"
    )


def written_later(where: str, version: str, newest: str) -> StorageError:
    """For a database of a newer version."""
    return StorageError(
        f"{where}: written by a newer refdiff (schema {version}, this one knows {newest}); upgrade refdiff or set "
        "REFDIFF_HOME to another folder"
    )


def _take_steps(db: Database, path: Path, steps: Steps) -> None:
    newest = len(steps)
    with db.connection() as conn:
        version = user_version(conn)
    if version == newest:
        return  # the usual case takes no write lock
    if db.read_only and version < newest:
        raise written_earlier(path, str(version), str(newest))
    with db.transaction() as conn:
        version = user_version(conn)  # again: another process may have done it meanwhile
        if version > newest:
            raise written_later(str(path), str(version), str(newest))
        run_steps(conn, steps, version)
        set_user_version(conn, newest)


def _begins_with(engine: Engine, statement: str) -> None:
    def begin(conn: Connection) -> None:
        if not conn.get_execution_options().get(TAKES_NO_TURN):
            conn.connection.driver_connection.execute(statement)  # type: ignore[union-attr]

    event.listen(engine, "begin", begin)


def _enter_wal(conn: sqlite3.Connection, timeout_s: float) -> None:
    """Switch to WAL. SQLite applies no busy timeout to this statement, so the waiting is done here."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            conn.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as e:
            if "locked" not in str(e) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
