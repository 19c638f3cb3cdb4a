"""Photos that arrive as text: base64, plain or in a `data:` URL, up to a size limit."""

from __future__ import annotations

import base64
import re

from refdiff.agent.service import Upload
from refdiff.model.errors import ImageError

_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=._-]{1,80})*;base64,", re.IGNORECASE)
_ANY_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)  # the type is read from the bytes
_HEAD = 500  # longest head of a data URL, in characters


def from_data_url(url: str, max_bytes: int) -> Upload:
    """The photo in a `data:` URL. Raises ImageError for any other URL: nothing is fetched."""
    head = _DATA_URL.match(url[:_HEAD])
    if head is None:
        raise ImageError(
            f"image_url {url[:40]!r}: send the image itself as data:image/png;base64,...; URLs are not fetched"
        )
    return Upload("image", _decoded(url, head.end(), max_bytes))


def from_base64(text: str, max_bytes: int) -> Upload:
    """The photo in base64; some clients send a `data:` URL instead. Raises ImageError."""
    head = _ANY_DATA_URL.match(text[:_HEAD])
    return Upload("photo", _decoded(text, head.end() if head else 0, max_bytes))


def check_size(size: int, max_bytes: int) -> None:
    """Raises ImageError above the limit."""
    if size > max_bytes:
        raise ImageError("the image exceeds REFDIFF_MAX_BYTES; send a smaller one")


def _decoded(text: str, start: int, max_bytes: int) -> bytes:
    text = "".join(text[start:].split())  # many programs write it in lines
    check_size(len(text) // 4 * 3 - 2, max_bytes)  # before decoding; the last two characters may be padding
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as e:
        raise ImageError(f"the image is not valid base64 ({e}); encode the bytes of the image file") from e
    check_size(len(data), max_bytes)
    return data
