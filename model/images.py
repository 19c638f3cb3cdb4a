"""Decoding of what cameras and people send into one form: RGB uint8, EXIF-rotated, original resolution.

Knows nothing about where images are kept. 16-bit and float images need an *intensity window* (lo, hi), which is
fixed once per product (never per image: a per-image stretch would hide exactly the brightness changes that matter).
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from refdiff.model.decode_budget import BUDGET
from refdiff.model.errors import ImageError, UnavailableError, out_of_memory
from refdiff.model.files import SHORTAGES
from refdiff.model.pixel_formats import (
    DeepSamples,
    FormatError,
    check_format,
    depth_name,
    load_pixels,
    mend_palette,
    read_deep,
    unknown_format,
)
from refdiff.model.settings import ModelSettings

MIN_SIDE_PX = 16
MAX_ASPECT = 30  # longer side / shorter side
MIN_CROP_PX = 48  # a smaller crop shows the defect without anything to compare it with
# What cameras and people send. Not all that PIL knows: for EPS, say, it would run Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")
_BAND_PX = 1 << 16  # px that are converted at a time: other threads wait for each, and a copy of a whole photo is large
_ORIENTATION = 0x0112  # EXIF

_DAMAGED = "the image data is damaged ({error}); take the photo again"

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)

RgbImage = NDArray[np.uint8]  # (H, W, 3), 0..255
F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 px, exclusive end
Outline = list[NDArray[np.int32]]  # polygons, each (n, 2) x, y: the outermost px of what lies inside


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, like `.png`, of the files that `decode_image` reads; a file named by itself is tried anyway."""
    return frozenset(suffix for suffix, format in Image.registered_extensions().items() if format in _FORMATS)


def is_image(path: Path) -> bool:
    """Whether a file begins as an image that `decode_image` reads, whatever its name; False if it cannot be opened.

    Raises UnavailableError where the machine has no file descriptor or memory left to look.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS):
                return True
    except Exception as e:  # PIL raises many types on what is no image
        if out_of_memory(e) or (isinstance(e, OSError) and e.errno in SHORTAGES):
            raise UnavailableError(f"{path.name}: cannot be looked at just now ({e}); try again later") from e
        return False


def may_be_image(path: Path) -> bool:
    """Whether a file is an image by its name or its content: then it is tried. Raises UnavailableError as `is_image`."""
    return path.suffix.lower() in image_suffixes() or (path.is_file() and is_image(path))


def check_bytes(size: int, name: str, settings: ModelSettings) -> None:
    """Raises ImageError for a file that is too large to be read."""
    if size > settings.max_bytes:
        raise ImageError(
            f"{name}: {size:,} bytes is over the limit of {settings.max_bytes:,}; "
            "send a smaller file or raise REFDIFF_MAX_BYTES"
        )


@contextmanager
def _reading(name: str, otherwise: str) -> Iterator[None]:
    """PIL and OpenCV raise many types on damaged data; too little memory says nothing about the photo."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limits speak clearer than PIL's bomb warning
            yield
    except ImageError:
        raise
    except FormatError as e:
        raise ImageError(f"{name}: holds {e}, which cannot be read; save it as PNG (8-bit RGB or grey)") from e
    except Exception as e:
        if out_of_memory(e):
            raise UnavailableError(f"{name}: too little memory is free to read it; try again later") from e
        raise ImageError(f"{name}: {otherwise.format(error=type(e).__name__)}") from e


def _open(data: bytes, name: str, settings: ModelSettings) -> ImageFile.ImageFile:
    if not data:
        raise ImageError(f"{name}: the file is empty; take the photo again")
    check_bytes(len(data), name, settings)
    held = unknown_format(data)
    unreadable = (
        f"holds {held}, which cannot be read; save it as PNG"
        if held
        else ("not an image that can be read (PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, GIF and PNM are)")
    )
    with _reading(name, unreadable):
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except Image.DecompressionBombError as e:
            raise ImageError(f"{name}: the image has too many pixels; the limit is {settings.max_pixels:,}") from e
    width, height = image.size
    if width * height > settings.max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} px is over the limit of {settings.max_pixels:,} pixels; "
            "crop or scale the photo, or raise REFDIFF_MAX_PIXELS"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{name}: {width} x {height} px is too small; each side needs {MIN_SIDE_PX} px or more")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"{name}: {width} x {height} px is too long and thin; one side may be {MAX_ASPECT} times the other: "
            "crop the photo, or cut it into several"
        )
    with _reading(name, _DAMAGED):
        check_format(image, data)
        # the further pictures of a phone's JPEG (MPO) are previews and depth maps of the first
        if image.format != "MPO" and _has_second_frame(data):
            raise ImageError(f"{name}: the file holds several frames; export one frame")
    return image


