"""The reader of each kind of product. A further kind is a file here, a line below, and one in `inspection/methods.py`."""

from __future__ import annotations

from collections.abc import Mapping

from refdiff.memory.kinds import ProductKind
from refdiff.model.cloud.readers import is_cloud
from refdiff.model.errors import ImageError, InputError
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.flir import is_radiometric
from refdiff.tools.kinds.cloud import CloudReader
from refdiff.tools.kinds.depth import DepthReader
from refdiff.tools.kinds.photo import PhotoReader
from refdiff.tools.kinds.reading import How, Reader, Reading
from refdiff.tools.kinds.thermal import ThermalReader

READERS: Mapping[ProductKind, Reader] = {
    "photo": PhotoReader(),
    "thermal": ThermalReader(),
    "depth": DepthReader(),
    "cloud": CloudReader(),
}


def reader_of(kind: ProductKind) -> Reader:
    """Raises InputError for a kind that is not read yet."""
    reader = READERS.get(kind)
    if reader is None:
        raise InputError(f"kind {kind!r} is not supported yet; products are of kind {' or '.join(READERS)}")
    return reader


def read_arriving(data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
    """Read a file that has just arrived. Raises as `Reader.read`, and ImageError for a radiometric file among photos: only
    its colours would be compared. One that was kept before is read as ever."""
    if how.kind == "photo" and is_radiometric(data):
        raise ImageError(
            f"{name}: holds temperatures (a FLIR radiometric JPEG), and the product is one of photos; enrol such files as a "
            "product of their own (`refdiff enroll --kind thermal`), or export the colours as PNG"
        )
    if how.kind != "cloud" and is_cloud(data):
        raise ImageError(
            f"{name}: holds a point cloud, and the product is of kind {how.kind!r}; enrol such files as a product of "
            "their own (`refdiff enroll --kind cloud`)"
        )
    return reader_of(how.kind).read(data, name=name, how=how, settings=settings)
