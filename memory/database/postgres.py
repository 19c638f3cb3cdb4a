"""A Postgres server. Writers take turns by an advisory lock, which a transaction holds until it has committed."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Container, Iterator
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.pool import NullPool

from refdiff.memory.database.database import READERS, TAKES_NO_TURN
from refdiff.memory.database.sqlite_file import BUSY_TIMEOUT_S, not_storable, unstorable_values
from refdiff.model.errors import RefDiffError, StorageError, UnavailableError

_WRITERS = 1  # of a process; its threads take turns
_OUT_OF_TURN = 2  # of a process: the inspecting thread, and the one that says that it lives
# a lost network is noticed within a minute, also while an answer is awaited; what the URL says comes first
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# any numbers, as long as nothing else in that database takes them
_WRITING = 0x7EFD1F01
_LOCK_NOT_AVAILABLE, _IDLE_TOO_LONG = "55P03", "25P03"  # SQLSTATE
_IDLE_S = 60  # then the server undoes a transaction whose client says nothing: it may have lost power
# of the transaction alone, so nothing of it stays on a connection that a pooler hands on
_WRITES = (
    f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_S:g}s'; SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_S}s'; "
    "SET LOCAL synchronous_commit = on"
)
_TURN = f"{_WRITES}; SELECT pg_advisory_xact_lock({_WRITING})"
_LOOK_S = 0.2  # between two tries to get a lock


class PostgresServer:
    """The engine of a database on a server. All of its errors become UnavailableError where waiting helps."""

    path: None = None
    read_only = False

    def __init__(self, url: SecretStr) -> None:
        """url: postgresql://user:password@host/name. Raises UnavailableError (driver missing, no such address)."""
        try:
            import psycopg  # noqa: F401
        except ImportError as e:
            raise UnavailableError("records in Postgres need: pip install 'refdiff[postgres]'") from e
        try:
            address = make_url(url.get_secret_value()).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError) as e:  # ValueError: the port
            raise UnavailableError("REFDIFF_DATABASE_URL: write postgresql://user:password@host/name") from e
        if "@" in (address.host or ""):  # the rest of a password, which no message may show
            raise UnavailableError("REFDIFF_DATABASE_URL: percent-encode user name and password (@ is %40)")
        self.shown = f"{address.host or address.query.get('host') or 'localhost'}/{address.database or ''}"
        self._given = address
        # each statement sees what was committed before it: what follows the wait for the turn sees the last writer's work
        self.writer = self._engine(pool_size=_WRITERS, isolation_level="READ COMMITTED")
        event.listen(self.writer, "begin", _wait_for_turn)
        self.out_of_turn: Engine | None = self._engine(pool_size=_OUT_OF_TURN, isolation_level="READ COMMITTED")
        event.listen(self.out_of_turn, "begin", lambda conn: conn.exec_driver_sql(_WRITES))
        reads: dict[str, Any] = {"execution_options": {"postgresql_readonly": True}}
        self.reader = self._engine(pool_size=READERS, isolation_level="READ COMMITTED", **reads)
        self.snapshots = self._engine(poolclass=NullPool, isolation_level="REPEATABLE READ", **reads)

    def _engine(self, **options: Any) -> Engine:
        if "pool_size" in options:
            options |= {"max_overflow": 0, "pool_pre_ping": True}  # a server that was restarted has closed them
        return create_engine(self._given, connect_args=connection_options(self._given.query), **options)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """InputError for what it has no form for, UnavailableError where it does not answer, else StorageError."""
        try:
            with unstorable_values():
                yield
        except DataError as e:
            raise not_storable(e.orig or e) from e
        except (OperationalError, InterfaceError) as e:
            if _sqlstate(e) == _LOCK_NOT_AVAILABLE:
                raise UnavailableError(
                    f"other processes have been writing to the database {self.shown} for more than {BUSY_TIMEOUT_S:g} s; "
                    "try again"
                ) from e
            raise UnavailableError(
                f"the database {self.shown} is unavailable ({type(e.orig).__name__}: {_first_line(e.orig)}); is it running, "
                "and REFDIFF_DATABASE_URL right?"
            ) from e
        except NoneFree as e:
            raise UnavailableError(f"the database {self.shown} is busy; try again") from e
        except DBAPIError as e:
            if _sqlstate(e) == _IDLE_TOO_LONG:
                raise UnavailableError(
                    f"the database {self.shown} undid a transaction that did nothing for {_IDLE_S} s; try again"
                ) from e
            raise StorageError(f"the database {self.shown}: {_first_line(e.orig)}") from e

    @contextlib.contextmanager
    def lock(self, name: str, busy: RefDiffError, wait_s: float = 0.0, shared: bool = False) -> Iterator[None]:
        """By an advisory lock of a connection of its own. Should the server be restarted, it is held no more."""
        key = int.from_bytes(hashlib.sha256(f"refdiff {name}".encode()).digest()[:8], "big", signed=True)
        attempt = text(f"SELECT pg_try_advisory_lock{'_shared' if shared else ''}(:key)")
        deadline = time.monotonic() + wait_s
        with contextlib.ExitStack() as held:
            with self.errors():
                conn = self.snapshots.connect().execution_options(isolation_level="AUTOCOMMIT")
                held.callback(_close, conn)
                while not conn.execute(attempt, {"key": key}).scalar_one():
                    if time.monotonic() >= deadline:
                        raise busy
                    time.sleep(_LOOK_S)
            yield


def connection_options(given: Container[str]) -> dict[str, Any]:
    """libpq's options of every connection, but for those `given` in its URL."""
    return {name: value for name, value in _CONNECTION.items() if name not in given}


def _wait_for_turn(conn: Connection) -> None:
    if not conn.get_execution_options().get(TAKES_NO_TURN):
        conn.exec_driver_sql(_TURN)


def _sqlstate(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _close(conn: Connection) -> None:
    with contextlib.suppress(DBAPIError):
        conn.close()


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
