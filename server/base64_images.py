"""Photos that arrive as text: base64, plain or in a `data:` URL, up to a size limit."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote

from refdiff.agent.service import Upload
from refdiff.model.errors import ImageError

_HEAD = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)  # of a data URL; the type is read from the bytes
_URL_SAFE = str.maketrans("-_", "+/")
_PIECE = 65_536  # characters decoded at a time: other threads wait for a piece, not for a photo
_CUT_ESCAPE = re.compile(r"%[0-9A-Fa-f]?\Z")


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
    found, size = [b""], 0
    for quads in filter(None, _quads(text, start)):
        if len(found[-1]) % 3:  # its end was padded
            raise _invalid("something follows its end")
        try:
            found.append(binascii.a2b_base64(quads.translate(_URL_SAFE), strict_mode=True))
        except ValueError as e:
            raise _invalid(str(e)) from e
        size += len(found[-1])
        check_size(size, max_bytes)
    return b"".join(found)


def _quads(text: str, start: int) -> Iterator[str]:
    """The base64 in pieces of whole groups of four, without line breaks and escapes. Raises ImageError."""
    lines = _Lines()
    escaped = rest = ""
    for i in range(start, len(text), _PIECE):
        escaped += lines.joined(text[i : i + _PIECE])
        cut = _CUT_ESCAPE.search(escaped)  # its other half is in the next piece
        whole = cut.start() if cut else len(escaped)
        rest += unquote(escaped[:whole])
        escaped = escaped[whole:]
        yield rest[: len(rest) // 4 * 4]
        rest = rest[len(rest) // 4 * 4 :]
    rest += escaped
    if lines.end() == 1:
        rest += "=" * (-len(rest) % 4)
    if len(rest) % 4:
        raise _invalid("something is missing")
    if rest:
        yield rest


class _Lines:
    """The lines of a text that comes in pieces: all but the last must be of one length.

    Many programs write base64 in lines; blanks that were once "+" do not look like that.
    """

    def __init__(self) -> None:
        self._n = self._length = self._before = 0
        self._lengths: set[int] = set()  # of all but the last one

    def joined(self, piece: str) -> str:
        """The piece without blanks and line breaks. Raises ImageError."""
        lines = piece.split()
        if piece[0].isspace():
            self.end()
        for line in lines[:-1]:
            self._length += len(line)
            self.end()
        self._length += len(lines[-1]) if lines else 0
        if piece[-1].isspace():
            self.end()
        return "".join(lines)

    def end(self) -> int:
        """End the line; how many there were. Raises ImageError."""
        if self._length:
            self._lengths |= {self._before} if self._n else set()
            self._n, self._before, self._length = self._n + 1, self._length, 0
            if len(self._lengths) > 1:
                raise _invalid("something is missing")
        return self._n


def _invalid(why: str) -> ImageError:
    return ImageError(f"the image is not valid base64 ({why}); encode the bytes of the image file")
