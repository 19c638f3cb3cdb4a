"""A Postgres server. Writers take turns by an advisory lock, which a transaction holds until it has committed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, InterfaceError, OperationalError, StatementError
from sqlalchemy.exc import TimeoutError as NoneFree
from sqlalchemy.pool import NullPool

from refdiff.memory.database.database import READERS
from refdiff.memory.database.sqlite_file import BUSY_TIMEOUT_S, not_storable
from refdiff.model.errors import RefDiffError, StorageError, UnavailableError

_WRITERS, _CONNECT_S = 4, 10
# any numbers, as long as nothing else in that database takes them
_WRITING, _SERVING = 0x7EFD1F01, 0x7EFD1F02


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
        self.shown = f"{address.host or address.query.get('host') or 'localhost'}/{address.database or ''}"
        self._given = address
        # each statement sees what was committed before it: what follows the wait for the turn sees the last writer's work
        self.writer = self._engine(pool_size=_WRITERS, isolation_level="READ COMMITTED")
        event.listen(self.writer, "connect", _wait_so_long)
        event.listen(self.writer, "begin", _wait_for_turn)
        # each statement of a reader is a transaction of its own
        self.reader = self._engine(pool_size=READERS, isolation_level="AUTOCOMMIT")
        self.snapshots = self._engine(poolclass=NullPool, isolation_level="REPEATABLE READ")
        for engine in (self.reader, self.snapshots):
            event.listen(engine, "connect", _refuse_writes)

    def _engine(self, **options: Any) -> Engine:
        if "pool_size" in options:
            options |= {"max_overflow": 0, "pool_pre_ping": True}  # a server that was restarted has closed them
        return create_engine(self._given, connect_args={"connect_timeout": _CONNECT_S}, **options)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """InputError for what it has no form for, UnavailableError where it does not answer, else StorageError."""
        try:
            yield
        except (UnicodeEncodeError, OverflowError) as e:
            raise not_storable(e) from e
        except DataError as e:
            raise not_storable(e.orig or e) from e
        except (OperationalError, InterfaceError) as e:
            raise UnavailableError(
                f"the database {self.shown} is unavailable ({type(e.orig).__name__}: {_first_line(e.orig)}); is it running, "
                "and REFDIFF_DATABASE_URL right?"
            ) from e
        except NoneFree as e:
            raise UnavailableError(f"the database {self.shown} is busy; try again") from e
        except DBAPIError as e:
            raise StorageError(f"the database {self.shown}: {_first_line(e.orig)}") from e
        except StatementError as e:
            if isinstance(e.orig, UnicodeEncodeError | OverflowError):
                raise not_storable(e.orig) from e
            raise

    @contextlib.contextmanager
    def only_one(self, busy: RefDiffError) -> Iterator[None]:
        """By a lock of a connection of its own. Should the server be restarted, it is held no more."""
        with contextlib.ExitStack() as held:
            with self.errors():
                conn = self.snapshots.connect().execution_options(isolation_level="AUTOCOMMIT")
                held.callback(_close, conn)
                if not conn.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _SERVING}).scalar_one():
                    raise busy
            yield


def _wait_for_turn(conn: Connection) -> None:
    conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITING})


def _wait_so_long(connection: Any, record: object) -> None:
    connection.execute(f"SET lock_timeout = '{BUSY_TIMEOUT_S:g}s'")
    connection.commit()


def _refuse_writes(connection: Any, record: object) -> None:
    connection.execute("SET default_transaction_read_only = on")
    connection.commit()


def _close(conn: Connection) -> None:
    with contextlib.suppress(DBAPIError):
        conn.close()


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