def _has_second_frame(data: bytes) -> bool:
    """Whether there is more than one; counting them would take minutes where there are 100,000."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as probe:  # seeking leaves an image in another state
        try:
            probe.seek(1)
        except EOFError:
            return False
    return True


@contextmanager
def _loaded(data: bytes, name: str, settings: ModelSettings) -> Iterator[tuple[Image.Image, str, int]]:
    """The image with its pixels, its `depth_name` and how it is still to be turned; within the budget of this process."""
    image = _open(data, name, settings)
    width, height = image.size
    with _reading(name, _DAMAGED):
        depth = depth_name(image, data)
    with BUDGET.take(width * height * (2 if depth else 1), settings.max_pixels, name):
        with _reading(name, _DAMAGED):
            pixels = load_pixels(image, data)
        yield pixels, depth, _orientation(image)  # after loading: TIFF is turned upright by then, whoever reads it


def _orientation(image: Image.Image) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # metadata that nobody can read says nothing about which way is up
            return 1


def decode_image(
    data: bytes,
    *,
    name: str = "image",
    window: tuple[float, float] | None = None,
    settings: ModelSettings | None = None,
) -> RgbImage:
    """Decode an image file to (H, W, 3) uint8 RGB, EXIF rotation applied, at original resolution.

    window: (lo, hi) sample values shown as 0..255, of a product whose golden samples have more than 8 bits.
    Alpha is composited over white; CMYK, palette and grey images become RGB.
    Raises ImageError: empty, unreadable, damaged, too small, too large, too thin, several frames, a format whose pixels
    would be misread, deep without a window or 8-bit with one; BusyError, UnavailableError: try again.
    """
    with _loaded(data, name, settings or ModelSettings()) as (image, depth, orientation):
        if depth and window is None:
            raise ImageError(
                f"{name}: holds {depth} samples, and the product has no intensity window: its golden samples are 8-bit, or "
                f"none is enrolled yet; export 8-bit photos, or enrol {depth} golden samples as a product of their own"
            )
        if window is not None and not depth:
            raise ImageError(
                f"{name}: holds 8-bit samples, and the golden samples of the product have more (it has an intensity "
                "window); export the photo as the golden samples were, or enrol 8-bit ones as a product of their own"
            )
        with _reading(name, f"colour mode {image.mode} cannot be read; save it as PNG (RGB or grey)"):
            pixels = _through_window(read_deep(image, data), window) if window else _rgb(image)
        if pixels is None:
            raise ImageError(f"{name}: every pixel is transparent; save it without an alpha channel")
        return _upright(pixels, orientation)


def measure_window(
    data: bytes, *, name: str = "image", settings: ModelSettings | None = None
) -> tuple[float, float] | None:
    """The intensity window (lo, hi) that a deep image suggests, or None for an 8-bit image.

    The range between the 0.1st and 99.9th percentile of all channels, widened by a quarter on both sides, so brighter and
    darker parts of the same product still fit. Raises as decode_image, and ImageError where the image is flat.
    """
    with _loaded(data, name, settings or ModelSettings()) as (image, depth, _):
        if not depth:
            return None
        with _reading(name, _DAMAGED):
            values = read_deep(image, data).values
            samples = values.astype(np.float32, copy=False)
            samples = samples[np.isfinite(samples)]
        if samples.size == 0:
            raise ImageError(f"{name}: no finite sample values; take the photo again")
        with _reading(name, _DAMAGED):
            lo, hi = (float(v) for v in np.percentile(samples, (0.1, 99.9)))
    if not lo < hi:  # a window without width would spoil every later photo of the product
        raise ImageError(
            f"{name}: nearly all samples are {lo:g}, which suggests no intensity window; photograph a part"
        )
    margin = (hi - lo) / 4
    return lo - margin, hi + margin


def deep_values(data: bytes, *, name: str = "image", settings: ModelSettings | None = None) -> NDArray | None:
    """(H, W) samples of a grey image as they are, EXIF rotation applied; None for one of 8 bits, or in colour.

    Raises as `decode_image`.
    """
    with _loaded(data, name, settings or ModelSettings()) as (image, depth, orientation):
        if not depth:
            return None
        with _reading(name, _DAMAGED):
            values = read_deep(image, data).values
        return _upright(np.asarray(values), orientation) if values.ndim == 2 else None


def grey_through_window(values: F32, window: tuple[float, float]) -> RgbImage:
    """(H, W) values, NaN where there are none, as (H, W, 3) grey: what lies in the window (lo, hi) as 0..255."""
    shown = _through_window(DeepSamples(values, None), window)
    assert shown is not None, "without alpha, everything is opaque"
    return shown


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows, about `_BAND_PX` at a time."""
    rows = max(1, _BAND_PX // width)
    return (slice(y, min(y + rows, height)) for y in range(0, height, rows))


def _rgb(image: Image.Image) -> RgbImage | None:
    """(H, W, 3), over white where it has alpha; None where nothing is opaque."""
    mend_palette(image)
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    out = np.empty((image.height, image.width, 3), np.uint8)
    visible = not transparent
    for rows in _bands(image.height, image.width):
        band = image.crop((0, rows.start, image.width, rows.stop))
        if transparent:
            band = band.convert("RGBA")
            visible = visible or bool(np.asarray(band.getchannel("A")).any())
            band = Image.alpha_composite(Image.new("RGBA", band.size, (255, 255, 255, 255)), band)
        out[rows] = np.asarray(band.convert("RGB"))
    return out if visible else None


def _through_window(samples: DeepSamples, window: tuple[float, float]) -> RgbImage | None:
    """(H, W, 3) of what lies in the window, over white where it has alpha; None where nothing is opaque."""
    lo, hi = window
    height, width = samples.values.shape[:2]
    out = np.empty((height, width, 3), np.uint8)
    for rows in _bands(height, width):
        values = samples.values[rows].astype(np.float32)
        scaled = (np.nan_to_num(values, nan=lo) - lo) / max(hi - lo, 1e-9)
        shown = (np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
        if samples.alpha is not None:
            share = samples.alpha[rows].astype(np.float32)[..., None] / 255
            shown = (shown * share + 255 * (1 - share) + 0.5).astype(np.uint8)
        out[rows] = shown if shown.ndim == 3 else shown[..., None]
    return out if samples.alpha is None or samples.alpha.any() else None


def _upright(pixels: NDArray, orientation: int) -> NDArray:
    """Turned as EXIF says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def grey_thumbnail(image: RgbImage, side: int) -> F32:
    """(H, W, 3) uint8 RGB -> (side, side) float32 grey 0..255, area-averaged: noise and compression average out."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) uint8 to PNG bytes."""
    # OpenCV's run-length strategy takes a tenth of PIL's time on photos, whose noise does not compress anyway
    pixels = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".png", pixels)[1].tobytes())


