"""Sign-ins of people by an identity provider: each is a row of `keys` that expires within hours.

So audit records name it as they name keys (`facts.by_key`), every server of a home knows it, and `refdiff keys revoke` ends
it. Its text is for the browser's cookie alone: no header takes it.

A person is the provider and its number for the person. The name stays that of the first sign-in: somebody who changed it at
the provider could otherwise propose as one person and approve as another. All valid sign-ins of a person have the role that
the provider gave last.
"""

from __future__ import annotations

import builtins
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import Connection, select

from refdiff.memory.changes import changing
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.kinds import Role
from refdiff.memory.records.api_keys import (
    MAX_NAME,
    SIGN_INS,
    ApiKey,
    as_key,
    end_key,
    insert_key,
    is_valid,
    later_by,
    person,
    valid_key,
)
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError

_K = t.keys.c
_IS_SIGN_IN = _K.key_id.startswith(f"{SIGN_INS[1]}-")
_LONGEST = MAX_NAME // 2  # of a name: what tells two people apart goes behind it
_MOST = 10  # valid sign-ins of a person
_OURS = ("refdiff", "unknown")  # whom records name where no person acted, or nobody knows who


class SignInStore:
    """The sign-ins; safe to share between threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(
        self,
        who: str,
        names: tuple[str, ...],
        role: Role,
        lasts: timedelta,
        *,
        instead_of: str = "",
        not_named: Collection[str] = (),
    ) -> tuple[ApiKey, str]:
        """A new sign-in, and the text for the browser, which is not stored.

        It ends those of the person that have another role, the oldest where there are ten, and the one of `instead_of`: the
        text that the browser had until now.

        who: the provider and its number for the person. names: what the provider calls the person, the one to show first and
        one that nobody shares last; the others tell people of one name apart. not_named: names of others that no key has.
        Raises InputError if no name is left.
        """
        replaced = self.check(instead_of)
        with changing(self._db) as conn:
            earlier = t.find(conn, t.keys, _IS_SIGN_IN, _K.created_by == who, order=[_K.created_at])
            name = earlier.name if earlier is not None else _free_name(conn, names, not_named)
            if replaced is not None and (row := t.get(conn, t.keys, key_id=replaced.key_id)) is not None:
                end_key(conn, as_key(row), replaced.name)
            known = _valid_of(conn, who)
            same = [key for key in known if key.role == role]
            for key in [key for key in known if key.role != role] + same[: max(0, len(same) - _MOST + 1)]:
                end_key(conn, key, name)
            return insert_key(conn, name, role, who, expires_at=later_by(lasts), kind=SIGN_INS)

    def end_all(self, who: str) -> None:
        """End the valid sign-ins of a person: the provider gives no role any more. who: as for `begin`."""
        with changing(self._db) as conn:
            for key in _valid_of(conn, who):
                end_key(conn, key, key.name)

    def check(self, text: str) -> ApiKey | None:
        """The sign-in of that text if it is valid, else None."""
        return valid_key(self._db, text, SIGN_INS)

    def list(self) -> builtins.list[ApiKey]:
        """Who is signed in now, oldest first."""
        found = select(t.keys).where(_IS_SIGN_IN, is_valid(utc_now())).order_by(_K.created_at, _K.key_id)
        with self._db.connection() as conn:
            return [as_key(row) for row in conn.execute(found).all()]


def _valid_of(conn: Connection, who: str) -> list[ApiKey]:
    """A person's valid sign-ins, oldest first."""
    found = select(t.keys).where(_IS_SIGN_IN, _K.created_by == who, is_valid(utc_now()))
    return [as_key(row) for row in conn.execute(found.order_by(_K.created_at, _K.key_id)).all()]


def _free_name(conn: Connection, names: tuple[str, ...], not_named: Collection[str]) -> str:
    # those of keys that ended too: reports name who used them
    taken = {person(name) for name in (*conn.scalars(select(_K.name)).all(), *_OURS, *not_named)}
    first, *others = [found for name in names if (found := _printable(name))] or [""]
    for name in (first, *(f"{first} ({other})" for other in others if other != first)):
        if name and person(name) not in taken:
            return name
    raise InputError(f"the name {first!r} is that of an API key or of another person; rename the key, or the account")


def _printable(name: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in name).split())[:_LONGEST].strip()
