"""API keys: 256 random bits, of which only the sha256 is kept, with a name and a role.

A key is long and random, so a plain digest cannot be reversed by guessing; a password would need a slow hash.

The operator's key is the exception: whoever may read the home folder may do everything anyway, so its text is kept there
(`operator.key`, mode 0600), and servers on this machine use the same one after every start.
"""

from __future__ import annotations

import builtins
import hashlib
import hmac
import secrets
import unicodedata
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, or_, select, update

from refdiff.memory.changes import KEY, State, changing, record_change
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.kinds import OPERATOR_FILE, ROLES, Role
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.model.files import storage_error, write_atomic

KEYS, SIGN_INS = ("rdk", "k"), ("rds", "s")  # how their texts and ids begin; sign_ins.py has the latter
MAX_NAME = 128
_K = t.keys.c
_IS_KEY = _K.key_id.startswith(f"{KEYS[1]}-")


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret, or a sign-in (see sign_ins.py)."""

    key_id: str
    name: str  # the person or program that uses it
    role: Role
    created_at: str  # ISO 8601, UTC
    created_by: str  # of a sign-in: who that is for the identity provider
    revoked_at: str | None  # ISO 8601, UTC; None: it was not
    expires_at: str | None = None  # ISO 8601, UTC; None: never

    def valid(self, at: str) -> bool:
        """Whether it opens the door at that time (ISO 8601, UTC)."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > at)


class KeyStore:
    """The keys; safe to share between threads and processes."""

    def __init__(self, db: Database, home: Path) -> None:
        """home: where the operator's key is kept."""
        self._db, self._operator_file = db, home / OPERATOR_FILE

    def add(self, name: str, role: Role, created_by: str, lasts: timedelta | None = None) -> tuple[ApiKey, str]:
        """A new key and its secret text, which is not stored. lasts: how long it is valid; None: until it is revoked.

        Raises InputError (name, role, name of another valid key, a time that has passed or that no calendar has).
        """
        return self._add(name.strip(), role, created_by, expires_at=later_by(lasts))

    def rotate(
        self, which: str, by: str, keep: timedelta, lasts: timedelta | None = None
    ) -> tuple[ApiKey, str, ApiKey]:
        """A new key with name and role of another one: the new key, its secret text, and the other one as it is now.

        which: the other key's id, or its name: then the newest valid key of that name. keep: how long the other one stays
        valid, at most. lasts: how long the new one is valid; None: as long as the other one was to be. Raises
        UnknownRecordError without a valid key of that id or name, InputError as `add`, and for the operator's key.
        """
        if keep < timedelta(0):
            raise InputError("a key cannot be kept for less than no time")
        until = to_utc(_later(keep))
        with changing(self._db) as conn:
            row = _newest_valid(conn, which)
            if row.operator:
                raise InputError(
                    f"{row.key_id} is the key of this machine's operator; revoke it (refdiff keys revoke {row.key_id}), and "
                    "the next start of refdiff serve makes a new one"
                )
            known = as_key(row)
            if lasts is None and known.expires_at is not None:
                lasts = datetime.fromisoformat(known.expires_at) - datetime.fromisoformat(known.created_at)
            kept = replace(known, expires_at=until if known.expires_at is None else min(until, known.expires_at))
            conn.execute(update(t.keys).where(_K.key_id == known.key_id).values(expires_at=kept.expires_at))
            if kept != known:
                record_change(conn, KEY, known.key_id, by, key_state(known), key_state(kept))
            new, text = insert_key(conn, known.name, known.role, by, expires_at=later_by(lasts))
        return new, text, kept

    def operator(self, name: str, *, make: bool) -> tuple[ApiKey, str] | None:
        """The operator's key (admin) and its text, kept in the home folder; None if there is none and `make` is false.

        Where its text is lost, the key is revoked.

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
        with self._db.connection() as conn:
            lost = conn.scalars(select(_K.key_id).where(_K.operator, _K.revoked_at.is_(None))).all()
        for key_id in lost:  # the file was lost, or the home was restored elsewhere: whoever has it has nothing
            self.revoke(key_id, name)
        if not make:
            return None
        with self._db.connection() as conn:
            taken = taken_names(conn)
        key, text = self._add(f"{name} (this machine)" if person(name) in taken else name, "admin", name, operator=True)
        write_atomic(self._operator_file, text.encode())
        return key, text

    def _add(
        self, name: str, role: Role, created_by: str, operator: bool = False, expires_at: str | None = None
    ) -> tuple[ApiKey, str]:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise InputError(f"name of a key: give 1 to {MAX_NAME} printable characters, who or what will use it")
        if role not in ROLES:
            raise InputError(f"role {role!r}: a role is one of {', '.join(ROLES)}")
        with changing(self._db) as conn:
            _check_free(conn, name)
            return insert_key(conn, name, role, created_by, operator, expires_at)

    def check(self, text: str) -> ApiKey | None:
        """The key of that text if it is valid, else None. Takes the same time whatever the secret part is."""
        return valid_key(self._db, text, KEYS)

    def list(self) -> builtins.list[ApiKey]:
        """All keys including revoked and expired ones, oldest first."""
        with self._db.connection() as conn:
            found = select(t.keys).where(_IS_KEY).order_by(_K.created_at, _K.key_id)
            return [as_key(row) for row in conn.execute(found).all()]

    def any_good(self) -> bool:
        """Whether there is a key besides the operator's own that was not revoked.

        One that has expired counts: a door that a key has closed is not opened by the clock.
        """
        with self._db.connection() as conn:
            return t.find(conn, t.keys, _K.revoked_at.is_(None), ~_K.operator, _IS_KEY) is not None

    def revoke(self, key_id: str, by: str = "unknown") -> ApiKey:
        """Revoke a key, or end a sign-in, immediately and permanently; again changes nothing. Raises UnknownRecordError."""
        with changing(self._db) as conn:
            row = t.get(conn, t.keys, key_id=key_id)
            if row is None:
                raise UnknownRecordError(f"no key {key_id!r}; `refdiff keys list` shows them")
            return end_key(conn, as_key(row), by)


def key_state(key: ApiKey) -> State:
    """What an audit record says of a key. Without an expiry it says what earlier versions said."""
    expires = {} if key.expires_at is None else {"expires_at": key.expires_at}
    person = {"person": key.created_by} if key.key_id.startswith(f"{SIGN_INS[1]}-") else {}
    return {"name": key.name, "role": key.role, "revoked_at": key.revoked_at, **expires, **person}


def insert_key(
    conn: Connection,
    name: str,
    role: Role,
    created_by: str,
    operator: bool = False,
    expires_at: str | None = None,
    kind: tuple[str, str] = KEYS,
) -> tuple[ApiKey, str]:
    """A new row of `keys` with its audit record, in the caller's `changing`; and its secret text. Checks nothing."""
    begins, letter = kind
    number = secrets.token_hex(4 if kind == KEYS else 8)  # each sign-in is a row: 32 bits would meet again
    key = ApiKey(f"{letter}-{number}", name, role, utc_now(), created_by, None, expires_at)
    text = f"{begins}_{number}_{secrets.token_urlsafe(32)}"
    conn.execute(insert(t.keys), vars(key) | {"sha256": _digest(text), "operator": operator})
    record_change(conn, KEY, key.key_id, created_by if kind == KEYS else name, None, key_state(key))
    return key, text


