"""The embedded bank's file: goldens of all encoders with their vectors, in SQLite. Nothing in it can run code.

A golden is a row: its record as JSON, its vectors as little-endian float32, and a checksum of each. A row that does not
match is damaged; it is told apart, and the others are read all the same.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import RowMapping

from refdiff.memory.database.sqlite_file import Steps, open_local
from refdiff.memory.golden_bank.golden import Golden, golden_id_of, point_id
from refdiff.model.files import storage_error

Vectors = NDArray[np.float32]

_FLOAT = np.dtype("<f4")
_RECORD = TypeAdapter(Golden)  # fields added by a newer version are left out, absent ones have defaults
_STEPS: Steps = (
    (
        "CREATE TABLE goldens (fingerprint TEXT NOT NULL, point INTEGER NOT NULL, "
        "record TEXT NOT NULL, record_crc INTEGER NOT NULL, global BLOB NOT NULL, patches BLOB NOT NULL, "
        "vectors_crc INTEGER NOT NULL, PRIMARY KEY (fingerprint, point))",
    ),
)


@dataclass(frozen=True)
class StoredGolden:
    """A golden as it is kept."""

    golden: Golden
    global_vec: Vectors  # (Dg,) float32, unit norm
    patches: Vectors  # (N, Dp) float32, unit norm, N >= 1


@dataclass(frozen=True)
class DamagedGolden:
    """A golden that is kept and cannot be used."""

    golden_id: str
    reason: str  # in words
    golden: Golden | None = None  # its record, where only the vectors are damaged

    @property
    def name(self) -> str:
        """Its id, and the name of its file where that is known."""
        return f"{self.golden_id} ({self.golden.filename})" if self.golden and self.golden.filename else self.golden_id


class BankFile:
    """An open bank file; every method raises StorageError where SQLite or the disk fails."""

    def __init__(self, path: Path) -> None:
        """Open the file, made for the owner alone if new; one that cannot be written is opened for reading."""
        self.path = path
        self._db = open_local(path, _STEPS)
        self._watch: sqlite3.Connection | None = None
        self._version: int | None = None

    def close(self) -> None:
        """Close the file."""
        if self._watch is not None:
            self._watch.close()
        self._db.close()

    def has_changed(self) -> bool:
        """Whether anything was written since the last call, by this process or another; True at the first."""
        try:
            if self._watch is None:
                self._watch = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None)
            version = self._watch.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error as e:
            raise storage_error(self.path, e) from e
        before, self._version = self._version, version
        return bool(version != before)

    def checksums(self, fingerprint: str) -> dict[int, tuple[int, int]]:
        """Point -> the checksums of record and vectors, of all goldens of that encoder."""
        query = "SELECT point, record_crc, vectors_crc FROM goldens WHERE fingerprint = ?"
        with self._db.connection() as conn:
            return {point: (record, vectors) for point, record, vectors in conn.exec_driver_sql(query, (fingerprint,))}

    def put(self, fingerprint: str, stored: StoredGolden) -> None:
        """Keep a golden, durably on return; it replaces a damaged one of its id."""
        with self._db.transaction() as conn:
            conn.exec_driver_sql(f"INSERT OR REPLACE INTO goldens VALUES {_MARKS}", _row(fingerprint, stored))

    def set_record(self, fingerprint: str, golden: Golden) -> None:
        """Replace the record of a golden; its vectors stay."""
        record = _json(golden)
        with self._db.transaction() as conn:
            conn.exec_driver_sql(
                "UPDATE goldens SET record = ?, record_crc = ? WHERE fingerprint = ? AND point = ?",
                (record, _crc(record.encode()), fingerprint, point_id(golden.golden_id)),
            )

    def read_points(
        self, fingerprint: str, dims: tuple[int, int], points: Iterable[int]
    ) -> Iterator[StoredGolden | DamagedGolden]:
        """Those goldens of that encoder, as `read`."""
        with self._db.connection() as conn:
            for point in points:
                query = "SELECT * FROM goldens WHERE fingerprint = ? AND point = ?"
                for row in conn.exec_driver_sql(query, (fingerprint, point)).mappings():
                    yield _read(row, dims)

    def read(self, fingerprint: str, dims: tuple[int, int]) -> Iterator[StoredGolden | DamagedGolden]:
        """All goldens of that encoder. dims: the sizes (Dg, Dp) of its vectors."""
        with self._db.connection() as conn:
            for row in conn.exec_driver_sql("SELECT * FROM goldens WHERE fingerprint = ?", (fingerprint,)).mappings():
                yield _read(row, dims)

    def records_of_others(self, fingerprint: str) -> list[Golden]:
        """The records of the goldens of all other encoders; a golden may be there several times."""
        with self._db.connection() as conn:
            rows = conn.exec_driver_sql(
                "SELECT point, record, record_crc FROM goldens WHERE fingerprint != ?", (fingerprint,)
            )
            return [golden for row in rows.mappings() if isinstance(golden := _record(row), Golden)]

    def take_over(self, found: Iterable[tuple[str, StoredGolden | DamagedGolden]]) -> None:
        """Keep goldens that an earlier version kept elsewhere, each with its encoder's fingerprint; all or none.

        A golden that is here already stays as it is. A damaged one is kept as a row that is damaged here too.
        """
        with self._db.transaction() as conn:
            for fingerprint, entry in found:
                row = _row(fingerprint, entry) if isinstance(entry, StoredGolden) else _damaged_row(fingerprint, entry)
                conn.exec_driver_sql(f"INSERT OR IGNORE INTO goldens VALUES {_MARKS}", row)


_MARKS = "(?, ?, ?, ?, ?, ?, ?)"
_NO_CRC = -1  # matches no vectors


def check_record(record: object, golden_id: str) -> Golden:
    """The record of a golden, checked. record: JSON text or its dict. Raises ValueError saying what is wrong."""
    try:
        golden = _RECORD.validate_json(record) if isinstance(record, str) else _RECORD.validate_python(record)
    except ValidationError as e:
        raise ValueError("its record cannot be read") from e
    if golden.golden_id != golden_id:
        raise ValueError("its record is another golden's")
    return golden


def _read(row: RowMapping, dims: tuple[int, int]) -> StoredGolden | DamagedGolden:
    golden = _record(row)
    if isinstance(golden, DamagedGolden):
        return golden
    try:
        if _vectors_crc(row["global"], row["patches"]) != row["vectors_crc"]:
            raise ValueError("its vectors do not match their checksum")
        global_vec, patches = np.frombuffer(row["global"], _FLOAT), np.frombuffer(row["patches"], _FLOAT)
        if len(global_vec) != dims[0] or not len(patches) or len(patches) % dims[1]:
            raise ValueError("its vectors have other sizes than the encoder's")
        if not (np.isfinite(global_vec).all() and np.isfinite(patches).all()):
            raise ValueError("its vectors are not finite numbers")
    except (ValueError, TypeError) as e:
        return DamagedGolden(golden.golden_id, str(e), golden)
    return StoredGolden(golden, global_vec, patches.reshape(-1, dims[1]))


def _record(row: RowMapping) -> Golden | DamagedGolden:
    golden_id = golden_id_of(row["point"])
    try:
        if _crc(row["record"].encode()) != row["record_crc"]:
            raise ValueError("its record does not match its checksum")
        return check_record(row["record"], golden_id)
    except (ValueError, TypeError, AttributeError) as e:
        return DamagedGolden(golden_id, str(e))


def _row(fingerprint: str, stored: StoredGolden) -> tuple[str | int | bytes, ...]:
    record = _json(stored.golden)
    global_vec, patches = (np.ascontiguousarray(v, _FLOAT).tobytes() for v in (stored.global_vec, stored.patches))
    point = point_id(stored.golden.golden_id)
    return fingerprint, point, record, _crc(record.encode()), global_vec, patches, _vectors_crc(global_vec, patches)


def _damaged_row(fingerprint: str, damaged: DamagedGolden) -> tuple[str | int | bytes, ...]:
    record = _json(damaged.golden) if damaged.golden else ""
    return fingerprint, point_id(damaged.golden_id), record, _crc(record.encode()), b"", b"", _NO_CRC


def _json(golden: Golden) -> str:
    return _RECORD.dump_json(golden).decode()


def _vectors_crc(global_vec: bytes, patches: bytes) -> int:
    return zlib.crc32(patches, zlib.crc32(global_vec))


_crc = zlib.crc32
