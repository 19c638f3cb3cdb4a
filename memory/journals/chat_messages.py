"""Messages that people sent to a chat bot, identified by a key, so a platform's retry is recognised; answered once.

A message is kept before its receipt is acknowledged, and stays open until its answer is posted: a crash loses neither.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, select, update

from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.timestamps import utc_now

_M, _T = t.chat_messages.c, t.chat_threads.c


@dataclass(frozen=True)
class ChatMessage:
    """A message to the bot."""

    key: str  # the platform's own id of the message
    request: dict[str, Any]  # JSON data, as the platform's adapter wrote it
    state: Literal["received", "inspecting", "answered"]
    inspection_id: str | None  # the inspection it asked for
    created_at: str  # when it was received


class ChatStore:
    """Messages of one platform; safe to share between threads.

    Every method raises StorageError or UnavailableError where the database fails.
    """

    def __init__(self, db: Database, platform: str) -> None:
        self._db, self._platform = db, platform
        self._mine = _M.platform == platform

    def receive(self, key: str, request: dict[str, Any], thread: str = "") -> bool:
        """Keep a message, durably on return. False if it was received before."""
        with self._db.transaction() as conn:
            new = {"platform": self._platform, "key": key, "request": json.dumps(request), "thread": thread,
                   "created_at": utc_now()}  # fmt: skip
            return t.insert_new(conn, t.chat_messages, new)

    def change(self, key: str, request: dict[str, Any], thread: str, unsettled: bool = False) -> None:
        """Replace the request of a message, for example once the adapter knows where its answer goes. unsettled: it lacks
        something, which the answer asks for."""
        with self._db.transaction() as conn:
            self._set(conn, _M.key == key, request=json.dumps(request), thread=thread, unsettled=unsettled)

    def inspecting(self, key: str, thread: str, inspection_id: str, settled: Collection[str]) -> None:
        """The message started an inspection; further questions in its thread are about that one. settled: the keys of those
        that lack nothing any more."""
        with self._db.transaction() as conn:
            self._set(conn, _M.key == key, state="inspecting", inspection_id=inspection_id)
            self._set(conn, _M.key.in_(settled), unsettled=False)
            of_thread = {"platform": self._platform, "thread": thread, "inspection_id": inspection_id}
            t.put(conn, t.chat_threads, of_thread)

    def answered(self, key: str) -> None:
        """The answer to the message was posted."""
        with self._db.transaction() as conn:
            self._set(conn, _M.key == key, state="answered")

    def unsettled(self, thread: str, since: str) -> list[dict[str, Any]]:
        """The requests in a thread that lack something, newest first. since: ISO 8601, UTC."""
        with self._db.connection() as conn:
            found = conn.scalars(
                select(_M.request)
                .where(self._mine, _M.thread == thread, _M.unsettled, _M.created_at >= since)
                .order_by(_M.created_at.desc(), _M.seq.desc())
            ).all()
        return [json.loads(request) for request in found]

    def get(self, key: str) -> ChatMessage | None:
        """The message of that key; None if it never came."""
        with self._db.connection() as conn:
            row = t.find(conn, t.chat_messages, self._mine, _M.key == key)
        return None if row is None else _message(row)

    def open(self) -> list[ChatMessage]:
        """Messages without an answer, oldest first."""
        with self._db.connection() as conn:
            waiting = select(t.chat_messages).where(self._mine, _M.state != "answered")
            return [_message(row) for row in conn.execute(waiting.order_by(_M.created_at, _M.seq)).all()]

    def inspection_of(self, thread: str) -> str | None:
        """The newest inspection asked for in that thread; None if there is none."""
        with self._db.connection() as conn:
            of_thread = select(_T.inspection_id).where(_T.platform == self._platform, _T.thread == thread)
            return conn.scalar(of_thread)

    def _set(self, conn: Connection, which: ColumnElement[bool], **values: Any) -> None:
        conn.execute(update(t.chat_messages).where(self._mine, which).values(**values))


def _message(row: Row[Any]) -> ChatMessage:
    return ChatMessage(row.key, json.loads(row.request), row.state, row.inspection_id, row.created_at)
