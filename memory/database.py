"""SQLite files: transactions, threads and migrations. Knows no schema.

Threads take turns to write, over one connection. Readers have connections of their own and wait for nobody: in WAL mode
they see what was committed last. A transaction is on the disk when its `with` block ends (`synchronous=FULL`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from refdiff.model.errors import InputError, StorageError
from refdiff.model.files import is_read_only, make_private, open_folder, storage_error

BUSY_TIMEOUT_S = 30.0
READERS = 8  # at once; each holds file descriptors

Step = str | Callable[[sqlite3.Connection], None]  # an SQL statement, or a function that runs some

# Entry i brings the file from user_version i to i + 1. Entries are only ever appended.
Migrations = tuple[tuple[Step, ...], ...]


class Database(contextlib.AbstractContextManager["Database"]):
    """An open SQLite file; a context manager. Every method raises StorageError where SQLite or the disk fails."""

    def __init__(
        self,
        path: Path,
        migrations: Migrations,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        *,
        lost: str = "",
        after_commit: Callable[[sqlite3.Connection], None] = lambda conn: None,
    ) -> None:
        """Open the file, made if new, readable by the owner alone, and bring it to the newest schema of `migrations`.

        A file that cannot be written (its mode, its folder's, or a read-only disk) is opened for reading.
        busy_timeout_s: how long to wait for another process that writes. lost: what to say where the file is missing or
        empty, if it must not be made anew. after_commit: called after each transaction, before other threads go on.
        Raises StorageError also where a newer version wrote the file.
        """
        self.path, self._busy_timeout_s = path, busy_timeout_s
        self._migrations, self._lost, self._after_commit = migrations, lost, after_commit
        self._lock = threading.RLock()
        self._mine = threading.local()  # the connection that this thread is using
        self._idle: list[sqlite3.Connection] = []  # of readers
        self._free = threading.BoundedSemaphore(READERS)
        self._closed = False
        open_folder(path.parent)
        if lost and not path.exists():
            raise StorageError(f"{path}: {lost}")
        self._read_only = is_read_only(path) or (is_read_only(path.parent) and path.exists())
        if not self._read_only:
            make_private(path)
        with self._errors():
            self._conn = self._connect()
        try:
            with self._errors():
                if not self._read_only:
                    _enter_wal(self._conn, busy_timeout_s)
                    self._conn.execute("PRAGMA synchronous=FULL")
                    self._conn.execute("PRAGMA foreign_keys=ON")
            self._migrate()
        except BaseException:
            self._conn.close()
            raise

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction (BEGIN IMMEDIATE): committed and durable at the end, undone on any error."""
        with self._lock, self._errors():
            self._conn.execute("BEGIN IMMEDIATE")
            try:
                with self._used(self._conn):
                    yield self._conn
                self._conn.execute("COMMIT")
            except BaseException:
                if self._conn.in_transaction:
                    self._conn.execute("ROLLBACK")
                raise
            self._after_commit(self._conn)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for SELECT statements, never blocked by a writer of this or another process.

        Inside a transaction or another `connection` of the same thread it is the same one.
        """
        if (conn := getattr(self._mine, "conn", None)) is not None:
            with self._errors():
                yield conn
            return
        with self._free, self._errors():
            conn = self._reader()
            try:
                with self._used(conn):
                    yield conn
            finally:
                if self._closed or conn.in_transaction:
                    conn.close()
                else:
                    self._idle.append(conn)

    def _reader(self) -> sqlite3.Connection:
        if self._closed:
            raise sqlite3.ProgrammingError("the database is closed")
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        conn = self._connect()
        conn.execute("PRAGMA query_only=ON")
        return conn

    @contextlib.contextmanager
    def _used(self, conn: sqlite3.Connection) -> Iterator[None]:
        before = getattr(self._mine, "conn", None)
        self._mine.conn = conn
        try:
            yield
        finally:
            self._mine.conn = before

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A separate connection that sees the file as it is now, however long it reads, and blocks nobody.

        May move between threads, as a server's streams do.
        """
        with self._errors():
            conn = self._connect()
            try:
                conn.execute("PRAGMA query_only=ON")
                conn.execute("BEGIN")
                yield conn
            finally:
                conn.close()

    def close(self) -> None:
        """Close the connections; snapshots stay open."""
        with self._lock, self._errors():
            self._closed = True
            self._conn.close()
            while self._idle:
                self._idle.pop().close()

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise storage_error(self.path, e) from e
        except (UnicodeEncodeError, OverflowError) as e:  # SQLite has no form for half surrogates and 65-bit numbers
            raise InputError(f"a text or number cannot be stored or looked up ({e}); correct it") from e

    def _connect(self) -> sqlite3.Connection:
        if not self._read_only:
            return self._connected(str(self.path))
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        conn = self._connected(uri, uri=True)
        try:
            _version(conn)
            return conn
        except sqlite3.OperationalError as e:
            conn.close()
            # a reader makes the log's index beside the file; without a log and without a writer there is nothing to index
            log = self.path.with_name(f"{self.path.name}-wal")
            if log.exists() and log.stat().st_size:
                raise StorageError(
                    f"{self.path}: its last changes are still in {log.name}, which cannot be read in a read-only folder "
                    f"({e}); copy the home folder to a place where you may write, and set REFDIFF_HOME to it"
                ) from e
            return self._connected(f"{uri}&immutable=1", uri=True)

    def _connected(self, name: str, uri: bool = False) -> sqlite3.Connection:
        # isolation_level=None: transactions begin where this module says, not where sqlite3 guesses
        conn = sqlite3.connect(
            name, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False, uri=uri
        )
        conn.row_factory = sqlite3.Row
        return conn

    def _migrate(self) -> None:
        with self._errors():
            version = _version(self._conn)
            if version == len(self._migrations):
                return  # the usual case takes no write lock
        if self._read_only and version < len(self._migrations):
            raise StorageError(
                f"{self.path}: written by an earlier refdiff (schema {version}, this one writes {len(self._migrations)}), "
                "and it cannot be brought up to date in a read-only folder; copy the home folder to a place where you may "
                "write, and set REFDIFF_HOME to it"
            )
        with self.transaction() as conn:
            version = _version(conn)  # again: another process may have migrated meanwhile
            if version == 0 and self._lost:
                raise StorageError(f"{self.path}: {self._lost}")
            if version > len(self._migrations):
                raise StorageError(
                    f"{self.path}: written by a newer refdiff (schema {version}, this one knows "
                    f"{len(self._migrations)}); upgrade refdiff or set REFDIFF_HOME to another folder"
                )
            for step in (s for steps in self._migrations[version:] for s in steps):
                if isinstance(step, str):
                    conn.execute(step)
                else:
                    step(conn)
            conn.execute(f"PRAGMA user_version={len(self._migrations)}")


def _version(conn: sqlite3.Connection) -> int:
    return int(conn.execute("PRAGMA user_version").fetchone()[0])


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
