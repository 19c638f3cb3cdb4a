"""One table of pixel formats as cameras and tools write them: each is read as it was meant, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from refdiff.model.errors import ImageError
from refdiff.model.images import decode_image, measure_window

H, W = 24, 32
Samples = NDArray[Any]


def tiff(
    samples: Samples, photometric: int, *, bits: int = 0, kind: int = 1, extra: Sequence[int] = (), planes: bool = False,
    order: str = "<", packed: bytes = b"", tags: dict[int, Sequence[int]] | None = None,
) -> bytes:  # fmt: skip
    """An uncompressed TIFF with any tags. samples: (H, W) or (H, W, C); packed: their bytes, if they share bytes."""
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    stored = samples.transpose(2, 0, 1) if planes else samples
    data = packed or stored.astype(samples.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]
    strips = bands if planes else 1
    size = len(data) // strips
    found: dict[int, Sequence[int]] = {
        256: [W], 257: [H], 258: [bits or samples.dtype.itemsize * 8] * bands, 259: [1], 262: [photometric],
        273: [8 + i * size for i in range(strips)], 277: [bands], 278: [H], 279: [size] * strips,
        284: [2 if planes else 1], 339: [kind] * bands,
    }  # fmt: skip
    found |= ({338: list(extra)} if extra else {}) | (tags or {})
    first = 8 + len(data)
    entries, tail = b"", b""
    for tag in sorted(found):
        body = struct.pack(f"{order}{len(found[tag])}I", *found[tag])
        at = first + 2 + 12 * len(found) + 4 + len(tail)
        entries += struct.pack(f"{order}HHI", tag, 4, len(found[tag]))
        entries += body if len(body) == 4 else struct.pack(f"{order}I", at)
        tail += body if len(body) > 4 else b""
    start = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, first)
    return start + data + struct.pack(f"{order}H", len(found)) + entries + bytes(4) + tail


def png(samples: Samples, colour: int, depth: int = 16, *, before: bytes = b"") -> bytes:
    """A PNG of any depth. samples: (H, W, C) or (H, W)."""
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", W, H, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def saved(image: Image.Image, fmt: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def encoded(suffix: str, samples: Samples) -> bytes:
    return cv2.imencode(suffix, samples)[1].tobytes()


# what a 12-bit camera sees, and the same in 8 bits
EIGHT = np.random.default_rng(3).integers(0, 256, (H, W, 3), np.uint8)
GREY = EIGHT[..., 0]
TWELVE = EIGHT.astype(np.uint16) * 16 + 15
FULL = EIGHT.astype(np.uint16) * 257
ALPHA = np.random.default_rng(4).integers(0, 256, (H, W, 1), np.uint8)
DEEP_ALPHA = ALPHA.astype(np.uint16) * 257
TURNED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # EXIF: orientation 6
OPAQUE = np.full((H, W, 1), 65535, np.uint16)
WINDOW = (15.0, 15.0 + 255 * 16)  # shows TWELVE as EIGHT
BGR = np.ascontiguousarray(TWELVE[..., ::-1])
LARGE = cv2.resize(BGR, (256, 192), interpolation=cv2.INTER_NEAREST)  # the encoder makes no small ones


def grey3(grey: Samples) -> Samples:
    return np.repeat(np.asarray(grey)[..., None], 3, axis=2)


def on_white(colours: Samples, alpha: Samples) -> Samples:
    share = alpha.astype(float) / 255
    return colours * share + 255 * (1 - share)


def turned(orientation: int) -> bytes:
    return tiff(TWELVE, 2, tags={274: [orientation]})


# name -> file, the pixels it means (8 bits), window, largest difference
READ: dict[str, tuple[bytes, Samples, tuple[float, float] | None, float]] = {
    # ---- 8 bits and less
    "grey PNG": (png(GREY, 0, 8), grey3(GREY), None, 0),
    "grey TIFF": (tiff(GREY, 1), grey3(GREY), None, 0),
    "white-is-zero TIFF": (tiff(255 - GREY, 0), grey3(GREY), None, 0),
    "white-is-zero TIFF, one bit": (saved(Image.fromarray(GREY > 127), "TIFF", compression="group4"),
                                    grey3((GREY > 127) * 255), None, 0),
    "4-bit grey TIFF": (tiff(GREY, 1, bits=4, packed=b"\x1f" * (H * W // 2)),
                        grey3(np.tile([17, 255], (H, W // 2))), None, 0),
    "RGB TIFF in separate planes": (tiff(EIGHT, 2, planes=True), EIGHT, None, 0),
    "RGB TIFF and infrared": (tiff(np.dstack([EIGHT, ALPHA]), 2, extra=(0,)), EIGHT, None, 0),
    "RGB TIFF and two more bands": (tiff(np.dstack([EIGHT, ALPHA, ALPHA]), 2, extra=(0, 0)), EIGHT, None, 0),
    "grey TIFF and another band": (tiff(np.dstack([GREY, ALPHA]), 1, extra=(0,)), grey3(GREY), None, 0),
    "alpha": (tiff(np.dstack([EIGHT, ALPHA]), 2, extra=(2,)), on_white(EIGHT, ALPHA), None, 1),
    "premultiplied alpha": (tiff(np.dstack([(EIGHT * (ALPHA / 255.0)).round().astype(np.uint8), ALPHA]), 2, extra=(1,)),
                            on_white(EIGHT, ALPHA), None, 2),
    "grey TIFF with alpha": (tiff(np.dstack([GREY, ALPHA]), 1, extra=(2,)), on_white(grey3(GREY), ALPHA), None, 1),
    "palette of 16-bit colours": (tiff(GREY, 3, tags={320: [v * 257 for v in range(256)] * 3}), grey3(GREY), None, 0),
    "palette of colours written as bytes": (tiff(GREY, 3, tags={320: list(range(256)) * 3}), grey3(GREY), None, 0),
    "32-bit BMP with an unused fourth byte": (
        b"BM" + struct.pack("<IHHI", 54 + H * W * 4, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, W, H, 1, 32, *[0] * 6)
        + np.dstack([EIGHT[::-1, :, ::-1], ALPHA * 0]).tobytes(), EIGHT, None, 0),
    "PPM": (encoded(".ppm", EIGHT[..., ::-1]), EIGHT, None, 0),
    # ---- deep grey
    "16-bit grey PNG": (png(TWELVE[..., 0], 0), grey3(GREY), WINDOW, 0),
    "16-bit grey TIFF": (tiff(TWELVE[..., 0], 1), grey3(GREY), WINDOW, 0),
    "16-bit grey TIFF, big-endian": (tiff(TWELVE[..., 0], 1, order=">"), grey3(GREY), WINDOW, 0),
    "16-bit white-is-zero TIFF": (tiff(65535 - TWELVE[..., 0], 0), grey3(GREY), WINDOW, 0),
    "12-bit packed TIFF": (tiff(GREY, 1, bits=12, packed=b"\x12\x34\x56" * (H * W // 2)),
                           grey3(np.tile([0x123, 0x456], (H, W // 2)) / 16), (0, 4080), 1),
    "signed 16-bit TIFF": (tiff(TWELVE[..., 0].astype(np.int16) - 3000, 1, kind=2), grey3(GREY),
                           (WINDOW[0] - 3000, WINDOW[1] - 3000), 0),
    "32-bit TIFF": (tiff(TWELVE[..., 0].astype(np.uint32) * 1_000_000, 1), grey3(GREY), (15e6, WINDOW[1] * 1e6), 0),
    "signed 32-bit TIFF": (tiff(-TWELVE[..., 0].astype(np.int32), 1, kind=2), 255 - grey3(GREY), (-WINDOW[1], -15), 0),
    "float TIFF": (tiff(TWELVE[..., 0] / np.float32(9), 1, kind=3), grey3(GREY), (WINDOW[0] / 9, WINDOW[1] / 9), 0),
    "10-bit PGM": (b"P5 32 24 1023\n" + (GREY.astype(np.uint16) * 4).astype(">u2").tobytes(), grey3(GREY),
                   (0, 65535 * 1020 / 1023), 1),
    "16-bit grey JPEG 2000": (encoded(".jp2", LARGE[..., 2]),
                              grey3(cv2.resize(GREY, (256, 192), interpolation=cv2.INTER_NEAREST)), WINDOW, 40),
    # ---- deep colour: PIL keeps the upper byte, which is black here
    "16-bit colour PNG": (png(TWELVE, 2), EIGHT, WINDOW, 0),
    "16-bit colour PNG of full range": (png(FULL, 2), EIGHT, (0, 65535), 0),
    "16-bit colour PNG with alpha": (png(np.dstack([TWELVE, DEEP_ALPHA]), 6), on_white(EIGHT, ALPHA), WINDOW, 1),
    "16-bit colour PNG, turned": (png(TWELVE, 2, before=chunk(b"eXIf", TURNED)), np.rot90(EIGHT, -1), WINDOW, 0),
    "16-bit grey PNG, turned": (png(TWELVE[..., 0], 0, before=chunk(b"eXIf", TURNED)),
                                np.rot90(grey3(GREY), -1), WINDOW, 0),
    "16-bit grey PNG with alpha": (png(np.dstack([TWELVE[..., :1], DEEP_ALPHA]), 4),
                                   on_white(grey3(GREY), ALPHA), WINDOW, 1),
    "16-bit colour TIFF": (tiff(TWELVE, 2), EIGHT, WINDOW, 0),
    "16-bit colour TIFF, big-endian": (tiff(TWELVE, 2, order=">"), EIGHT, WINDOW, 0),
    "16-bit colour TIFF, LZW": (encoded(".tif", BGR), EIGHT, WINDOW, 0),
    "16-bit colour TIFF with alpha": (tiff(np.dstack([TWELVE, DEEP_ALPHA]), 2, extra=(2,)),
                                      on_white(EIGHT, ALPHA), WINDOW, 1),
    "16-bit colour TIFF, opaque premultiplied": (tiff(np.dstack([TWELVE, OPAQUE]), 2, extra=(1,)), EIGHT, WINDOW, 0),
    "16-bit colour TIFF and infrared": (tiff(np.dstack([TWELVE, OPAQUE // 2]), 2, extra=(0,)), EIGHT, WINDOW, 0),
    "12-bit PPM": (b"P6 32 24 4095\n" + TWELVE.astype(">u2").tobytes(), EIGHT, WINDOW, 0),
    "16-bit colour JPEG 2000": (encoded(".jp2", LARGE), cv2.resize(EIGHT, (256, 192), interpolation=cv2.INTER_NEAREST),
                                WINDOW, 60),
    "upside down": (turned(3), EIGHT[::-1, ::-1], WINDOW, 0),
    "turned left": (turned(8), np.rot90(EIGHT), WINDOW, 0),
    "turned right": (turned(6), np.rot90(EIGHT, -1), WINDOW, 0),
    "mirrored and turned": (turned(5), EIGHT.transpose(1, 0, 2), WINDOW, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_format_is_read_as_it_was_meant(name: str) -> None:
    data, meant, window, tolerance = READ[name]
    image = decode_image(data, window=window)
    assert (image.dtype, image.flags.c_contiguous, image.shape) == (np.uint8, True, meant.shape)
    assert np.abs(image.astype(float) - meant).max() <= tolerance


@pytest.mark.parametrize("name", READ)
def test_deep_format_asks_for_a_window_and_8_bit_format_refuses_one(name: str) -> None:
    data, _, window, _ = READ[name]
    suggested = measure_window(data)
    assert (suggested is None) == (window is None)
    with pytest.raises(ImageError, match="holds 8-bit samples" if window is None else "no intensity window"):
        decode_image(data, window=(0, 1) if window is None else None)


@pytest.mark.parametrize("name", [n for n, (_, _, window, _) in READ.items() if window == WINDOW and "alpha" not in n])
def test_suggested_window_shows_the_whole_range_of_a_12_bit_photo(name: str) -> None:
    data = READ[name][0]
    image = decode_image(data, window=measure_window(data))
    assert 30 < image.min() < 60
    assert 200 < image.max() < 230


def by_pil(mode: str, format_: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(LARGE[..., 0].astype(np.uint8)).convert("RGB").convert(mode).save(file, format_)
    return file.getvalue()


REFUSED = {
    "10-bit packed TIFF": (tiff(GREY, 1, bits=10, packed=bytes(H * W * 10 // 8)), "10-bit grey"),
    "14-bit packed TIFF": (tiff(GREY, 1, bits=14, packed=bytes(H * W * 14 // 8)), "14-bit grey"),
    "signed bytes": (tiff(GREY.astype(np.int8), 1, kind=2), "8-bit signed grey"),
    "16-bit planes": (tiff(TWELVE, 2, planes=True), "16-bit RGB, 3 bands in separate planes"),
    "16-bit premultiplied alpha": (tiff(np.dstack([TWELVE, OPAQUE // 2]), 2, extra=(1,)), "premultiplied alpha"),
    "16-bit grey TIFF with alpha": (tiff(TWELVE[..., :2], 1, extra=(2,)), "16-bit grey, 2 bands"),
    "16-bit transparent colour": (png(TWELVE, 2, before=chunk(b"tRNS", bytes(6))), "transparent colour"),
    "16-bit transparent grey": (png(TWELVE[..., 0], 0, before=chunk(b"tRNS", bytes(2))), "transparent colour"),
    "premultiplied grey": (tiff(np.dstack([GREY, ALPHA]), 1, extra=(1,)), "colour mode La"),
    "32-bit colour": (tiff(TWELVE.astype(np.uint32), 2), "32-bit RGB"),
    "float colour": (tiff(TWELVE.astype(np.float32), 2, kind=3), "32-bit float RGB"),
    "half floats": (tiff(TWELVE[..., 0].astype(np.float16), 1, kind=3), "16-bit float grey"),
    "double floats": (tiff(TWELVE[..., 0].astype(np.float64), 1, kind=3), "64-bit float grey"),
    "12-bit packed white-is-zero": (tiff(GREY, 0, bits=12, packed=bytes(H * W * 12 // 8)), "12-bit white-is-zero grey"),
    "white-is-zero floats": (tiff(TWELVE[..., 0].astype(np.float32), 0, kind=3), "32-bit float white-is-zero grey"),
    "16-bit CMYK": (tiff(np.dstack([TWELVE, OPAQUE]), 5), "16-bit CMYK"),
    "16-bit CIELAB": (tiff(TWELVE, 8), "16-bit CIELAB"),
    "Bayer": (tiff(TWELVE[..., 0], 32803), "Bayer"),
    "8-bit Bayer": (tiff(GREY, 32803), "Bayer"),
    "linear raw": (tiff(TWELVE, 34892), "linear raw sensor data"),
    "five bands": (tiff(np.dstack([EIGHT, ALPHA, ALPHA]), 1, extra=(0,) * 4), "8-bit grey, 5 bands"),
    "preview": (tiff(EIGHT, 2, tags={254: [1]}), "reduced preview"),
    **{f"JPEG 2000 of mode {mode}": (by_pil(mode, "JPEG2000"), f"JPEG2000 of mode {shown}")
       for mode, shown in {"LA": "LA", "CMYK": "CMYK", "YCbCr": "YCC"}.items()},
    "PFM in colour": (b"PF\n32 24\n-1.0\n" + TWELVE.astype("<f4").tobytes(), "PFM in colour"),
    "PAM": (b"P7\nWIDTH 32\nHEIGHT 24\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + EIGHT.tobytes(), "PAM"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "heic"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(99), "avif"),
    "only transparent pixels": (png(np.dstack([EIGHT, ALPHA * 0]), 6, 8), "every pixel is transparent"),
    "only transparent deep pixels": (png(np.dstack([TWELVE, OPAQUE * 0]), 6), "every pixel is transparent"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_format_is_named(name: str) -> None:
    data, named = REFUSED[name]
    refusals = []
    for window in (None, WINDOW):  # whatever the golden samples were
        with pytest.raises(ImageError, match=r"^photo: ") as caught:
            decode_image(data, name="photo", window=window)
        refusals.append(str(caught.value))
    assert any(named in refusal for refusal in refusals), refusals
