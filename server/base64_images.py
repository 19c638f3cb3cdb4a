"""Photos that arrive as text: base64, plain or in a `data:` URL, up to a size limit."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from urllib.parse import unquote

from refdiff.agent.service import Upload
from refdiff.model.errors import ImageError

_HEAD = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)  # of a data URL; the type is read from the bytes
_URL_SAFE = str.maketrans("-_", "+/")


def from_data_url(url: str, max_bytes: int) -> Upload:
    """The photo in a `data:` URL, or in its base64 alone. Raises ImageError for any other URL: nothing is fetched."""
    head = _HEAD.match(url[:500])
    if not (head[0].lower().endswith(";base64,") if head else _is_base64(url[:500])):
        raise ImageError(
            f"image_url {url[:40]!r}: send the image itself as data:image/png;base64,...; URLs are not fetched"
        )
    return replace(from_base64(url, max_bytes), name="image")


def from_base64(text: str, max_bytes: int) -> Upload:
    """The photo in base64, also with its alphabet for URLs, in lines, without padding or escaped as in a URL.

    Some clients send a `data:` URL instead. Raises ImageError.
    """
    head = _HEAD.match(text[:500])
    return Upload("photo", _decoded(text, head.end() if head else 0, max_bytes))


def check_size(size: int, max_bytes: int) -> None:
    """Raises ImageError above the limit."""
    if size > max_bytes:
        raise ImageError("the image exceeds REFDIFF_MAX_BYTES; send a smaller one")


def _is_base64(text: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9+/_\s-]{16,}=*\s*", text) is not None


def _decoded(text: str, start: int, max_bytes: int) -> bytes:
    lines = text[start:].split()  # many programs write it in lines
    text = "".join(lines)
    if "%" in text:
        text = unquote(text)
    check_size(len(text) // 4 * 3 - 2, max_bytes)  # before decoding; the last two characters may be padding
    if len(lines) == 1:
        text += "=" * (-len(text) % 4)
    if len(text) % 4 or len({len(line) for line in lines[:-1]}) > 1:  # a "+" that became a blank looks like this
        raise ImageError("the image is not valid base64 (something is missing); encode the bytes of the image file")
    try:
        data = base64.b64decode(text.translate(_URL_SAFE), validate=True)
    except ValueError as e:
        raise ImageError(f"the image is not valid base64 ({e}); encode the bytes of the image file") from e
    check_size(len(data), max_bytes)
    return data
