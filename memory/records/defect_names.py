"""The customer's own names of defects: what people call the findings of filed reports, and what it takes to see one again.

Names are only ever appended: the newest word about a finding holds, and every word has its audit record. What findings look
like to the networks (`put_embedding`) is derived from them, and made again for other weights.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Row, func, insert, select, update

from refdiff.memory.audit_chain import append, check_not_removed
from refdiff.memory.database import tables as t
from refdiff.memory.database.database import Database
from refdiff.memory.records.products import known_name
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.model.images import Box

NAMED = "defect_name"  # kind of audit records; their table is `defect_names`
MAX_NAME = 48
# what reads the same in a report, a table, a chat and a prompt
_NAME = re.compile(r"[^\W_][\w\0 .,/()+&'#%°–-]*")  # \0: a mark that belongs to the letter before it
_FLOAT = np.dtype("<f4")


@dataclass(frozen=True)
class Naming:
    """A person's word about a finding."""

    seq: int  # grows with every word
    inspection_id: str
    finding: str  # its id in the report, like "f2"
    product: str
    part_id: str
    name: str | None  # None: the finding has no name any more
    before: str | None  # what it was called until then
    by: str
    note: str
    picture: str  # sha256 of a picture of the finding
    created_at: str  # ISO 8601, UTC

    @property
    def key(self) -> str:
        """Names the finding among all inspections."""
        return f"{self.inspection_id}/{self.finding}"


@dataclass(frozen=True)
class Sight:
    """What it takes to look at a finding again."""

    photo: str  # sha256
    golden: str  # sha256 of the photo of the golden sample that the photo was compared with first
    registered: bool
    matrix: tuple[float, ...]  # (9,) row by row: golden px -> photo px; a mere resize where it is not registered
    box: Box  # photo px
    length_px: float
    width_px: float
    area_px: int


@dataclass(frozen=True)
class Example:
    """A finding with a name, and what it looks like."""

    naming: Naming
    sight: Sight
    weights: str  # digest of what made the vector
    vector: NDArray[np.float32]  # (D,)

    @property
    def name(self) -> str:
        return str(self.naming.name)


def check_defect_name(name: str) -> str:
    """`name` with single blanks. Raises InputError unless it is 1 to 48 letters, digits, blanks and simple signs."""
    return check_given_name(name, "a defect")


