"""API keys: 256 random bits, of which only the sha256 is kept, with a name and a role.

A key is long and random, so a plain digest cannot be reversed by guessing; a password would need a slow hash.

The operator's key is the exception: whoever may read the home folder may do everything anyway, so its text is kept there
(`operator.key`, mode 0600), and servers on this machine use the same one after every start.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import unicodedata
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from refdiff.memory.changes import KEY, State, recorded
from refdiff.memory.database import Database, Migrations
from refdiff.memory.schema import open_main
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.model.files import storage_error, write_atomic

Role = Literal["viewer", "inspector", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may also do what the roles before it may

OPERATOR_FILE = "operator.key"
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
    ("ALTER TABLE keys ADD COLUMN operator INTEGER NOT NULL DEFAULT 0",),
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
        self._operator_file = home / OPERATOR_FILE
        with contextlib.ExitStack() as opened:
            self._chain = opened.enter_context(open_main(home))
            self._db = opened.enter_context(Database(home / "keys.sqlite", _MIGRATIONS))
            self._open = opened.pop_all()

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def add(self, name: str, role: Role, created_by: str) -> tuple[ApiKey, str]:
        """A new key and its secret text, which is not stored. Raises InputError (name, role, name of another valid key)."""
        return self._add(name.strip(), role, created_by)

    def operator(self, name: str, *, make: bool) -> tuple[ApiKey, str] | None:
        """The operator's key (admin) and its text, kept in the home folder; None if there is none and `make` is false.

        name: of the person who runs this machine's servers, for a new one. One process at a time may make it.
        Raises StorageError.
        """
        try:
            text = self._operator_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as e:
            raise storage_error(self._operator_file, e) from e
        if (known := self.check(text)) is not None:
            return known, text
        if not make:
            return None
        with self._db.connection() as conn:
            lost = conn.execute("SELECT key_id FROM keys WHERE operator AND revoked_at IS NULL").fetchall()
        for row in lost:  # the file was lost, or holds another home's key
            self.revoke(row["key_id"], name)
        taken = {person(k.name) for k in self.list() if k.revoked_at is None}
        key, text = self._add(f"{name} (this machine)" if person(name) in taken else name, "admin", name, operator=True)
        write_atomic(self._operator_file, text.encode())
        return key, text

    def _add(self, name: str, role: Role, created_by: str, operator: bool = False) -> tuple[ApiKey, str]:
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise InputError(f"name of a key: give 1 to {_MAX_NAME} printable characters, who or what will use it")
        if role not in ROLES:
            raise InputError(f"role {role!r}: a role is one of {', '.join(ROLES)}")
        key = ApiKey(f"k-{secrets.token_hex(4)}", name, role, utc_now(), created_by, None)
        text = f"{_PREFIX}_{key.key_id[2:]}_{secrets.token_urlsafe(32)}"
        with self._db.connection() as conn:
            _check_free(conn, name)  # a refused name leaves no record
        with self._recorded(key.key_id, created_by, None, key), self._db.transaction() as conn:
            _check_free(conn, name)
            conn.execute(
                "INSERT INTO keys (key_id, name, role, sha256, created_at, created_by, operator) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key.key_id, key.name, key.role, _digest(text), key.created_at, key.created_by, operator),
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
        """Whether any key is valid besides the operator's own."""
        with self._db.connection() as conn:
            found = conn.execute("SELECT 1 FROM keys WHERE revoked_at IS NULL AND NOT operator LIMIT 1").fetchone()
        return found is not None

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

    def _recorded(self, key_id: str, by: str, before: ApiKey | None, after: ApiKey) -> AbstractContextManager[None]:
        """The audit record of a change, on the disk of the main database before the keys change."""
        return recorded(self._chain, KEY, key_id, by, key_state(before) if before else None, key_state(after))


def key_state(key: ApiKey) -> State:
    """What an audit record says of a key."""
    return {"name": key.name, "role": key.role, "revoked_at": key.revoked_at}


def _check_free(conn: sqlite3.Connection, name: str) -> None:
    """Raises InputError where a valid key has that name."""
    for row in conn.execute("SELECT key_id, name FROM keys WHERE revoked_at IS NULL"):
        if person(row["name"]) == person(name):
            raise InputError(
                f"the key {row['key_id']} already has the name {row['name']!r}, which stands in reports; choose "
                f"another name, or revoke that key first: refdiff keys revoke {row['key_id']}"
            )


def person(name: str) -> str:
    """A name as it is compared: Ana, ana and a stray blank are one person."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _key(row: sqlite3.Row) -> ApiKey:
    return ApiKey(**{name: row[name] for name in ApiKey.__dataclass_fields__})
