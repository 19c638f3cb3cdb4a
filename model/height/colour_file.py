"""A height map and the colour photo of the same raster as one file: the photo behind the height map's own bytes.

One file has one digest, so neither is ever judged with another part's other half; and what is kept opens as the height map
wherever TIFF and PNG do.
"""

from __future__ import annotations

from refdiff.model.errors import ImageError

_END = b"REFDIFF-COLOUR"  # behind the photo, after its length
_LENGTH = 8  # bytes, big-endian


def with_colour(height: bytes, colour: bytes) -> bytes:
    """Both as one. Raises ImageError where the height map has a photo already, or the photo is empty."""
    if not colour:
        raise ImageError("the colour photo is empty; photograph the part again")
    if split_colour(height)[1] is not None:
        raise ImageError("the height map has its colour photo already; send one of the two")
    return height + colour + len(colour).to_bytes(_LENGTH, "big") + _END


def split_colour(data: bytes) -> tuple[bytes, bytes | None]:
    """The height map and its photo; None where there is none. Raises ImageError for an end that `with_colour` did not
    write."""
    if not data.endswith(_END):
        return data, None
    tail = _LENGTH + len(_END)
    length = int.from_bytes(data[-tail : -len(_END)], "big")
    start = len(data) - tail - length
    if length == 0 or start <= 0:
        raise ImageError("the colour photo behind the height map is damaged; send both files again")
    return data[:start], data[start:-tail]
