"""Photos sent as base64 text: what is accepted, and what is refused before decoding."""

from __future__ import annotations

import base64
import random
import threading
import time
from urllib.parse import quote

import pytest

from refdiff.model.errors import ImageError
from refdiff.server.base64_images import from_base64, from_data_url

DATA = bytes(range(100))
TEXT = base64.b64encode(DATA).decode("ascii")
ODD = bytes(range(150, 255))  # with both letters that the alphabet for URLs replaces, and padding
ODD_TEXT = base64.b64encode(ODD).decode("ascii")


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:image/svg+xml;charset=utf-8;BASE64,"])
def test_base64_data_url_is_decoded(head: str) -> None:
    assert from_data_url(head + TEXT, 100).data == DATA
    assert from_base64(head + TEXT, 100).data == DATA
    assert from_base64(TEXT, 100).data == DATA


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("part-4412.png", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
        ("data:image/svg+xml,%3Csvg%3E", "URLs are not fetched"),
        ("https://a.example/p.png", "URLs are not fetched"),
        ("data:image/png;base64,%%%", "not valid base64"),
    ],
)
def test_url_that_is_no_base64_image_data_is_refused(url: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        from_data_url(url, 1000)


@pytest.mark.parametrize(
    "head", ["", "data:image/png;base64,", "data:application/octet-stream;base64,", "data:;base64,"]
)
def test_base64_is_decoded_with_and_without_a_data_url_prefix(head: str) -> None:
    assert from_base64(head + TEXT, 1000).data == base64.b64decode(TEXT)


@pytest.mark.parametrize(
    "text",
    [
        base64.encodebytes(ODD).decode(),
        base64.encodebytes(ODD).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(ODD).decode(),
        ODD_TEXT.rstrip("="),
        base64.urlsafe_b64encode(ODD).decode().rstrip("="),
        quote(ODD_TEXT, safe=""),
    ],
    ids=["lines", "lines of Windows", "for URLs", "without padding", "for URLs, without padding", "escaped"],
)
@pytest.mark.parametrize(
    "head", ["", "data:image/png;base64,", "data:application/octet-stream;base64,", "data:;base64,"]
)
def test_base64_is_decoded_however_it_is_written(text: str, head: str) -> None:
    assert from_base64(head + text, 1000).data == ODD
    if head or "%" not in text:
        assert from_data_url(head + text, 1000).data == ODD


@pytest.mark.parametrize("size", [49_150, 49_151, 49_152, 49_153, 194_053, 200_000])
def test_base64_of_a_large_photo_is_decoded_however_it_is_written(size: int) -> None:
    data = random.Random(size).randbytes(size)
    plain, lines = base64.b64encode(data).decode(), base64.encodebytes(data).decode()
    url_safe, escapes = base64.urlsafe_b64encode(data).decode(), "".join(f"%{ord(c):02x}" for c in plain)
    ways = [plain, lines, lines.replace("\n", "\r\n"), f"\n {plain}\n", f"{plain}\n", plain.rstrip("=")]
    ways += [quote(plain, safe=""), url_safe, escapes]
    for text in ways:
        assert from_base64(text, size).data == data
        assert from_base64(f"data:image/png;base64,{text}", size).data == data
        with pytest.raises(ImageError, match="exceeds"):
            from_base64(text, size - 1)
    blanks = f"{plain[:5000]} {plain[5000:9000]} {plain[9000:]}"
    padded_twice = plain.rstrip("=") + "==" + plain
    cut = lines[:1010] + " " + lines[1010:]
    for wrong in (padded_twice, plain + "=", plain[:-5] + "ä" + plain[-4:], blanks, cut):
        with pytest.raises(ImageError, match="not valid base64"):
            from_base64(wrong, 10**6)


def test_other_threads_have_their_turn_while_a_large_photo_is_decoded() -> None:
    text = base64.b64encode(bytes(20_000_000)).decode()

    def longest_pause() -> float:
        """Of another thread, as a share of the decoding."""
        ended, pauses = threading.Event(), [0.0]

        def ticking() -> None:
            last = time.perf_counter()
            while not ended.wait(0.001):
                now = time.perf_counter()
                pauses.append(now - last)
                last = now

        ticker = threading.Thread(target=ticking)
        ticker.start()
        begun = time.perf_counter()
        from_base64(text, 20_000_000)
        took = time.perf_counter() - begun
        ended.set()
        ticker.join()
        return max(pauses) / took

    assert min(longest_pause() for _ in range(3)) < 0.25


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_base64_whose_plus_signs_became_blanks_is_refused(lost: int) -> None:
    with pytest.raises(ImageError, match="not valid base64"):
        from_base64(ODD_TEXT.replace("+", " ", lost), 1000)


@pytest.mark.parametrize("text", ["%%%", "photo.png", f"file:///etc/passwd,{TEXT}", "ä"])
def test_text_that_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="not valid base64"):
        from_base64(text, 1000)


@pytest.mark.parametrize("limit", [0, 50, 98, 99])
def test_base64_image_above_the_size_limit_is_refused(limit: int) -> None:
    for take in (from_base64, from_data_url):
        with pytest.raises(ImageError, match="REFDIFF_MAX_BYTES"):
            take(f"data:image/png;base64,{TEXT}", limit)
