"""Banks of refdiff up to 0.5: Qdrant's local mode, which keeps each point as a pickle.

Unpickling runs what the file says, so nothing is unpickled here: `read_pickle` interprets the few instructions that
such a point consists of and calls nothing that the file names. Whoever supplies a home folder supplies data, not code.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import pickletools
import sqlite3
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.memory.golden_bank.bank_file import BankFile, DamagedGolden, StoredGolden, Vectors, check_record
from refdiff.memory.golden_bank.golden import golden_id_of
from refdiff.model.errors import StorageError
from refdiff.model.files import storage_error

log = logging.getLogger(__name__)

MAX_POINT_BYTES = 16_000_000  # a point of the packaged encoder has 20 kB
_PREFIX = "refdiff_goldens_"  # of the names of collections; the encoder's fingerprint follows

_POINT = "qdrant_client.http.models.models.PointStruct"
_ARRAYS = {"numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct"}
_BUFFERS = {"numpy._core.numeric._frombuffer", "numpy.core.numeric._frombuffer"}  # how Python 3.14 keeps arrays
_DTYPE = "numpy.dtype"
_NAMES = {_POINT, _DTYPE, "numpy.ndarray", *_ARRAYS, *_BUFFERS}

_VALUES = {
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}  # items; None: since the last mark
_COUNTS = {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None}
_CONTAINERS: dict[str, type] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}


class ForeignCodeError(Exception):
    """A pickle that names code; str(): its name."""


@dataclass
class Named:
    """What a pickle would make with a class or function: its name, arguments and state. Nothing is made."""

    name: str
    arguments: Any = None
    state: Any = None


def move_old_bank(folder: Path, bank: BankFile) -> Path | None:
    """Take the goldens of an old bank over into `bank`, and move `folder` aside; returns where it is now.

    None if there is no old bank. A damaged point is kept as damaged. Raises StorageError if a file cannot be read or a
    point names code; nothing is moved then, and nothing was run.
    """
    if not folder.is_dir():
        return None
    for file in sorted(folder.glob(f"collection/{_PREFIX}*/storage.sqlite")):
        fingerprint = file.parent.name.removeprefix(_PREFIX)
        try:
            bank.take_over([(fingerprint, entry) for entry in _entries(file)])
        except sqlite3.Error as e:
            raise storage_error(file, e) from e
        except ForeignCodeError as e:
            raise StorageError(
                f"{file}: names the code {e}, which no golden bank does: refdiff did not write this file. "
                f"Nothing in it was run. Restore {folder} from a backup of your own, or move it away and enrol the "
                "golden samples again"
            ) from e
    names = (f"{folder.name}-old{number or ''}" for number in itertools.count())
    aside = next(path for name in names if not (path := folder.with_name(name)).exists())
    try:
        folder.rename(aside)
    except OSError as e:
        raise storage_error(folder, e) from e
    return aside


def read_pickle(data: bytes) -> Any:
    """The value of a pickle: plain values, and `Named` for the objects that a point consists of. Runs nothing.

    Raises ForeignCodeError where it names anything else, ValueError where it is damaged or has other instructions.
    """
    try:
        return _interpret(data)
    except (LookupError, TypeError, AttributeError, OverflowError, struct.error) as e:
        raise ValueError(f"no sound pickle ({type(e).__name__})") from e


def _interpret(data: bytes) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def take(count: int | None = None) -> list[Any]:
        """Remove the upper items of the stack: `count`, or those since the last mark."""
        start = marks.pop() if count is None else len(stack) - count
        items = stack[start:]
        del stack[start:]
        return items

    for opcode, argument, _ in pickletools.genops(data):
        match opcode.name:
            case name if name in _VALUES:
                stack.append(argument)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _CONTAINERS:
                stack.append(_CONTAINERS[name]())
            case name if name in _TUPLES:
                stack.append(tuple(take(_TUPLES[name])))
            case "MARK":
                marks.append(len(stack))
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND" | "APPENDS" as name:
                items = take(_COUNTS[name])
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS" as name:
                items = take(_COUNTS[name])
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "ADDITEMS":
                items = take()
                stack[-1].update(items)
            case "STACK_GLOBAL":
                stack.append(_named(".".join(take(2))))
            case "GLOBAL" | "INST":
                stack.append(_named(str(argument).replace(" ", ".")))
            case "REDUCE" | "NEWOBJ":
                called, arguments = take(2)
                stack.append(Named(called.name, arguments))
            case "BUILD":
                (state,) = take(1)
                stack[-1].state = state
            case "STOP":
                return stack.pop()
            case "PROTO" | "FRAME":
                pass
            case name:
                raise ValueError(f"instruction {name}")
    raise ValueError("no end")


def _named(name: str) -> Named:
    if name not in _NAMES:
        raise ForeignCodeError(name[:100])
    return Named(name)


def _entries(file: Path) -> Iterator[StoredGolden | DamagedGolden]:
    """The points of a collection, the newest first: Qdrant may have kept several copies of one."""
    with contextlib.closing(sqlite3.connect(file)) as conn:
        rows = conn.execute(
            "SELECT id, CASE WHEN length(point) <= ? THEN point END FROM points ORDER BY rowid DESC", (MAX_POINT_BYTES,)
        )
        for key, data in rows:
            try:
                golden_id = golden_id_of(read_pickle(base64.b64decode(key)))
            except (ValueError, TypeError):
                log.warning("%s: a point without a readable id was left out", file)
                continue
            yield _entry(golden_id, data)


def _entry(golden_id: str, data: bytes) -> StoredGolden | DamagedGolden:
    golden = None
    try:
        kept = read_pickle(data).state["__dict__"]
        golden = check_record(kept["payload"], golden_id)
        return StoredGolden(golden, *(_array(kept["vector"][name]) for name in ("global", "patches")))
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        return DamagedGolden(golden_id, f"damaged in the old bank ({e})", golden)


def _array(value: Any) -> Vectors:
    """The vectors that a point holds, as an array or (after its status was changed) as lists of floats."""
    if not isinstance(value, Named):
        return np.asarray(value, dtype=np.float32)
    if value.name in _ARRAYS:
        _, shape, dtype, by_columns, data = value.state
    else:
        data, dtype, shape, order = value.arguments
        by_columns = order != "C"
    if (dtype.name, dtype.arguments[0], dtype.state[1], by_columns) != (_DTYPE, "f4", "<", False):
        raise ValueError("no array of float32")
    return np.frombuffer(data, "<f4").reshape(shape)
