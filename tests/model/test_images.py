"""Image decoding: colour modes, orientation, and refusals with their reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from refdiff.model.errors import ImageError
from refdiff.model.images import data_url, decode_image, encode_png, measure_window, media_type
from refdiff.model.settings import ModelSettings

H, W = 24, 32
RGB = np.random.default_rng(1).integers(0, 256, (H, W, 3), np.uint8)
GREY = RGB[..., 0]
SMALL = ModelSettings(max_pixels=1_000_000, max_bytes=1_000_000)


def save(image: Image.Image | NDArray[Any], fmt: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, fmt, **options)
    return buffer.getvalue()


def on_white(alpha: NDArray[np.uint8]) -> NDArray[Any]:
    share = alpha[..., None] / 255
    return RGB * share + 255 * (1 - share)


def palette() -> Image.Image:
    return Image.fromarray(RGB).quantize(200)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises many pixels and holds none."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def frames(fmt: str, **options: Any) -> bytes:
    more = [Image.fromarray(np.roll(RGB, i, 0)) for i in (1, 2)]
    return save(RGB, fmt, save_all=True, append_images=more, **options)


# ---- colours ----


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP", "WEBP", "PPM", "JPEG2000"])
def test_lossless_formats_keep_every_pixel(fmt: str) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(fmt, {})
    image = decode_image(save(RGB, fmt, **options))
    assert np.array_equal(image, RGB)
    assert (image.dtype, image.flags.c_contiguous) == (np.uint8, True)


ALPHA = np.linspace(0, 255, H * W).astype(np.uint8).reshape(H, W)
RGBA = np.dstack([RGB, ALPHA])
PALETTE = palette()
CLEAR = int(np.asarray(PALETTE)[0, 0])  # a palette entry made transparent
COLOURS: dict[str, tuple[bytes, NDArray[Any], float]] = {
    "grey": (save(GREY), np.dstack([GREY] * 3), 0),
    "black and white": (save(Image.fromarray(GREY > 127)), np.dstack([(GREY > 127) * 255] * 3), 0),
    "palette": (save(PALETTE), np.asarray(PALETTE.convert("RGB")), 0),
    "RGBA": (save(RGBA), on_white(ALPHA), 1),
    "grey and alpha": (save(Image.fromarray(RGBA).convert("LA")),
                       np.dstack([np.asarray(Image.fromarray(RGB).convert("L")) * (ALPHA / 255) + 255 - ALPHA] * 3), 1),
    "transparent palette": (save(PALETTE, transparency=CLEAR),
                            np.where((np.asarray(PALETTE) == CLEAR)[..., None], 255, PALETTE.convert("RGB")), 0),
    "transparent colour": (save(RGB, transparency=tuple(int(v) for v in RGB[0, 0])),
                           np.where((RGB[0, 0] == RGB).all(-1)[..., None], 255, RGB), 0),
    "CMYK": (save(Image.fromarray(RGB).convert("CMYK"), "TIFF"), RGB, 2),
    "GIF": (save(PALETTE, "GIF"), np.asarray(PALETTE.convert("RGB")), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_mode_becomes_rgb_on_white(name: str) -> None:
    data, wanted, tolerance = COLOURS[name]
    image = decode_image(data)
    assert image.shape == (H, W, 3)
    assert np.abs(image.astype(float) - wanted).max() <= tolerance


def test_multi_picture_jpeg_decodes_to_its_first_picture() -> None:
    """An MPO: a JPEG followed by previews or a depth map, as many phones write it."""
    smooth = np.asarray(Image.fromarray(RGB).resize((W * 4, H * 4), Image.Resampling.BICUBIC))
    preview = Image.fromarray(255 - smooth)
    data = save(smooth, "MPO", save_all=True, append_images=[preview], quality=95)
    image = decode_image(data)
    assert np.abs(image.astype(float) - smooth).mean() < 8


TURNS = {
    1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
    6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_exif_orientation_is_honoured(orientation: int, fmt: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode_image(save(RGB, fmt, exif=exif)), TURNS[orientation])


def test_invalid_exif_orientation_is_ignored() -> None:
    for value in (0, 9, 60000):
        exif = Image.Exif()
        exif[0x0112] = value
        assert np.array_equal(decode_image(save(RGB, exif=exif)), RGB)
    assert np.array_equal(decode_image(save(RGB, exif=b"Exif\0\0garbage")), RGB)


# ---- deep images ----

DEEP = {
    "16-bit PNG": (save(GREY.astype(np.uint16) * 200), 200),
    "16-bit TIFF": (save(GREY.astype(np.uint16) * 200, "TIFF"), 200),
    "32-bit TIFF": (save(GREY.astype(np.int32) * 3000, "TIFF"), 3000),
    "float TIFF": (save(GREY.astype(np.float32) / 10, "TIFF"), 0.1),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_image_is_scaled_by_the_intensity_window(name: str) -> None:
    data, unit = DEEP[name]
    with pytest.raises(ImageError, match="intensity window"):
        decode_image(data)
    assert np.array_equal(decode_image(data, window=(0, 255 * unit)), np.dstack([GREY] * 3))
    # a window is never stretched to the image: half the range stays half, and what is beyond it is cut
    half = decode_image(data, window=(0, 510 * unit))[..., 0]
    assert np.abs(half - GREY / 2).max() <= 0.5 + 1e-3
    assert decode_image(data, window=(0, 100 * unit)).max() == 255
    suggested = measure_window(data)
    assert suggested is not None
    low, high = np.percentile(GREY, (0.1, 99.9)) * unit
    assert suggested == pytest.approx((low - (high - low) / 4, high + (high - low) / 4), rel=1e-3, abs=unit)


def test_8_bit_photo_for_a_product_with_an_intensity_window_is_refused() -> None:
    assert measure_window(save(RGB)) is None
    with pytest.raises(ImageError, match="8-bit samples"):
        decode_image(save(RGB), window=(0, 60_000))


def test_nan_pixels_become_dark_and_infinite_pixels_are_clipped() -> None:
    samples = np.ones((H, W), np.float32)
    samples[0, :3] = (np.nan, np.inf, -np.inf)
    image = decode_image(save(samples, "TIFF"), window=(0, 2))
    assert image[0, :4, 0].tolist() == [0, 255, 0, 128]
    with pytest.raises(ImageError, match="finite"):
        measure_window(save(np.full((H, W), np.nan, np.float32), "TIFF"))
    with pytest.raises(ImageError, match="no intensity window"):
        measure_window(save(np.full((H, W), 5, np.uint16)))


# ---- refusals ----

REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "one byte": (b"\x89", "not an image"),
    "a web page": (b"<!doctype html><html></html>", "not an image"),
    "a program": (b"\x7fELF" + bytes(200), "not an image"),
    "a PDF": (save(RGB, "PDF"), "not an image"),
    "PostScript, which PIL would run": (save(RGB, "EPS"), "not an image"),
    "an SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "one pixel": (save(RGB[:1, :1]), "too small"),
    "a line": (save(np.zeros((15, 500, 3), np.uint8)), "too small"),
    "a thread": (save(np.zeros((16, 1000, 3), np.uint8)), "too long and thin"),
    "a tower": (save(np.zeros((4096, 48, 3), np.uint8)), "too long and thin"),
    "plain-text PBM": (b"P1 32 32\n" + b"1 0 " * 512, "plain-text PNM"),
    "plain-text PGM": (b"P2 32 32 255\n" + b"1 0 " * 512, "plain-text PNM"),
    "plain-text PPM": (b"P3 32 32 255\n" + b"1 0 9 " * 1024, "plain-text PNM"),
    "an animated GIF": (frames("GIF"), "several frames"),
    "an animated PNG": (frames("PNG"), "several frames"),
    "an animated WebP": (frames("WEBP"), "several frames"),
    "a TIFF of several pages": (frames("TIFF"), "several frames"),
    "the second page torn off": (frames("TIFF")[:-200], "damaged|frames"),
    "half of it": (save(RGB)[: len(save(RGB)) // 2], "damaged"),
    "half a JPEG": (save(RGB, "JPEG")[:700], "damaged"),
    "over a megapixel": (save(np.zeros((1001, 1000), np.uint8)), "over the limit of 1,000,000 pixels"),
    "100 megapixel and no data": (png_header(10_000, 10_000), "over the limit"),
    "4 gigapixel and no data": (png_header(65_000, 65_000), "too many pixels"),
    "wider than any image": (png_header(2**31 - 1, 2**31 - 1), "too many pixels|not an image"),
    "a megabyte of nothing": (bytes(1_000_001), "over the limit of 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_image_names_the_file_and_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(data, name="photo.png", settings=SMALL)
    assert str(caught.value).startswith("photo.png: ")
    with pytest.raises(ImageError):
        measure_window(data, settings=SMALL)


def test_file_name_does_not_decide_the_image_format() -> None:
    assert np.array_equal(decode_image(save(RGB), name="photo.jpg"), RGB)


def test_truncated_multi_page_file_is_an_image_error() -> None:
    """Counting frames reads further in the file; errors found there must be image errors too."""
    for fmt in ("TIFF", "GIF"):
        whole = frames(fmt)
        ends = range(len(whole) // 3, len(whole), max(1, len(whole) // 97))
        refused = 0
        for end in ends:
            try:
                decode_image(whole[:end])
            except ImageError:
                refused += 1
        assert refused == len(ends), "a file that was cut off holds several frames, or is damaged: never one image"


def test_png_round_trip_keeps_every_pixel() -> None:
    assert np.array_equal(decode_image(encode_png(RGB)), RGB)
    assert np.array_equal(decode_image(encode_png(GREY)), np.dstack([GREY] * 3))


@pytest.mark.parametrize(
    ("picture", "kind"),
    [*((save(Image.fromarray(RGB), f), f"image/{f.lower()}") for f in ("PNG", "JPEG", "GIF", "WEBP"))],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_media_type_is_read_from_the_bytes(picture: bytes, kind: str) -> None:
    assert media_type(picture) == kind
    assert data_url(picture).startswith(f"data:{kind};base64,")


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"\x89PNG", b"", save(Image.fromarray(RGB), "TIFF")])
def test_media_type_of_formats_browsers_do_not_show_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="not PNG, JPEG, WebP or GIF"):
        media_type(content)
