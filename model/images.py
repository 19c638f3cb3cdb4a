"""Decoding of what cameras and people send into one form: RGB uint8, EXIF-rotated, original resolution.

Knows nothing about where images are kept. 16-bit and float images need an *intensity window* (lo, hi), which is
fixed once per product (never per image: a per-image stretch would hide exactly the brightness changes that matter).
"""

from __future__ import annotations

import base64
import io
import warnings

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from refdiff.model.errors import ImageError
from refdiff.model.settings import ModelSettings

MIN_SIDE_PX = 16
MIN_CROP_PX = 48  # a smaller crop shows the defect without anything to compare it with
# What cameras and people send. Not all that PIL knows: for EPS, say, it would run Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")
# PIL modes whose samples exceed 8 bits
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")

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


def _open(data: bytes, name: str, settings: ModelSettings) -> Image.Image:
    if not data:
        raise ImageError(f"{name}: the file is empty; take the photo again")
    if len(data) > settings.max_bytes:
        raise ImageError(
            f"{name}: {len(data):,} bytes is over the limit of {settings.max_bytes:,}; "
            "send a smaller file or raise REFDIFF_MAX_BYTES"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit below speaks clearer than PIL's bomb warning
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as e:
        raise ImageError(f"{name}: the image has too many pixels; the limit is {settings.max_pixels:,}") from e
    except Exception as e:  # PIL raises many types on corrupt headers
        raise ImageError(f"{name}: not an image that can be read (PNG, JPEG, TIFF, BMP, WebP are)") from e
    width, height = image.size
    if width * height > settings.max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} px is over the limit of {settings.max_pixels:,} pixels; "
            "crop or scale the photo, or raise REFDIFF_MAX_PIXELS"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{name}: {width} x {height} px is too small; each side needs {MIN_SIDE_PX} px or more")
    frames = _frames(image, name)
    # the further pictures of a phone's JPEG (MPO) are previews and depth maps of the first
    if frames > 1 and image.format != "MPO":
        raise ImageError(f"{name}: the file holds {frames} frames; export one frame")
    return image


def _frames(image: Image.Image, name: str) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(getattr(image, "n_frames", 1))  # reads on in the file, and may meet damage there
    except Exception as e:
        raise ImageError(f"{name}: the image data is damaged ({type(e).__name__}); take the photo again") from e


def _load(image: Image.Image, name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
        except Exception as e:  # PIL codecs raise many types on corrupt data (OSError, struct.error, SyntaxError, ...)
            raise ImageError(f"{name}: the image data is damaged ({type(e).__name__}); take the photo again") from e
        try:
            return ImageOps.exif_transpose(image)
        except Exception:  # metadata that nobody can read says nothing about which way is up
            return image


def decode_image(
    data: bytes,
    *,
    name: str = "image",
    window: tuple[float, float] | None = None,
    settings: ModelSettings | None = None,
) -> RgbImage:
    """Decode an image file to (H, W, 3) uint8 RGB, EXIF rotation applied, at original resolution.

    window: (lo, hi) sample values mapped to 0..255, required for 16-bit and float images, ignored for 8-bit ones.
    Alpha is composited over white; CMYK, palette and grey images become RGB.
    Raises ImageError: empty, unreadable, damaged, too small, too large, several frames, deep without a window.
    """
    image = _load(_open(data, name, settings or ModelSettings()), name)
    if image.mode in _DEEP_MODES:
        if window is None:
            raise ImageError(
                f"{name}: a 16-bit or float image needs the product's intensity window; "
                "enrol the product's goldens first (enrolment fixes it)"
            )
        return _apply_window(np.asarray(image, dtype=np.float32), window)
    try:
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            canvas = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            image = Image.alpha_composite(canvas, rgba)
        return np.ascontiguousarray(np.asarray(image.convert("RGB"), dtype=np.uint8))
    except Exception as e:  # a corrupt palette or transparency entry
        raise ImageError(f"{name}: colour mode {image.mode} cannot be read; save it as PNG (RGB or grey)") from e


def measure_window(
    data: bytes, *, name: str = "image", settings: ModelSettings | None = None
) -> tuple[float, float] | None:
    """The intensity window (lo, hi) that a deep image suggests, or None for an 8-bit image.

    The range between the 0.1st and 99.9th percentile, widened by a quarter on both sides, so brighter and darker
    parts of the same product still fit. Raises ImageError: as decode_image, and where the image is flat.
    """
    image = _load(_open(data, name, settings or ModelSettings()), name)
    if image.mode not in _DEEP_MODES:
        return None
    samples = np.asarray(image, dtype=np.float32)
    samples = samples[np.isfinite(samples)]
    if samples.size == 0:
        raise ImageError(f"{name}: no finite sample values; take the photo again")
    lo, hi = (float(v) for v in np.percentile(samples, (0.1, 99.9)))
    if not lo < hi:  # a window without width would spoil every later photo of the product
        raise ImageError(
            f"{name}: nearly all samples are {lo:g}, which suggests no intensity window; photograph a part"
        )
    margin = (hi - lo) / 4
    return lo - margin, hi + margin


def _apply_window(samples: NDArray[np.float32], window: tuple[float, float]) -> RgbImage:
    lo, hi = window
    scaled = (np.nan_to_num(samples, nan=lo) - lo) / max(hi - lo, 1e-9)
    grey = (np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))


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
