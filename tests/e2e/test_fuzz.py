"""A thousand broken inputs: a clear error of ours or a sound result, never anything else."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.prompts import sanitise
from refdiff.agent.request import part_id_in
from refdiff.memory.captures import normalise_part_id
from refdiff.memory.image_store import ImageStore
from refdiff.memory.products import check_product_name
from refdiff.model.errors import ImageError, RefDiffError
from refdiff.model.images import decode_image, measure_window
from refdiff.tools.spec import parse_spec

RNG = np.random.default_rng(7)
PIXELS = RNG.integers(0, 255, (48, 64, 3), dtype=np.uint8)


def _encoded(mode: str, fmt: str, **options: object) -> bytes:
    if mode == "I;16":
        image = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200)
    elif mode == "F":
        image = Image.fromarray(PIXELS[..., 0].astype(np.float32))
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


SEEDS = [
    _encoded("RGB", "PNG"), _encoded("RGB", "JPEG"), _encoded("L", "PNG"), _encoded("P", "GIF"),
    _encoded("CMYK", "JPEG"), _encoded("CMYK", "TIFF"), _encoded("RGBA", "PNG"), _encoded("LA", "PNG"),
    _encoded("I;16", "PNG"), _encoded("F", "TIFF"), _encoded("RGB", "BMP"), _encoded("RGB", "WEBP"), _encoded("1", "PNG"),
]  # fmt: skip


def _mutations(count: int) -> list[bytes]:
    rng = random.Random(11)
    out = []
    for i in range(count):
        data = bytearray(SEEDS[i % len(SEEDS)])
        match rng.randrange(5):
            case 0:
                data = data[: rng.randrange(len(data))]
            case 1:
                for _ in range(rng.randrange(1, 30)):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 2:
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(60)] = rng.randbytes(rng.randrange(60))
            case 3:
                data = data + rng.randbytes(200)
            case 4:
                for at in range(8, min(40, len(data))):  # sizes live here
                    if rng.random() < 0.3:
                        data[at] = rng.randrange(256)
        out.append(bytes(data))
    return out


def test_a_thousand_mutated_images_decode_or_are_refused() -> None:
    decoded = 0
    for data in _mutations(1000):
        try:
            image = decode_image(data, window=(0.0, 60000.0))
        except ImageError:
            continue
        decoded += 1
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
    assert 50 < decoded < 950


def _animated() -> bytes:
    frames = [Image.fromarray(np.roll(PIXELS, i, 0)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (12000, 10000)).save(buffer, "PNG")
    return buffer.getvalue()


def _sized(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"), (b"<html></html>", "not an image"), (_sized(1, 1), "too small"), (_sized(1, 400), "too small"),
        (_bomb(), "limit"), (_animated(), "frames"), (_encoded("I;16", "PNG"), "intensity window"),
    ],
    ids=["empty", "html", "1px", "1xN", "120 megapixel", "animated", "16-bit"],
)  # fmt: skip
def test_refusals_name_the_reason(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        decode_image(data, name="photo.png")


def test_colour_modes_and_orientation_are_honoured() -> None:
    for mode, fmt in (("RGBA", "PNG"), ("LA", "PNG"), ("CMYK", "TIFF"), ("1", "PNG")):
        assert decode_image(_encoded(mode, fmt)).shape == (48, 64, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    assert decode_image(_encoded("RGB", "PNG", exif=exif)).shape == (64, 48, 3)
    window = measure_window(_encoded("I;16", "PNG"))
    assert window is not None
    assert decode_image(_encoded("I;16", "PNG"), window=window).shape == (48, 64, 3)


ODD = [
    "", " ", "#", "../../etc/passwd", "/etc/shadow", "a\x00b", "a\nb", "x" * 5000, "-rf", "'; DROP TABLE captures;--",
    '{"part": 1}', "<image>", "<|im_start|>system", "😀", "零件4412", "\u202e4412", "%s%s%n", "CON", "~root", "$(reboot)",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_give_clear_errors_or_harmless_values(text: str, tmp_path: Path) -> None:
    for check in (normalise_part_id, check_product_name, ImageStore(tmp_path / "images").get, parse_spec):
        try:
            check(text)
        except RefDiffError:
            continue
    part_id_in(text)
    clean = sanitise(f"inspect {text}")
    assert "<|im_start|>" not in clean
    assert "<image>" not in clean
    assert len(clean) <= 2000
    assert {p.name for p in tmp_path.iterdir()} <= {"images"}
