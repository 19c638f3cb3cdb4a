"""The newest audit record, remembered outside the database: a chain that was cut off, put back or begun anew is noticed.

The chain inside one file cannot show that the whole file was replaced by an older or an empty one. The head is written
after the commit it belongs to, so after a crash it may be older than the chain, but never newer.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from sqlalchemy import Connection, bindparam, select

from refdiff.memory.database import tables as t
from refdiff.model.errors import StorageError
from refdiff.model.files import storage_error, write_atomic

NAME = "audit-head.json"
_NEWEST = select(t.audit.c.seq, t.audit.c.hash).order_by(t.audit.c.seq.desc()).limit(1)
_HASH_OF = select(t.audit.c.hash).where(t.audit.c.seq == bindparam("seq"))

log = logging.getLogger(__name__)


class AuditHead:
    """The file `home/audit-head.json`: {"seq": number, "hash": hash of the chain up to that record}."""

    def __init__(self, home: Path) -> None:
        self.path = home / NAME
        self._written: tuple[int, str] | None = None

    def read(self) -> tuple[int, str] | None:
        """(number, hash) of the newest record that was ever kept here; None before the first. Raises StorageError."""
        try:
            kept = json.loads(self.path.read_bytes())
            return int(kept["seq"]), str(kept["hash"])
        except FileNotFoundError:
            return None
        except OSError as e:
            raise storage_error(self.path, e) from e
        except (ValueError, KeyError, TypeError) as e:
            raise storage_error(self.path, ValueError(f"no audit head: {e}")) from e

    def follow(self, conn: Connection) -> None:
        """Remember the newest record, after a commit. A head that the chain does not hold stays: it is the evidence."""
        row = conn.execute(_NEWEST).first()
        newest = None if row is None else (int(row.seq), str(row.hash))
        if newest is None or newest == self._written:
            return
        try:
            kept = self.read()
            if kept is not None and (wrong := missing_from(conn, kept)):
                log.warning("%s; run `refdiff doctor`", wrong)
            elif kept is None or kept[0] < newest[0]:
                write_atomic(self.path, (json.dumps({"seq": newest[0], "hash": newest[1]}) + "\n").encode())
            self._written = newest
        except StorageError as e:  # the commit stands; the next one tries again
            log.warning("the audit head was not remembered: %s", e)


def missing_from(conn: Connection, kept: tuple[int, str]) -> str:
    """What is wrong if the chain does not hold the head `kept`; "" if it does."""
    seq, hash_ = kept
    found = conn.scalar(_HASH_OF, {"seq": seq})
    if found is None:
        return f"this home had {seq} audit records and now has fewer: its database is an older copy, or another one"
    if found != hash_:
        return f"record {seq} is not the one that this home filed: its database is another one, or was rewritten"
    return ""
