"""What the samples of an image file mean: their depth, their polarity, their alpha, and the names of what is not read.

PIL alone would read 16-bit colour by its upper bytes (12-bit cameras: black), 16-bit white-is-zero as a negative, signed
bytes and unsigned 32-bit samples wrapped, and planes of 16 bits as noise, all without a word. Every format is either read
as it was meant or refused by name.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # PIL modes whose samples exceed 8 bits
_KINDS = {1: "", 2: "signed ", 3: "float ", 4: "undefined "}
_WHITE_IS_ZERO, _RGB = 0, 2
_PHOTOMETRIC = {
    0: "white-is-zero grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB",
    9: "ICCLAB", 10: "ITULAB", 32803: "Bayer (raw sensor data)", 34892: "linear raw sensor data",
}  # fmt: skip
_PREMULTIPLIED = 1  # of ExtraSamples
_J2K_SIZE_MARKER = b"\xff\x4f\xff\x51"
_J2K_DEPTH_AT = 42  # bytes from there to the first component's bit depth
_J2K_YCC = re.compile(rb"colr\x01..\0\0\0\x12", re.DOTALL)  # libraries convert these colours each in their way
_HELD_BY_PIL = ("JPEG2000", "WEBP")  # it decodes or copies them without letting another thread run, for seconds
_SAMPLES = {"L": (1, np.uint8), "RGB": (3, np.uint8), "RGBA": (4, np.uint8), "I;16": (1, np.uint16)}  # bands, by mode


class FormatError(ValueError):
    """Names a format whose pixels would not be read as they were meant."""


@dataclass(frozen=True)
class DeepSamples:
    """Samples of more than 8 bits."""

    values: NDArray[Any]  # (H, W) grey or (H, W, 3) RGB; integers or float32
    alpha: NDArray[np.uint8] | None  # (H, W) 0..255; None: opaque


@dataclass(frozen=True)
class _Tiff:
    """The tags of a TIFF's first picture that say what its samples mean."""

    photometric: int
    bits: tuple[int, ...]
    kinds: tuple[int, ...]
    planes: bool
    extra: tuple[int, ...]
    preview: bool

    def __str__(self) -> str:
        depth = "/".join(str(b) for b in sorted(set(self.bits)))
        kind = "".join(_KINDS.get(k, "") for k in sorted(set(self.kinds)))
        colour = _PHOTOMETRIC.get(self.photometric, f"photometric {self.photometric}")
        bands = f", {len(self.bits)} bands" if len(self.bits) > 1 else ""
        return f"{depth}-bit {kind}{colour}{bands}{' in separate planes' if self.planes else ''}"


def _tiff(tags: ImageFileDirectory_v2) -> _Tiff:
    def numbers(tag: int, default: int) -> tuple[int, ...]:
        value = tags.get(tag, default)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(value),)

    bands = numbers(277, 1)[0]
    bits, kinds = numbers(258, 1), numbers(339, 1)
    return _Tiff(
        photometric=numbers(262, -1)[0],
        bits=bits if len(bits) == bands else bits[:1] * min(bands, 64),
        kinds=kinds,
        planes=numbers(284, 1)[0] == 2 and bands > 1,
        extra=numbers(338, -1) if 338 in tags else (),
        preview=bool(numbers(254, 0)[0] & 1),
    )


def unknown_format(data: bytes) -> str:
    """What a file that PIL cannot open holds, in words; "" if that cannot be told."""
    if data[4:8] == b"ftyp":
        return f"{data[8:12].decode('ascii', 'replace').strip()} (HEIF, AVIF or video)"
    if data[:4] in (b"II*\0", b"MM\0*"):
        try:
            tags, file = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            return f"TIFF of {_tiff(tags)}"
        except Exception:  # what is damaged raises many types, and has no name
            return ""
    if data[:2] in (b"P7", b"PF"):
        return "PAM" if data[1:2] == b"7" else "PFM in colour"
    return ""


def check_format(image: Image.Image, data: bytes) -> None:
    """Raises FormatError for an opened image whose pixels PIL would misread, or that is not the picture itself."""
    if data[:2] in (b"P1", b"P2", b"P3"):
        raise FormatError("plain-text PNM (P1 to P3); cameras write the binary kind (P4 to P6)")
    if image.format != "TIFF":
        return
    tiff = _tiff_of(image)
    depth = max(tiff.bits)
    if tiff.preview:
        raise FormatError("TIFF whose first picture is a reduced preview")
    misread = (
        len(set(tiff.bits)) > 1
        or (tiff.planes and depth > 8)
        or (depth <= 8 and any(k != 1 for k in tiff.kinds))
        or (tiff.photometric == _WHITE_IS_ZERO and depth > 8 and not image.mode.startswith("I;16"))
        or (depth > 8 and image.mode not in _DEEP_GREY and (tiff.photometric, set(tiff.kinds)) != (_RGB, {1}))
    )
    if misread:
        raise FormatError(f"TIFF of {tiff}")


