"""Progress of each photo in a watched folder: a crash between any two steps loses nothing and repeats nothing.

A photo is claimed (with the id of its inspection, before anything else happens) and ended (filed or refused); then its line
is written, its file is moved and its message is sent. Each step is recorded when it is done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import RowMapping

from refdiff.memory.database.sqlite_file import Steps, open_local
from refdiff.memory.rows.watched import FileIdentity
from refdiff.memory.timestamps import utc_now

Outcome = Literal["filed", "refused"]

_STEPS: Steps = (
    (
        """CREATE TABLE photos (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            name BLOB NOT NULL,
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            inode TEXT NOT NULL,
            inspection_id TEXT NOT NULL UNIQUE,
            part_id TEXT NOT NULL,
            product TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'claimed' CHECK (state IN ('claimed', 'filed', 'refused')),
            starts INTEGER NOT NULL DEFAULT 1,
            claimed_at TEXT NOT NULL,
            ended_at TEXT,
            event TEXT,
            written INTEGER NOT NULL DEFAULT 0,
            moved INTEGER NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX photos_open ON photos(seq) WHERE state = 'claimed' OR written = 0 OR moved = 0",
        """CREATE TABLE messages (
            seq INTEGER PRIMARY KEY REFERENCES photos(seq),
            state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'refused')),
            tries INTEGER NOT NULL DEFAULT 0,
            next_try REAL NOT NULL DEFAULT 0,
            error TEXT
        )""",
        "CREATE INDEX messages_open ON messages(seq) WHERE state = 'pending'",
    ),
)


@dataclass(frozen=True)
class WatchedPhoto:
    """A photo in the journal."""

    seq: int  # order of claiming
    identity: FileIdentity
    inspection_id: str
    part_id: str
    product: str
    state: Literal["claimed", "filed", "refused"]
    starts: int  # how often its inspection was started; more than once only after a crash
    claimed_at: str  # ISO 8601, UTC
    event: dict[str, Any] | None  # the result as JSON data; None while claimed
    written: bool  # its line is written
    moved: bool  # its file is moved or deleted


@dataclass(frozen=True)
class Message:
    """An event to be sent."""

    seq: int  # of the photo
    event: dict[str, Any]  # JSON data
    tries: int  # failed so far
    next_try: float  # Unix time in s; not due before


