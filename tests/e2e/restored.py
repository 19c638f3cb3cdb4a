"""Is a backup that was taken under load what the records were at one moment? Restored elsewhere and compared, row by row."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, select

from refdiff.memory.audit_chain import DISPOSITION
from refdiff.memory.database import tables as t
from refdiff.memory.stores import Stores

PASSING = {"workers", "audit_end"}  # tables of what is so now
CHANGES = {"jobs": {"state", "attempts", "error", "updated_at", "deaths", "alone", "crashes_alone", "place", "failures",
                    "not_before", "worker", "lease_until", "hangs"}}  # fmt: skip  # columns: a job goes on after the backup
TRIES, PAUSE_S = 20, 2.0  # of a backup while the database is killed


class Backup:
    """One backup, made by `refdiff backup` beside the load, in a thread of its own."""

    def __init__(self, refdiff: Path, environment: Mapping[str, str], target: Path, live: Stores) -> None:
        self._command = [str(refdiff), "backup", str(target), "--json"]
        self._environment, self.target, self._live = dict(environment), target, live
        self.tries = 0
        self.seconds = 0.0  # of the try that came to its end
        self.said = ""  # by the last one that did not
        self.before: dict[str, int] = {}  # the newest number in each table before it began
        self.after: dict[str, int] = {}  # and after its end
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for self.tries in range(1, TRIES + 1):
            began = time.monotonic()
            try:
                self.before = newest(self._live)
                done = subprocess.run(self._command, env=self._environment, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    self.seconds, self.after = time.monotonic() - began, newest(self._live)
                    return
                self.said = done.stderr[-500:]
            except Exception as e:  # the database is down
                self.said = str(e)
            time.sleep(PAUSE_S)


def newest(stores: Stores) -> dict[str, int]:
    """The highest number in each table that counts."""
    with stores.db.snapshot() as conn:
        return {
            table.name: conn.scalar(select(func.coalesce(func.max(table.c.seq), 0))) or 0
            for table in t.METADATA.sorted_tables
            if "seq" in table.c and table.name not in PASSING
        }


def compare(restored: Stores, live: Stores, made: Backup, homes: tuple[Path, Path]) -> dict[str, Any]:
    """Every row that was there at the backup's own moment must be in it, and equal; every photo of a part, too.

    homes: folders of both. Only rows of jobs change, and of tables that say what is so now, which are left out. A row's
    moment is its number in its table, or that of its audit record: writers take turns, so numbers follow the commits.
    """
    rows, wrong = dict[str, int](), list[str]()
    with restored.db.snapshot() as theirs, live.db.snapshot() as ours:
        ended = theirs.scalar(select(func.max(t.audit.c.seq))) or 0
        filed = set(theirs.scalars(select(t.inspections.c.inspection_id)))
        decided = set(ours.scalars(
            select(t.audit.c.inspection_id).where(t.audit.c.kind == DISPOSITION, t.audit.c.seq <= ended)
        ))  # fmt: skip
        for table in t.METADATA.sorted_tables:
            if table.name in PASSING:
                continue
            there, here = _rows(theirs, table), _rows(ours, table)
            rows[table.name] = len(there)
            wrong += [f"{table.name} {key}: differs" for key, row in there.items() if here.get(key) != row]
            if "seq" in table.c:
                last, bounds = (
                    max((key[0] for key in there), default=0),
                    (made.before[table.name], made.after[table.name]),
                )
                if not bounds[0] <= last <= bounds[1]:
                    wrong.append(f"{table.name}: ends with {last}, not between {bounds[0]} and {bounds[1]}")
                due = {key for key in here if key[0] <= last}
            elif table is t.dispositions:
                due = {key for key in here if key[0] in decided}
            elif "inspection_id" in table.c:
                due = {key for key in here if key[0] in filed}
            else:
                due = {*here}
            wrong += [f"{table.name} {key}: missing" for key in sorted(due - there.keys())]
        photos = set(theirs.scalars(select(t.captures.c.sha256)))
    for sha256 in sorted(photos):
        try:
            restored.images.check(sha256)
        except Exception as e:
            wrong.append(f"photo {sha256}: {e}")
    goldens = [_dump(home / "goldens.sqlite") for home in homes]
    if goldens[0] != goldens[1]:
        wrong.append("goldens.sqlite: differs")
    checked = restored.audit.verify_store(photos=True)
    if checked.problem is not None:
        wrong.append(f"audit chain: {checked.problem}")
    return {"rows": {n: c for n, c in rows.items() if c}, "photos": len(photos), "audit_records": checked.records,
            "wrong": wrong}  # fmt: skip


def _rows(conn: Connection, table: Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Key -> the columns that never change."""
    fixed = [c for c in table.c if c.name not in CHANGES.get(table.name, ())]
    key = [c.name for c in table.primary_key]
    found = (dict(row._mapping) for row in conn.execute(select(*fixed)))
    return {tuple(row[name] for name in key): row for row in found}


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as conn:
        return list(conn.iterdump())
