"""The reader of each kind of product. A further kind is a file here, a line below, and one in `inspection/methods.py`."""

from __future__ import annotations

from collections.abc import Mapping

from refdiff.memory.records.products import Kind
from refdiff.model.errors import InputError
from refdiff.model.settings import ModelSettings
from refdiff.tools.kinds.photo import PhotoReader
from refdiff.tools.kinds.reading import How, Reader, Reading

READERS: Mapping[Kind, Reader] = {"photo": PhotoReader()}


def reader_of(kind: Kind) -> Reader:
    """Raises InputError for a kind that is not read yet."""
    reader = READERS.get(kind)
    if reader is None:
        raise InputError(f"kind {kind!r} is not supported yet; products are of kind {' or '.join(READERS)}")
    return reader


def read_arriving(data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
    """Read a file that has just arrived. Raises as `Reader.read`."""
    return reader_of(how.kind).read(data, name=name, how=how, settings=settings)