def depth_name(image: ImageFile.ImageFile, data: bytes) -> str:
    """`16-bit colour` and the like, of an image that is opened but not loaded; "" if it needs no intensity window."""
    if image.mode in _DEEP_GREY:
        return "float" if image.mode == "F" else "32-bit grey" if image.mode == "I" else "16-bit grey"
    return "16-bit colour" if _deep_colour(image, data) else ""


def _deep_colour(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Would PIL cut the samples of this colour image (or grey with alpha) to 8 bits?"""
    if image.format == "PNG":
        return data[24] == 16
    if image.format == "TIFF":
        return max(_tiff_of(image).bits) > 8
    if image.format == "PPM":
        codec, *_, arguments = image.tile[0]
        return codec == "ppm" and isinstance(arguments, tuple) and int(arguments[1]) > 255
    if image.format == "JPEG2000":
        at = data.find(_J2K_SIZE_MARKER) + _J2K_DEPTH_AT
        return at < len(data) and (data[at] & 0x7F) + 1 > 8
    return False


def load_pixels(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The image with its pixels; `read_deep` reads those of JPEG 2000 in deep colours. Other threads run meanwhile.

    Raises FormatError, and OSError for damaged data.
    """
    if image.format not in _HELD_BY_PIL:
        image.load()
        return image
    if image.format == "JPEG2000" and _deep_colour(image, data):
        return image
    of_mode = _SAMPLES.get(image.mode)
    if of_mode is None or _J2K_YCC.search(data):
        raise FormatError(f"{image.format} of mode {image.mode if of_mode is None else 'YCC'}")
    samples = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise OSError("damaged")
    bands, kind = of_mode
    shape = (*image.size[::-1], bands)[: 3 if bands > 1 else 2]
    if samples.shape != shape or samples.dtype != kind:
        raise FormatError(f"{image.format} whose samples are not of the mode {image.mode}")
    if bands > 1:  # from OpenCV's BGR
        cv2.cvtColor(samples, cv2.COLOR_BGR2RGB if bands == 3 else cv2.COLOR_BGRA2RGBA, dst=samples)
    return Image.fromarray(samples)


def read_deep(image: Image.Image, data: bytes) -> DeepSamples:
    """The samples of a loaded image for which `depth_name` has a name, turned as the loaded image is. Raises FormatError."""
    if "transparency" in image.info:
        raise FormatError("16 bits with a transparent colour")
    if image.mode not in _DEEP_GREY:
        return _read_colour(image, data)
    values = np.asarray(image)
    if image.format == "TIFF":
        tiff = _tiff_of(image)
        if tiff.photometric == _WHITE_IS_ZERO:
            values = np.uint16(2 ** tiff.bits[0] - 1) - values
        if tiff.kinds == (1,) and values.dtype == np.int32:
            values = values.view(np.uint32)
    return DeepSamples(values, None)


def mend_palette(image: Image.Image) -> None:
    """Some programs write the 16-bit colours of a TIFF's palette as bytes; PIL then shows black."""
    if image.format == "TIFF" and image.mode == "P":
        colours = np.array(image.tag_v2[320]).reshape(3, -1)  # type: ignore[attr-defined]
        if colours.max() < 256:
            image.putpalette(colours.T.astype(np.uint8).tobytes())


def _read_colour(image: Image.Image, data: bytes) -> DeepSamples:
    tiff = _tiff_of(image) if image.format == "TIFF" else None
    bands = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if bands is None or bands.dtype != np.uint16 or bands.ndim != 3 or bands.shape[1::-1] != image.size:
        raise FormatError(f"16-bit {image.format} of mode {image.mode}")
    colours = np.ascontiguousarray(bands[..., 2::-1])  # from OpenCV's BGR
    if bands.shape[2] == 3 or (tiff and not {1, 2} & set(tiff.extra)):  # a fourth band of no meaning, or infrared
        return DeepSamples(colours, None)
    alpha = (bands[..., 3] // 257).astype(np.uint8)
    if tiff and _PREMULTIPLIED in tiff.extra and alpha.min() < 255:
        raise FormatError("16 bits with premultiplied alpha")
    return DeepSamples(colours, alpha)


def _tiff_of(image: Image.Image) -> _Tiff:
    return _tiff(image.tag_v2)  # type: ignore[attr-defined]
