"""Checkpoints that let an interrupted inspection resume, and the lock that holds a running one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from pydantic import SecretStr

from refdiff.memory.locks import hold_lock
from refdiff.model.errors import StorageError, UnavailableError
from refdiff.model.files import make_private

# checkpoints may only hold types that can be read back safely: None allows the built-in ones and nothing else
# (LANGGRAPH_STRICT_MSGPACK is read when langgraph is imported, too early for us to set it)
_SERDE = JsonPlusSerializer(allowed_msgpack_modules=None)
Select = Callable[[str], Sequence[Mapping[str, Any]]]
_RECURSION_LIMIT = 400  # more than max_steps of a model plus the script can take, at three nodes per step


class Checkpoints:
    """The checkpoints of all inspections, and who runs which."""

    def __init__(self, saver: BaseCheckpointSaver[Any], home: Path, select: Select) -> None:
        """select: the rows of a query to the saver's own tables."""
        self.saver, self._home, self._select = saver, home, select

    def threads(self) -> list[str]:
        """Ids of the inspections that have checkpoints, sorted; what is in the checkpoints is not read."""
        rows = self._select("SELECT DISTINCT thread_id AS thread FROM checkpoints ORDER BY thread")
        return [str(row["thread"]) for row in rows]

    def claim(self, inspection_id: str) -> AbstractContextManager[None]:
        """Lock an inspection. Raises UnavailableError if another process holds it."""
        busy = UnavailableError(f"inspection {inspection_id} is running in another process; wait for it")
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
    """url: postgresql://...; default: SQLite under the home folder. Raises StorageError, UnavailableError."""
    with ExitStack() as stack:
        saver, select = _open_sqlite(home, stack) if url is None else _open_postgres(url, stack)
        yield Checkpoints(saver, home, select)


def _open_sqlite(home: Path, stack: ExitStack) -> tuple[BaseCheckpointSaver[Any], Select]:
    make_private(home / "checkpoints.sqlite")
    try:
        connection = sqlite3.connect(home / "checkpoints.sqlite", check_same_thread=False, timeout=30)
        stack.callback(connection.close)
        saver = SqliteSaver(connection, serde=_SERDE)
        saver.setup()
    except sqlite3.Error as e:
        raise StorageError(
            f"checkpoints under {home} cannot be opened: {e}; if `refdiff doctor` finds them damaged, it can set them aside"
        ) from e

    def select(query: str) -> list[Any]:
        cursor = connection.cursor()
        cursor.row_factory = sqlite3.Row
        return cursor.execute(query).fetchall()

    return saver, select


def _open_postgres(url: SecretStr, stack: ExitStack) -> tuple[BaseCheckpointSaver[Any], Select]:
    try:
        from langgraph.checkpoint.postgres import PostgresSaver
    except ImportError as e:
        raise UnavailableError("checkpoints in Postgres need: pip install 'refdiff[postgres]'") from e
    import psycopg

    try:
        saver = stack.enter_context(PostgresSaver.from_conn_string(url.get_secret_value()))
        saver.serde = _SERDE
        saver.setup()
    except psycopg.Error as e:
        raise UnavailableError(f"the checkpoint database is unavailable ({type(e).__name__}); is it running?") from e
    return saver, lambda query: saver.conn.execute(query).fetchall()


def run_config(inspection_id: str) -> Any:
    """The configuration of a run of the graph: the inspection is its thread."""
    return {"configurable": {"thread_id": inspection_id}, "recursion_limit": _RECURSION_LIMIT}
