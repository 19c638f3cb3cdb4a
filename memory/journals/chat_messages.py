"""Messages that people sent to a chat bot, identified by a key, so a platform's retry is recognised; answered once.

A message is kept before its receipt is acknowledged, and stays open until its answer is posted: a crash loses neither.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refdiff.memory.database import Database, Migrations
from refdiff.memory.timestamps import utc_now

_MOST_UNSETTLED = 20

_MIGRATIONS: Migrations = (
    (
        """CREATE TABLE messages (
            platform TEXT NOT NULL,
            key TEXT NOT NULL,
            request TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'received' CHECK (state IN ('received', 'inspecting', 'answered')),
            inspection_id TEXT,
            created_at TEXT NOT NULL,
            PRIMARY KEY (platform, key)
        )""",
        "CREATE INDEX messages_open ON messages(platform, created_at) WHERE state != 'answered'",
        """CREATE TABLE threads (
            platform TEXT NOT NULL,
            thread TEXT NOT NULL,
            inspection_id TEXT NOT NULL,
            PRIMARY KEY (platform, thread)
        )""",
    ),
    (
        "ALTER TABLE messages ADD COLUMN thread TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE messages ADD COLUMN unsettled INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX messages_unsettled ON messages(platform, thread, created_at) WHERE unsettled",
    ),
)


@dataclass(frozen=True)
class ChatMessage:
    """A message to the bot."""

    key: str  # the platform's own id of the message
    request: dict[str, Any]  # JSON data, as the platform's adapter wrote it
    state: Literal["received", "inspecting", "answered"]
    inspection_id: str | None  # the inspection it asked for


class ChatStore(AbstractContextManager["ChatStore"]):
    """Messages of one platform in `home/chat.sqlite`; a context manager; safe to share between threads.

    Every method raises StorageError where the disk fails.
    """

    def __init__(self, home: Path, platform: str) -> None:
        self._db, self._platform = Database(home / "chat.sqlite", _MIGRATIONS), platform

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def receive(self, key: str, request: dict[str, Any], thread: str = "") -> bool:
        """Keep a message, durably on return. False if it was received before."""
        with self._db.transaction() as conn:
            cursor = conn.execute(
                "INSERT INTO messages (platform, key, request, thread, created_at) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (self._platform, key, json.dumps(request, ensure_ascii=False), thread, utc_now()),
            )
            return cursor.rowcount == 1

    def change(self, key: str, request: dict[str, Any], thread: str) -> None:
        """Replace the request of a message, for example once the adapter knows where its answer goes."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE messages SET request = ?, thread = ? WHERE platform = ? AND key = ?",
                (json.dumps(request, ensure_ascii=False), thread, self._platform, key),
            )

    def inspecting(self, key: str, thread: str, inspection_id: str) -> None:
        """The message started an inspection; further questions in its thread are about that one."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE messages SET state = 'inspecting', inspection_id = ? WHERE platform = ? AND key = ?",
                (inspection_id, self._platform, key),
            )
            conn.execute(
                "UPDATE messages SET unsettled = 0 WHERE platform = ? AND thread = ? AND unsettled",
                (self._platform, thread),
            )
            conn.execute(
                "INSERT INTO threads VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET inspection_id = excluded.inspection_id",
                (self._platform, thread, inspection_id),
            )

    def answered(self, key: str, unsettled: bool = False) -> None:
        """The answer to the message was posted. unsettled: it asks for what the request lacks."""
        with self._db.transaction() as conn:
            conn.execute(
                "UPDATE messages SET state = 'answered', unsettled = ? WHERE platform = ? AND key = ?",
                (int(unsettled), self._platform, key),
            )

    def unsettled(self, thread: str, since: str) -> list[dict[str, Any]]:
        """The requests in a thread that lack something, newest first. since: ISO 8601, UTC."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT request FROM messages WHERE platform = ? AND thread = ? AND unsettled AND created_at >= ? "
                "ORDER BY created_at DESC, rowid DESC LIMIT ?",
                (self._platform, thread, since, _MOST_UNSETTLED),
            )
            return [json.loads(row["request"]) for row in rows]

    def get(self, key: str) -> ChatMessage | None:
        """The message of that key; None if it never came."""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT * FROM messages WHERE platform = ? AND key = ?", (self._platform, key)
            ).fetchone()
        return None if row is None else _message(row)

    def open(self) -> list[ChatMessage]:
        """Messages without an answer, oldest first."""
        with self._db.connection() as conn:
            rows = conn.execute(
                "SELECT * FROM messages WHERE platform = ? AND state != 'answered' ORDER BY created_at",
                (self._platform,),
            )
            return [_message(row) for row in rows]

    def inspection_of(self, thread: str) -> str | None:
        """The newest inspection asked for in that thread; None if there is none."""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT inspection_id FROM threads WHERE platform = ? AND thread = ?", (self._platform, thread)
            ).fetchone()
        return None if row is None else str(row["inspection_id"])


def _message(row: sqlite3.Row) -> ChatMessage:
    return ChatMessage(row["key"], json.loads(row["request"]), row["state"], row["inspection_id"])
