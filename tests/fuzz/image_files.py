"""Image files as hypothesis builds them: encoded in every format, then mutated. As JSON: base64."""

from __future__ import annotations

import base64
import io
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

_MODES = {
    "PNG": ("RGB", "L", "1", "RGBA", "LA", "P", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "L", "1", "RGBA", "P", "CMYK", "I;16", "F", "I"),
    "BMP": ("RGB", "L", "1", "P"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "JPEG2000": ("RGB", "L", "RGBA"),
    "PPM": ("RGB", "L", "1", "I;16"),
}
_ENDS = (0, 1, 255, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_sides = st.one_of(st.integers(1, 80), st.sampled_from([15, 16, 17, 31, 64, 300]))


@st.composite
def built(draw: st.DrawFn) -> bytes:
    """A well-formed file of up to 300 x 300 px."""
    kind = draw(st.sampled_from(sorted(_MODES)))
    mode = draw(st.sampled_from(_MODES[kind]))
    width, height, seed = draw(_sides), draw(_sides), draw(st.integers(0, 3))
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    if mode in ("I;16", "F", "I"):
        deep = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        image = Image.fromarray(pixels[..., 0].astype(deep) * 200)
    else:
        image = Image.fromarray(pixels).convert(mode)
    options: dict[str, Any] = {}
    if kind in ("GIF", "TIFF", "PNG", "WEBP") and draw(st.integers(0, 9)) == 0:
        options = {"save_all": True, "append_images": [image.rotate(90, expand=False)]}
    if kind == "JPEG" and draw(st.booleans()):
        exif = Image.Exif()
        exif[274] = draw(st.integers(0, 9))
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@st.composite
def mutated(draw: st.DrawFn, least: int = 0) -> bytes:
    """A built file after `least` to 4 mutations: bits, numbers, cuts, repeats and insertions, often in the header."""
    data = bytearray(draw(built()))
    for _ in range(draw(st.integers(least, 4))):
        if not data:
            break
        at = draw(st.one_of(st.integers(0, min(64, len(data)) - 1), st.integers(0, len(data) - 1)))
        match draw(st.sampled_from(["bit", "number", "cut", "insert", "repeat", "remove"])):
            case "bit":
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "number":
                size = draw(st.sampled_from("HI"))
                value = draw(st.sampled_from(_ENDS)) % (2**16 if size == "H" else 2**32)
                number = struct.pack(draw(st.sampled_from("<>")) + size, value)
                data[at : at + len(number)] = number
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 400))]
            case "remove":
                del data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def as_bytes(text: str) -> bytes:
    return base64.b64decode(text)


images = st.one_of(built(), mutated(1), st.binary(max_size=60)).map(as_text)
