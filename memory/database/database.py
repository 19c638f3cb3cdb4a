"""An open database: transactions and threads. Knows no schema; where it lies is the engine's affair.

Writers take turns, in this process by a lock and among processes by one in the database, so what a transaction reads holds
until it commits. Readers have connections of their own and wait for nobody: they see what was committed last. A transaction
is durable when its `with` block ends.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine

from refdiff.model.errors import RefDiffError, StorageError

READERS = 8  # connections at once
TAKES_NO_TURN = "refdiff_takes_no_turn"  # option of a connection of `writer`: what begins on it only reads

log = logging.getLogger(__name__)


class DatabaseEngine(Protocol):
    """How one kind of database is reached."""

    read_only: bool  # nothing can be written there
    writer: Engine  # a transaction takes the turn to write as it begins, unless the connection has `TAKES_NO_TURN`
    reader: Engine  # refuses to write
    snapshots: Engine  # as `reader`, but a transaction sees one state
    # writes rows that it locks, without the turn of all writers; None: nobody can write without it
    out_of_turn: Engine | None

    @property
    def path(self) -> Path | None:
        """Of a file; None for a server."""

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns errors of the database into ours."""

    def lock(
        self, name: str, busy: RefDiffError, wait_s: float = 0.0, shared: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """As `Database.lock`."""


class Database(contextlib.AbstractContextManager["Database"]):
    """An open database; a context manager. Every method raises StorageError or UnavailableError where the database fails."""

    def __init__(
        self,
        engine: DatabaseEngine,
        prepare: Callable[[Database], None],
        after_commit: Callable[[Connection], None] = lambda conn: None,
    ) -> None:
        """prepare: brings the schema up to date.

        after_commit: called with a connection after each transaction, before other threads go on. The commit stands whatever
        it does: its errors are logged.
        """
        self._engine, self._after_commit = engine, after_commit
        for each in filter(None, (engine.writer, engine.reader, engine.snapshots, engine.out_of_turn)):
            each.hide_parameters = True  # no values in errors and logs: they may be secrets, or whole reports
        self._turn = threading.RLock()
        self._writing = False  # the thread whose turn it is
        self._mine = threading.local()  # the connection that this thread is using
        self._closed = False
        try:
            prepare(self)
        except BaseException:
            self.close()
            raise

    @property
    def path(self) -> Path | None:
        """The file; None on a server."""
        return self._engine.path

    @property
    def read_only(self) -> bool:
        return self._engine.read_only

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction: committed and durable at the end, undone on any error.

        Raises StorageError inside another one of the same thread.
        """
        with self._turn:
            if self._writing:
                raise StorageError("a transaction cannot begin within another one of the same thread")
            self._writing = True
            try:
                with self._opened(self._engine.writer) as conn, self._used(conn):
                    with conn.begin():
                        yield conn
                    self._follow(conn.execution_options(**{TAKES_NO_TURN: True}))
            finally:
                self._writing = False

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for SELECT statements, never blocked by a writer of this or another process.

        Each statement sees what was committed last. Inside a transaction or another `connection` of the same thread it is
        the same one.
        """
        if (conn := getattr(self._mine, "conn", None)) is not None:
            with self._engine.errors():
                yield conn
            return
        with self._opened(self._engine.reader) as conn, self._used(conn):
            yield conn

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A separate connection that sees the database as it is now, however long it reads, and blocks nobody.

        May move between threads, as a server's streams do.
        """
        with self._opened(self._engine.snapshots) as conn, conn.begin():
            yield conn

    @contextlib.contextmanager
    def out_of_turn(self) -> Iterator[Connection]:
        """As `transaction`, but on a server without waiting for other writers: for rows that it locks itself, and that are
        in no audit chain.

        Raises StorageError inside another one of the same thread.
        """
        engine = self._engine.out_of_turn
        if engine is None:
            with self.transaction() as conn:
                yield conn
            return
        if getattr(self._mine, "conn", None) is not None:
            raise StorageError("a transaction cannot begin within another one of the same thread")
        with self._opened(engine) as conn, self._used(conn), conn.begin():
            yield conn

    def lock(
        self, name: str, busy: RefDiffError, wait_s: float = 0.0, shared: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Held by one process at a time of all that use the database, until the block ends or the process does.

        wait_s: how long to wait for another holder. shared: held by any number of those that share it, but not beside one
        that does not. Raises `busy`.
        """
        return self._engine.lock(name, busy, wait_s, shared)

    def close(self) -> None:
        """Close the connections; snapshots stay open."""
        with self._turn, self._engine.errors():
            self._closed = True
            for engine in filter(None, (self._engine.writer, self._engine.reader, self._engine.out_of_turn)):
                engine.dispose()

    def __exit__(self, *error: object) -> None:
        self.close()

    def _follow(self, conn: Connection) -> None:
        try:
            self._after_commit(conn)
        except Exception:
            log.warning("what follows a commit failed; the commit stands", exc_info=True)

    @contextlib.contextmanager
    def _opened(self, engine: Engine) -> Iterator[Connection]:
        if self._closed:
            raise StorageError("the database is closed")
        with self._engine.errors(), engine.connect() as conn:
            yield conn

    @contextlib.contextmanager
    def _used(self, conn: Connection) -> Iterator[None]:
        before = getattr(self._mine, "conn", None)
        self._mine.conn = conn
        try:
            yield
        finally:
            self._mine.conn = before
