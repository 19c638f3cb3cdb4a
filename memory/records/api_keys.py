"""API keys: 256 random bits, of which only the sha256 is kept, with a name and a role.

A key is long and random, so a plain digest cannot be reversed by guessing; a password would need a slow hash.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from refdiff.memory.changes import KEY, State, recorded
from refdiff.memory.database import Database, Migrations
from refdiff.memory.schema import MIGRATIONS
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError, UnknownRecordError

Role = Literal["viewer", "inspector", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may also do what the roles before it may

_PREFIX = "rdk"
_MAX_NAME = 128
_MIGRATIONS: Migrations = (
    (
        """CREATE TABLE keys (
            key_id TEXT PRIMARY KEY,
            name TEXT NOT NULL,
            role TEXT NOT NULL CHECK (role IN ('viewer', 'inspector', 'admin')),
            sha256 TEXT NOT NULL,
            created_at TEXT NOT NULL,
            created_by TEXT NOT NULL,
            revoked_at TEXT
        )""",
    ),
)


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret."""

    key_id: str
    name: str  # the person or program that uses it
    role: Role
    created_at: str  # ISO 8601, UTC
    created_by: str
    revoked_at: str | None  # ISO 8601, UTC; None while it is valid


class KeyStore(AbstractContextManager["KeyStore"]):
    """The keys in `home/keys.sqlite`; a context manager, safe to share between threads and processes."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._db = Database(home / "keys.sqlite", _MIGRATIONS)

    def __exit__(self, *error: object) -> None:
        self._db.close()

    def add(self, name: str, role: Role, created_by: str) -> tuple[ApiKey, str]:
        """A new key and its secret text, which is not stored. Raises InputError (name, role)."""
        name = name.strip()
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise InputError(f"name of a key: give 1 to {_MAX_NAME} printable characters, who or what will use it")
        if role not in ROLES:
            raise InputError(f"role {role!r}: a role is one of {', '.join(ROLES)}")
        key = ApiKey(f"k-{secrets.token_hex(4)}", name, role, utc_now(), created_by, None)
        text = f"{_PREFIX}_{key.key_id[2:]}_{secrets.token_urlsafe(32)}"
        with self._recorded(key.key_id, created_by, None, key), self._db.transaction() as conn:
            conn.execute(
                "INSERT INTO keys (key_id, name, role, sha256, created_at, created_by) VALUES (?, ?, ?, ?, ?, ?)",
                (key.key_id, key.name, key.role, _digest(text), key.created_at, key.created_by),
            )
        return key, text

    def check(self, text: str) -> ApiKey | None:
        """The key of that text if it is valid, else None. Takes the same time whatever the secret part is."""
        prefix, _, rest = text.partition("_")
        key_id = f"k-{rest.partition('_')[0]}" if prefix == _PREFIX else ""
        with self._db.connection() as conn:
            row = conn.execute(
                "SELECT * FROM keys WHERE key_id = ?", (key_id.encode("utf-8", "replace").decode(),)
            ).fetchone()
        kept = row["sha256"] if row is not None else "0" * 64
        same = hmac.compare_digest(_digest(text), kept)
        return _key(row) if same and row is not None and row["revoked_at"] is None else None

    def list(self) -> builtins.list[ApiKey]:
        """All keys including revoked ones, oldest first."""
        with self._db.connection() as conn:
            return [_key(row) for row in conn.execute("SELECT * FROM keys ORDER BY created_at, key_id")]

    def any_good(self) -> bool:
        """Whether any key is valid."""
        with self._db.connection() as conn:
            return conn.execute("SELECT 1 FROM keys WHERE revoked_at IS NULL LIMIT 1").fetchone() is not None

    def revoke(self, key_id: str, by: str = "unknown") -> ApiKey:
        """Revoke a key, immediately and permanently; again changes nothing. Raises UnknownRecordError."""
        with self._db.connection() as conn:
            row = conn.execute("SELECT * FROM keys WHERE key_id = ?", (key_id,)).fetchone()
        if row is None:
            raise UnknownRecordError(f"no key {key_id!r}; `refdiff keys list` shows them")
        known = _key(row)
        if known.revoked_at is not None:
            return known
        ended = replace(known, revoked_at=utc_now())
        with self._recorded(key_id, by, known, ended), self._db.transaction() as conn:
            conn.execute(
                "UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL", (ended.revoked_at, key_id)
            )
        return ended

    @contextlib.contextmanager
    def _recorded(self, key_id: str, by: str, before: ApiKey | None, after: ApiKey) -> Iterator[None]:
        """The audit record of a change, on the disk of the main database before the keys change."""
        with (
            Database(self._home / "refdiff.sqlite", MIGRATIONS) as chain,
            recorded(chain, KEY, key_id, by, key_state(before) if before else None, key_state(after)),
        ):
            yield


def key_state(key: ApiKey) -> State:
    """What an audit record says of a key."""
    return {"name": key.name, "role": key.role, "revoked_at": key.revoked_at}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(**{name: row[name] for name in ApiKey.__dataclass_fields__})
