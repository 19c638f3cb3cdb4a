"""Photos that come as text: base64, alone or in a `data:` URL, never more than the limit allows."""

from __future__ import annotations

import base64
import re

from refdiff.agent.service import Upload
from refdiff.model.errors import ImageError

_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40}(;[a-zA-Z0-9=._-]{1,80})*;base64,", re.IGNORECASE)
_ANY_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)  # the bytes say what they are
_HEAD = 500  # characters that the head of a URL may have


def from_data_url(url: str, max_bytes: int) -> Upload:
    """Nothing is ever fetched: any other URL raises ImageError."""
    head = _DATA_URL.match(url[:_HEAD])
    if head is None:
        raise ImageError(
            f"image_url {url[:40]!r}: send the picture itself, as data:image/png;base64,...; nothing is fetched"
        )
    return Upload("image", _decoded(url, head.end(), max_bytes))


def from_base64(text: str, max_bytes: int) -> Upload:
    """The bytes of an image file as base64; some clients make a `data:` URL of it. Raises ImageError."""
    head = _ANY_DATA_URL.match(text[:_HEAD])
    return Upload("photo", _decoded(text, head.end() if head else 0, max_bytes))


def check_size(size: int, max_bytes: int) -> None:
    """Raises ImageError."""
    if size > max_bytes:
        raise ImageError("the picture is over the limit REFDIFF_MAX_BYTES; send a smaller one")


def _decoded(text: str, start: int, max_bytes: int) -> bytes:
    check_size((len(text) - start) // 4 * 3 - 2, max_bytes)  # before it is decoded; the last two may be padding
    try:
        data = base64.b64decode(text[start:], validate=True)
    except ValueError as e:
        raise ImageError(f"the picture is not base64 ({e}); encode the bytes of the image file") from e
    check_size(len(data), max_bytes)
    return data