class WatchJournal(AbstractContextManager["WatchJournal"]):
    """The journal of one watched folder; a context manager; safe to share between threads.

    Every method raises StorageError where the disk fails.
    """

    def __init__(self, path: Path) -> None:
        self._db = open_local(path, _STEPS)

    def __exit__(self, *error: object) -> None:
        self._db.close()

    # -- photos

    def claim(self, identity: FileIdentity, inspection_id: str, part_id: str = "", product: str = "") -> WatchedPhoto:
        """Claim a photo, durably on return. Its seq is higher than all before."""
        with self._db.transaction() as conn:
            cursor = conn.exec_driver_sql(
                "INSERT INTO photos (name, size, mtime_ns, inode, inspection_id, part_id, product, claimed_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*_key(identity), inspection_id, part_id, product, utc_now()),
            )
            claimed = conn.exec_driver_sql("SELECT * FROM photos WHERE seq = ?", (cursor.lastrowid,))
            return _photo(claimed.mappings().one())

    def start_again(self, seq: int) -> int:
        """Record that an inspection starts again after a crash; the number of starts so far."""
        with self._db.transaction() as conn:
            conn.exec_driver_sql("UPDATE photos SET starts = starts + 1 WHERE seq = ?", (seq,))
            return int(conn.exec_driver_sql("SELECT starts FROM photos WHERE seq = ?", (seq,)).scalar_one())

    def withdraw(self, seq: int) -> None:
        """Forget a claim whose file vanished or changed before it was read."""
        with self._db.transaction() as conn:
            conn.exec_driver_sql("DELETE FROM photos WHERE seq = ? AND state = 'claimed'", (seq,))

    def end(self, seq: int, outcome: Outcome, event: dict[str, Any], send: bool) -> None:
        """Record the photo's outcome; a second call changes nothing. send: queue a message as well."""
        with self._db.transaction() as conn:
            cursor = conn.exec_driver_sql(
                "UPDATE photos SET state = ?, event = ?, ended_at = ? WHERE seq = ? AND state = 'claimed'",
                (outcome, json.dumps(event, ensure_ascii=False, allow_nan=False), utc_now(), seq),
            )
            if send and cursor.rowcount == 1:
                conn.exec_driver_sql("INSERT INTO messages (seq) VALUES (?)", (seq,))

    def unfinished(self) -> list[WatchedPhoto]:
        """Photos that still need a step, in order of claiming."""
        with self._db.connection() as conn:
            rows = conn.exec_driver_sql(
                "SELECT * FROM photos WHERE state = 'claimed' OR written = 0 OR moved = 0 ORDER BY seq"
            )
            return [_photo(row) for row in rows.mappings()]

    def refused_since(self, then: str) -> list[WatchedPhoto]:
        """Photos that were refused since a time (ISO 8601, UTC), in order of claiming."""
        with self._db.connection() as conn:
            rows = conn.exec_driver_sql(
                "SELECT * FROM photos WHERE state = 'refused' AND ended_at >= ? ORDER BY seq", (then,)
            )
            return [_photo(row) for row in rows.mappings()]

    def done(self, seqs: Iterable[int], step: Literal["written", "moved"]) -> None:
        """Record that lines were written or files moved."""
        with self._db.transaction() as conn:
            if marked := [(s,) for s in seqs]:
                conn.exec_driver_sql(f"UPDATE photos SET {step} = 1 WHERE seq = ?", marked)

    def count(self) -> dict[str, int]:
        """How many photos are claimed, filed and refused, over all time."""
        with self._db.connection() as conn:
            return dict(map(tuple, conn.exec_driver_sql("SELECT state, COUNT(*) FROM photos GROUP BY state")))

    # -- messages

    def next_message(self) -> Message | None:
        """The oldest unsent message, whether due or not; None if all are sent."""
        with self._db.connection() as conn:
            row = conn.exec_driver_sql(
                "SELECT m.seq, m.tries, m.next_try, p.event FROM messages m JOIN photos p USING (seq) "
                "WHERE m.state = 'pending' ORDER BY m.seq LIMIT 1"
            ).first()
        return None if row is None else Message(row.seq, json.loads(row.event), row.tries, row.next_try)

    def message_done(self, seq: int, state: Literal["sent", "refused"], error: str | None = None) -> None:
        """The receiver took the message, or refused it for good with `error`."""
        with self._db.transaction() as conn:
            conn.exec_driver_sql(
                "UPDATE messages SET state = ?, tries = tries + 1, error = ? WHERE seq = ?", (state, error, seq)
            )

    def message_failed(self, seq: int, error: str, wait_s: float) -> None:
        """A try failed with `error`; the next one is due in `wait_s` seconds."""
        with self._db.transaction() as conn:
            conn.exec_driver_sql(
                "UPDATE messages SET tries = tries + 1, error = ?, next_try = ? WHERE seq = ?",
                (error, time.time() + wait_s, seq),
            )

    def count_messages(self) -> dict[str, int]:
        """How many messages are pending, sent and refused by the receiver, by state."""
        with self._db.connection() as conn:
            return dict(map(tuple, conn.exec_driver_sql("SELECT state, COUNT(*) FROM messages GROUP BY state")))


def _key(identity: FileIdentity) -> tuple[bytes, int, int, str]:
    # names need not be text, and inodes of some file systems have 64 bits and no sign
    return os.fsencode(identity.name), identity.size, identity.mtime_ns, str(identity.inode)


def _photo(row: RowMapping) -> WatchedPhoto:
    return WatchedPhoto(
        seq=row["seq"],
        identity=FileIdentity(os.fsdecode(row["name"]), row["size"], row["mtime_ns"], int(row["inode"])),
        inspection_id=row["inspection_id"],
        part_id=row["part_id"],
        product=row["product"],
        state=row["state"],
        starts=row["starts"],
        claimed_at=row["claimed_at"],
        event=None if row["event"] is None else json.loads(row["event"]),
        written=bool(row["written"]),
        moved=bool(row["moved"]),
    )
