"""Checkpoints that let an interrupted inspection resume, and the lock that holds a running one."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from pydantic import SecretStr

from refdiff.memory.database.postgres import connection_options
from refdiff.memory.locks import hold_lock, hold_named_lock
from refdiff.model.errors import ElsewhereError, StorageError, UnavailableError
from refdiff.model.files import make_private

# checkpoints may only hold types that can be read back safely: None allows the built-in ones and nothing else
# (LANGGRAPH_STRICT_MSGPACK is read when langgraph is imported, too early for us to set it)
_SERDE = JsonPlusSerializer(allowed_msgpack_modules=None)
_RECURSION_LIMIT = 400  # more than max_steps of a model plus the script can take, at three nodes per step
_CONNECTIONS, _CONNECT_S = 8, 10  # to Postgres
_SETTING_UP_S = 60
_SETTING_UP = 0x7EFD1F03  # a lock there; any number that nothing else takes

Select = Callable[[str], Sequence[Mapping[str, Any]]]
Failing = Callable[[], AbstractContextManager[None]]


class Checkpoints:
    """The checkpoints of all inspections, and who runs which."""

    def __init__(self, saver: BaseCheckpointSaver[Any], home: Path, select: Select, failing: Failing) -> None:
        """select: the rows of a query to the saver's own tables. failing: turns errors of its database into ours."""
        self.saver, self._home, self._select, self.failing = saver, home, select, failing

    def threads(self) -> list[str]:
        """Ids of the inspections that have checkpoints, sorted; what is in the checkpoints is not read."""
        with self.failing():
            rows = self._select("SELECT DISTINCT thread_id AS thread FROM checkpoints ORDER BY thread")
        return [str(row["thread"]) for row in rows]

    def remove(self, inspection_id: str) -> None:
        with self.failing():
            self.saver.delete_thread(inspection_id)

    def compact(self, inspection_id: str) -> None:
        """Keep the newest checkpoint of an inspection alone: what it waits with for a person.

        A crash meanwhile loses it, and with it nothing: the report is filed, and so is what the person decides.
        """
        place: Any = {"configurable": {"thread_id": inspection_id, "checkpoint_ns": ""}}
        with self.failing():
            newest = self.saver.get_tuple(place)
            if newest is None:
                return
            self.saver.delete_thread(inspection_id)
            kept = self.saver.put(place, newest.checkpoint, newest.metadata, newest.checkpoint["channel_versions"])
            for task in {task for task, _, _ in newest.pending_writes or ()}:
                writes = [(channel, value) for t, channel, value in newest.pending_writes or () if t == task]
                self.saver.put_writes(kept, writes, task)

    def claim(self, inspection_id: str) -> AbstractContextManager[None]:
        """Lock an inspection. Raises ElsewhereError if another process holds it."""
        busy = ElsewhereError(f"inspection {inspection_id} is running in another process; wait for it")
        return hold_lock(self._home / "locks" / f"{inspection_id}.lock", busy, remove=True)

    def is_claimed(self, inspection_id: str) -> bool:
        """True if another process runs the inspection."""
        try:
            with self.claim(inspection_id):
                return False
        except UnavailableError:
            return True


@contextmanager
def open_checkpoints(home: Path, url: SecretStr | None = None) -> Iterator[Checkpoints]:
    """url: postgresql://...; None: SQLite under the home folder. Raises StorageError, UnavailableError."""
    with ExitStack() as stack:
        yield _open_sqlite(home, stack) if url is None else _open_postgres(home, url, stack)


def _open_sqlite(home: Path, stack: ExitStack) -> Checkpoints:
    make_private(home / "checkpoints.sqlite")
    try:
        connection = sqlite3.connect(home / "checkpoints.sqlite", check_same_thread=False, timeout=30)
        stack.callback(connection.close)
        saver = SqliteSaver(connection, serde=_SERDE)
        busy = UnavailableError(
            "another process has been making the checkpoint tables for too long; try again, or end it"
        )
        # SQLite does not wait for another process that switches to WAL too
        with hold_named_lock(home / "locks" / "checkpoints.lock", busy, wait_s=_SETTING_UP_S):
            saver.setup()
    except sqlite3.Error as e:
        raise StorageError(
            f"checkpoints under {home} cannot be opened: {e}; if `refdiff doctor` finds them damaged, it can set them aside"
        ) from e

    def select(query: str) -> list[Any]:
        cursor = connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(query).fetchall()

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise StorageError(f"checkpoints under {home} cannot be read or written: {e}") from e

    return Checkpoints(saver, home, select, failing)


def _open_postgres(home: Path, url: SecretStr, stack: ExitStack) -> Checkpoints:
    try:
        import psycopg
        from langgraph.checkpoint.postgres import PostgresSaver
        from psycopg.rows import dict_row
        from psycopg_pool import ConnectionPool
    except ImportError as e:
        raise UnavailableError("checkpoints in Postgres need: pip install 'refdiff[postgres]'") from e

    @contextmanager
    def failing() -> Iterator[None]:
        try:
            yield
        except psycopg.Error as e:
            raise UnavailableError(
                f"the checkpoint database is unavailable ({type(e).__name__}); is it running?"
            ) from e

    where = url.get_secret_value()
    with failing():
        options = connection_options(psycopg.conninfo.conninfo_to_dict(where))
        how = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row, **options}
        psycopg.connect(where, **options).close()  # the pool would keep trying
        # a pool, since a connection that was lost once stays lost
        pool: ConnectionPool[psycopg.Connection[dict[str, Any]]] = stack.enter_context(
            ConnectionPool(
                where,
                connection_class=psycopg.Connection[dict[str, Any]],
                kwargs=how,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=_CONNECT_S,
                check=ConnectionPool.check_connection,
            )
        )
        saver = PostgresSaver(pool, serde=_SERDE)
        with pool.connection() as conn:  # several processes may begin at once
            # not waited for in the database: its CREATE INDEX CONCURRENTLY waits for every statement that is running
            deadline = time.monotonic() + _SETTING_UP_S
            while conn.execute("SELECT 1 WHERE pg_try_advisory_lock(%s)", (_SETTING_UP,)).fetchone() is None:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        "another process has been making the checkpoint tables for too long; try again, or end it"
                    )
                time.sleep(0.1)
            try:
                saver.setup()
            finally:
                conn.execute("SELECT pg_advisory_unlock(%s)", (_SETTING_UP,))

    def select(query: str) -> list[Any]:
        with pool.connection() as conn:
            return conn.execute(query).fetchall()

    return Checkpoints(saver, home, select, failing)


def run_config(inspection_id: str) -> Any:
    """The configuration of a run of the graph: the inspection is its thread."""
    return {"configurable": {"thread_id": inspection_id}, "recursion_limit": _RECURSION_LIMIT}