def media_type(picture: bytes) -> str:
    """`image/png` and the like, of an encoded picture that browsers show, from its first bytes.

    Raises ValueError for any other content: what is shown to people is encoded here, never passed on.
    """
    kind = next((mime for start, mime in _SIGNATURES if picture.startswith(start)), None)
    if kind is None and picture[:4] == b"RIFF" and picture[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise ValueError(f"picture starts with {picture[:8]!r}: not PNG, JPEG, WebP or GIF; encode it first")
    return kind


def data_url(picture: bytes) -> str:
    """`data:image/png;base64,...` of an encoded picture. Raises ValueError as `media_type` does."""
    return f"data:{media_type(picture)};base64,{base64.b64encode(picture).decode('ascii')}"


def widen(box: Box, margin_px: int, smallest_px: int, size: tuple[int, int]) -> Box:
    """`box` plus a margin on every side, at least `smallest_px` a side, moved rather than cut at the image's border."""

    def axis(lo: int, hi: int, end: int) -> tuple[int, int]:
        lo, hi = max(0, lo - margin_px), min(end, hi + margin_px)
        lack = smallest_px - (hi - lo)
        if lack > 0:
            lo = min(max(0, lo - lack // 2), max(0, end - smallest_px))
            hi = min(end, lo + smallest_px)
        return lo, hi

    (x0, x1), (y0, y1) = axis(box[0], box[2], size[1]), axis(box[1], box[3], size[0])
    return x0, y0, x1, y1
