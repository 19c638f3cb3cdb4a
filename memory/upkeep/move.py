"""Moving the records of a home from its SQLite file to a Postgres database."""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, func, insert, select, text

from refdiff.memory.database import tables as t
from refdiff.memory.locks import hold_lock
from refdiff.memory.schema import MAIN, MOVED, open_main, open_server
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import InputError, StorageError, UnavailableError
from refdiff.model.files import storage_error
from refdiff.model.progress import Progress, silent

_AT_ONCE = 200  # rows


def move_records(settings: MemorySettings, progress: Progress = silent) -> dict[str, int]:
    """Copy all records of the home into the database of `settings.database_url`, which must hold none: table -> rows.

    All or none. The home then keeps its records there; the file stays as `refdiff.sqlite-moved`. Nothing else may use the
    home meanwhile.
    Raises InputError (no URL, no records in the home, records in the database), UnavailableError, StorageError.
    """
    home, url = settings.home, settings.database_url
    if url is None:
        raise InputError("set REFDIFF_DATABASE_URL to the database that is to have the records")
    if not (home / MAIN).exists():
        raise InputError(f"{home}: it has no {MAIN}; nothing is to be moved")
    with hold_lock(home / "serve.lock", UnavailableError(f"a refdiff server is using {home}; stop it first")):
        here = settings.model_copy(update={"database_url": None})
        with open_main(here) as source, open_server(home, url, lost="") as target:
            if source.read_only:
                raise StorageError(f"{home}: it is read-only; records are moved where the folder can be written")
            # a writer that is left over waits for the end, and then finds the file moved
            with source.transaction() as old, target.transaction() as new:
                copied = _copy(old, new, progress)
        try:
            (home / MAIN).rename(home / MOVED)
        except OSError as e:
            raise storage_error(home / MAIN, e) from e
    return copied


def _copy(old: Connection, new: Connection, progress: Progress) -> dict[str, int]:
    everything = t.METADATA.sorted_tables
    if any(_count(new, table) for table in everything if table is not t.audit_end):
        raise InputError(
            "the database of REFDIFF_DATABASE_URL already has records; name an empty one. If a move was interrupted at its "
            "very end, make the database anew and repeat it"
        )
    new.execute(delete(t.audit_end))
    for number, table in enumerate(everything, start=1):
        for rows in old.execute(select(table), execution_options={"yield_per": _AT_ONCE}).partitions():
            new.execute(insert(table), [dict(row._mapping) for row in rows])
        if "seq" in table.c and table.c.seq.identity is not None:
            _count_on(new, table)
        progress("tables", number, len(everything))
    copied = {table.name: _count(new, table) for table in everything}
    if differs := [name for name, n in copied.items() if n != _count(old, t.METADATA.tables[name])]:
        raise StorageError(f"not all rows of {', '.join(differs)} arrived; nothing was moved")
    return copied


def _count(conn: Connection, table: Table) -> int:
    return int(conn.scalar(select(func.count()).select_from(table)) or 0)


def _count_on(conn: Connection, table: Table) -> None:
    """Let the numbers that the database gives follow those that were copied."""
    last = conn.scalar(select(func.max(table.c.seq)))
    if last is not None:
        conn.execute(
            text("SELECT setval(pg_get_serial_sequence(:name, 'seq'), :last)"), {"name": table.name, "last": last}
        )