def end_key(conn: Connection, key: ApiKey, by: str) -> ApiKey:
    """Revoke a key or a sign-in with its audit record, in the caller's `changing`; one that was revoked stays as it is."""
    if key.revoked_at is not None:
        return key
    ended = replace(key, revoked_at=utc_now())
    conn.execute(update(t.keys).where(_K.key_id == key.key_id).values(revoked_at=ended.revoked_at))
    record_change(conn, KEY, key.key_id, by, key_state(key), key_state(ended))
    return ended


def valid_key(db: Database, text: str, kind: tuple[str, str]) -> ApiKey | None:
    """The row of `keys` of that kind and text, if it is valid. Takes the same time whatever the secret part is."""
    prefix, _, rest = text.partition("_")
    key_id = f"{kind[1]}-{rest.partition('_')[0]}" if prefix == kind[0] else ""
    with db.connection() as conn:
        row = t.get(conn, t.keys, key_id=key_id.encode("utf-8", "replace").decode().replace("\0", "?"))
    kept = row.sha256 if row is not None else "0" * 64
    same = hmac.compare_digest(_digest(text), kept)
    key = as_key(row) if same and row is not None else None
    return key if key is not None and key.valid(utc_now()) else None


def later_by(lasts: timedelta | None) -> str | None:
    """When that has passed (ISO 8601, UTC). Raises InputError."""
    if lasts is None:
        return None
    if lasts <= timedelta(0):
        raise InputError("a key must be valid for some time")
    return to_utc(_later(lasts))


def _later(by: timedelta) -> datetime:
    try:
        return datetime.now(UTC) + by
    except OverflowError as e:
        raise InputError("that is later than dates go") from e


def is_valid(at: str) -> ColumnElement[bool]:
    return _K.revoked_at.is_(None) & or_(_K.expires_at.is_(None), _K.expires_at > at)


def _newest_valid(conn: Connection, which: str) -> Row[Any]:
    """Raises UnknownRecordError."""
    for row in conn.execute(select(t.keys).where(is_valid(utc_now()), _IS_KEY).order_by(_K.created_at.desc())).all():
        if which == row.key_id or person(which) == person(row.name):
            return row
    raise UnknownRecordError(f"no valid key has the id or name {which!r}; `refdiff keys list` shows them")


def taken_names(conn: Connection) -> dict[str, tuple[str, str]]:
    """Names of valid keys and of everybody who ever signed in, as `person` compares them: id and name of each."""
    taken = is_valid(utc_now()) | ~_IS_KEY  # whoever signed in may do so again
    rows = conn.execute(select(_K.key_id, _K.name).where(taken)).all()
    return {person(row.name): (row.key_id, row.name) for row in rows}


def _check_free(conn: Connection, name: str) -> None:
    """Raises InputError where a valid key, or somebody who signs in, has that name."""
    if (found := taken_names(conn).get(person(name))) is None:
        return
    key_id, known = found
    if key_id.startswith(f"{SIGN_INS[1]}-"):
        raise InputError(f"{known!r} is the name of a person who signs in, and stands in reports; choose another name")
    raise InputError(
        f"the key {key_id} already has the name {known!r}, which stands in reports; choose "
        f"another name, replace that key (refdiff keys rotate {key_id}), or revoke it first: "
        f"refdiff keys revoke {key_id}"
    )


def person(name: str) -> str:
    """A name as it is compared: Ana, ana and a stray blank are one person."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def keys_of(conn: Connection) -> dict[str, ApiKey]:
    """All keys and sign-ins by id, in somebody's transaction."""
    return {row.key_id: as_key(row) for row in conn.execute(select(t.keys)).all()}


def as_key(row: Row[Any]) -> ApiKey:
    return ApiKey(**t.fields(row, ApiKey))