def plain_name(name: str) -> str:
    """`name` as it is kept and looked up: NFC, with single blanks and none at its ends."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def check_given_name(name: str, of: str) -> str:
    """The same for what people call anything else. of: what it is, for the message."""
    plain = plain_name(name)
    if len(plain) > MAX_NAME or not _NAME.fullmatch(_without_marks(plain)):
        raise InputError(
            f"name of {of} {name[:80]!r}: 1 to {MAX_NAME} letters, digits, blanks or any of .,/()+&'#%_-, beginning "
            "with a letter or digit"
        )
    return plain


def _without_marks(name: str) -> str:
    """With \0 for each combining mark: vowels of Hindi or Thai, which are no letters of their own."""
    return "".join("\0" if unicodedata.category(c) in ("Mn", "Mc") else c for c in name.replace("\0", "\n"))


class DefectNameStore:
    """The names of findings. Safe to share between threads."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def name(
        self,
        inspection_id: str,
        finding: str,
        name: str,
        by: str,
        note: str = "",
        *,
        picture: str,
        sight: Sight,
        weights: str,
        vector: NDArray[np.float32],
    ) -> Naming:
        """Call a finding of a filed inspection something, or something else; durable on return, with its audit record.

        A name that differs from one of the product in case alone is spelled like that. The name that it has already is no
        news: the earlier word is returned. picture, sight, weights, vector: of the finding. Raises UnknownRecordError (no
        such inspection or finding), InputError (no name, nobody who says it).
        """
        name, by = check_defect_name(name), _who(by)
        with self._db.transaction() as conn:
            part_id, product = _finding(conn, inspection_id, finding)
            spelled = _spelled(conn, product, name)
            earlier = _newest(conn, inspection_id, finding)
            if earlier is not None and earlier.name == spelled:
                return earlier
            made = _append(conn, inspection_id, finding, product, part_id, spelled, earlier, by, note, picture)
            _put_embedding(conn, made.key, sight, weights, vector)
        return made

    def forget(self, inspection_id: str, finding: str, by: str, note: str = "") -> Naming:
        """Take the name of a finding away. Raises UnknownRecordError where it has none."""
        by = _who(by)
        with self._db.transaction() as conn:
            earlier = _newest(conn, inspection_id, finding)
            if earlier is None or earlier.name is None:
                raise UnknownRecordError(
                    f"finding {finding} of inspection {inspection_id!r} has no name; `refdiff defects list` shows those "
                    "that have"
                )
            return _renamed(conn, earlier, None, by, note)

    def rename(self, product: str, name: str, to: str | None, by: str, note: str = "") -> list[Naming]:
        """Call all findings of a name something else, e.g. like another name, or nothing (`to` None).

        Raises UnknownRecordError (the product has no such name), InputError.
        """
        by, to = _who(by), None if to is None else check_defect_name(to)
        with self._db.transaction() as conn:
            product = known_name(conn, product)
            kept = [n for n in _current(conn, product) if str(n.name).casefold() == name.strip().casefold()]
            if not kept:
                known = ", ".join(sorted({str(n.name) for n in _current(conn, product)})) or "none yet"
                raise UnknownRecordError(f"product {product!r} has no defect named {name!r}; its names are: {known}")
            own = {n.key for n in kept}
            target = None if to is None else _spelled(conn, product, to, without=own)
            return [_renamed(conn, n, target, by, note) for n in kept if n.name != target]

    def named(self, product: str | None = None) -> list[Naming]:
        """The findings that have a name, of that product or of all, in the order in which they were named."""
        with self._db.connection() as conn:
            return _current(conn, None if product is None else known_name(conn, product))

    def of(self, inspection_id: str) -> dict[str, Naming]:
        """What the findings of an inspection are called now: finding -> the newest word about it, if that is a name."""
        with self._db.connection() as conn:
            named = _NEWEST.where(_N.inspection_id == inspection_id, _N.name.is_not(None)).order_by(_N.seq)
            return {row.finding: _naming(row) for row in conn.execute(named).all()}

    def history(self, inspection_id: str, finding: str) -> list[Naming]:
        """Every word about a finding, oldest first."""
        with self._db.connection() as conn:
            said = select(t.defect_names).where(_N.inspection_id == inspection_id, _N.finding == finding)
            return [_naming(row) for row in conn.execute(said.order_by(_N.seq)).all()]

    def revision(self, product: str) -> int:
        """Number of the newest word about findings of that product; 0 where nobody has named one."""
        with self._db.connection() as conn:
            return int(conn.scalar(select(func.max(_N.seq)).where(_N.product == product)) or 0)

    def unnamed(self, product: str) -> list[str]:
        """The findings of that product that had a name and have none any more, by `Naming.key`."""
        with self._db.connection() as conn:
            rows = conn.execute(_NEWEST.where(_N.name.is_(None), _N.product == product)).all()
        return [_naming(row).key for row in rows]

    # -- what they look like

    def examples(self, product: str) -> list[Example]:
        """The findings of that product that have a name, with what they look like, in the order in which they were named."""
        with self._db.connection() as conn:
            seen = {row.key: row for row in conn.execute(select(t.defect_embeddings)).all()}
            return [_example(n, seen[n.key]) for n in _current(conn, product) if n.key in seen]

    def put_embeddings(self, weights: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep what findings (by `Naming.key`) look like to other weights, in place of what they looked like before."""
        of = t.defect_embeddings
        with self._db.transaction() as conn:
            for key, vector in vectors.items():
                conn.execute(update(of).where(of.c.key == key).values(weights=weights, vector=_bytes(vector)))


_N = t.defect_names.c
# the newest word about each finding, whatever it says
_WORDS = t.defect_names.alias("words")
_NEWEST = select(t.defect_names).where(
    _N.seq.in_(select(func.max(_WORDS.c.seq)).group_by(_WORDS.c.inspection_id, _WORDS.c.finding))
)


NAMED_NOW = _NEWEST.where(_N.name.is_not(None))  # the findings that have a name


def _current(conn: Connection, product: str | None) -> list[Naming]:
    named = NAMED_NOW.order_by(_N.seq)
    if product is not None:
        named = named.where(_N.product == product)
    return [_naming(row) for row in conn.execute(named).all()]


def _newest(conn: Connection, inspection_id: str, finding: str) -> Naming | None:
    of = (_N.inspection_id == inspection_id, _N.finding == finding)
    row = t.find(conn, t.defect_names, *of, order=[_N.seq.desc()])
    return None if row is None else _naming(row)


def _finding(conn: Connection, inspection_id: str, finding: str) -> tuple[str, str]:
    """Part and product of an inspection that has such a finding. Raises UnknownRecordError."""
    row = t.get(conn, t.inspections, inspection_id=inspection_id)
    if row is None:
        raise UnknownRecordError(f"no inspection {inspection_id!r} is filed; see `refdiff inspections list`")
    check_not_removed(conn, inspection_id)
    known = [str(f.get("id")) for f in json.loads(row.report).get("findings", [])]
    if finding not in known:
        raise UnknownRecordError(
            f"inspection {inspection_id} has no finding {finding!r}; its findings are: {', '.join(known) or 'none'}"
        )
    return str(row.part_id), str(row.product)


def _spelled(conn: Connection, product: str, name: str, without: Sequence[str] | set[str] = ()) -> str:
    """The name as the product has it. without: findings (`Naming.key`) that do not count."""
    known = {str(n.name).casefold(): str(n.name) for n in _current(conn, product) if n.key not in without}
    return known.get(name.casefold(), name)


def _renamed(conn: Connection, n: Naming, name: str | None, by: str, note: str) -> Naming:
    return _append(conn, n.inspection_id, n.finding, n.product, n.part_id, name, n, by, note, n.picture)


def _append(
    conn: Connection,
    inspection_id: str,
    finding: str,
    product: str,
    part_id: str,
    name: str | None,
    earlier: Naming | None,
    by: str,
    note: str,
    picture: str,
) -> Naming:
    row = {
        "inspection_id": inspection_id, "finding": finding, "product": product, "part_id": part_id, "name": name,
        "before": earlier.name if earlier else None, "by": by, "note": note.strip(), "picture": picture,
        "created_at": utc_now(),
    }  # fmt: skip
    seq = conn.execute(insert(t.defect_names).values(row).returning(_N.seq)).scalar_one()
    made = Naming(seq=seq, **row)  # type: ignore[arg-type]
    append(conn, NAMED, inspection_id, by, asdict(made), facts={k: row[k] for k in ("finding", "before", "name")})
    return made


def _put_embedding(conn: Connection, key: str, sight: Sight, weights: str, vector: NDArray[np.float32]) -> None:
    seen = {"key": key, "sight": json.dumps(asdict(sight)), "weights": weights, "vector": _bytes(vector)}
    t.put(conn, t.defect_embeddings, seen)


def _example(naming: Naming, row: Row[Any]) -> Example:
    kept = json.loads(row.sight)
    sight = Sight(**kept | {name: tuple(kept[name]) for name in ("matrix", "box")})
    return Example(naming, sight, row.weights, np.frombuffer(row.vector, _FLOAT))


def _naming(row: Row[Any]) -> Naming:
    return Naming(**t.fields(row, Naming))


def _who(by: str) -> str:
    if not by.strip():
        raise InputError("name of a defect: who says so is missing")
    return by.strip()


def _bytes(vector: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(vector, _FLOAT).tobytes()
