"""FLIR radiometric JPEG, through `flyr`, which computes temperatures from all that the camera wrote (extra `thermal`).

The file's frame is read here first: a hostile one must not keep a parser busy, or have it unpack what no camera makes.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from refdiff.model.decode_budget import BUDGET
from refdiff.model.errors import ImageError, UnavailableError, out_of_memory
from refdiff.model.images import F32, RgbImage
from refdiff.model.settings import ModelSettings

_KELVIN = 273.15
_MARK = b"FLIR\0"
_HEADER = 8  # bytes of a segment before its data: the mark, a byte, number and count of the segments
_MOST_RECORDS = 256
_RAW, _VISIBLE, _CAMERA = 1, 14, 32  # types of record
_SIDE_PX = 4096
# ours -> flyr's name, and what is added to get flyr's unit
_CONDITIONS = {
    "emissivity": ("emissivity", 0.0),
    "reflected_c": ("reflected_apparent_temperature", _KELVIN),
    "distance_m": ("object_distance", 0.0),
    "ambient_c": ("atmospheric_temperature", _KELVIN),
    "humidity": ("relative_humidity", 0.0),
}


@dataclass(frozen=True)
class FlirPicture:
    """celsius: (H, W). conditions: those of the file, by name. visible: (h, w, 3), the photo beside it."""

    celsius: F32
    conditions: Mapping[str, float]
    visible: RgbImage | None


def _segments(data: bytes) -> Iterator[bytes]:
    """The data of each FLIR segment of a JPEG file, in order."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA or length < 2:  # from here on, the picture itself
            return
        segment = data[at + 4 : at + 2 + length]
        if marker == 0xE1 and segment.startswith(_MARK):
            yield segment[_HEADER:]
        at += 2 + length


def is_radiometric(data: bytes) -> bool:
    """Whether a JPEG file holds a FLIR camera's raw data."""
    return next(_segments(data), None) is not None


def read(data: bytes, name: str, conditions: Mapping[str, float], settings: ModelSettings) -> FlirPicture:
    """The temperatures of a radiometric JPEG. conditions: used instead of the file's own.

    Raises ImageError (damaged, too large), UnavailableError without the extra, or without memory.
    """
    try:
        from flyr.flyr import parse_thermogram
        from flyr.records import parse_flir_records
    except ImportError as e:
        raise UnavailableError(
            "FLIR files need the package flyr, which is not installed: pip install 'refdiff[thermal]'"
        ) from e
    frame = b"".join(_segments(data))
    if int.from_bytes(frame[28:32], "big") > _MOST_RECORDS:
        raise ImageError(f"{name}: the FLIR data is damaged (too many records); take the picture again")
    try:
        records = parse_flir_records(io.BytesIO(frame))
        height, width = _checked_raw(frame, records[_RAW][2], name)
        known = {kind: place for kind, place in records.items() if kind in (_RAW, _CAMERA)}
        with BUDGET.take(height * width * 2, settings.max_pixels, name):
            thermogram = parse_thermogram(io.BytesIO(frame), known, io.BytesIO(data))
            of_file = {ours: float(thermogram.metadata[theirs]) - add for ours, (theirs, add) in _CONDITIONS.items()}
            adjusted = {_CONDITIONS[n][0]: v + _CONDITIONS[n][1] for n, v in conditions.items() if n in _CONDITIONS}
            with np.errstate(all="ignore"):
                celsius = thermogram.adjust_metadata(False, **adjusted).celsius.astype(np.float32)
    except ImageError:
        raise
    except Exception as e:  # flyr raises many types on damaged data
        if out_of_memory(e):
            raise UnavailableError(f"{name}: too little memory is free to read it; try again later") from e
        raise ImageError(f"{name}: the FLIR data is damaged ({type(e).__name__}); take the picture again") from e
    rounded = {n: float(f"{v:.4g}") for n, v in of_file.items()}
    return FlirPicture(celsius, rounded, _visible(frame, records, name, settings))


def _checked_raw(frame: bytes, at: int, name: str) -> tuple[int, int]:
    """(H, W) of the raw data. Raises ImageError for what no camera has, before it is unpacked."""
    width, height = (int.from_bytes(frame[at + i : at + i + 2], "little") for i in (2, 4))
    packed = frame[at + 32 :]
    if packed.startswith(b"\x89PNG"):
        width, height = (max(n, int.from_bytes(packed[i : i + 4], "big")) for n, i in ((width, 16), (height, 20)))
    if not (0 < width <= _SIDE_PX and 0 < height <= _SIDE_PX):
        raise ImageError(f"{name}: raw data of {width} x {height} px; thermal cameras have at most {_SIDE_PX} a side")
    return height, width


def _visible(
    frame: bytes, records: Mapping[int, tuple[int, int, int, int]], name: str, settings: ModelSettings
) -> RgbImage | None:
    """The photo that a camera adds, where it can be read: nothing depends on it."""
    if _VISIBLE not in records:
        return None
    _, _, at, length = records[_VISIBLE]
    with contextlib.suppress(Exception), Image.open(io.BytesIO(frame[at + 32 : at + 32 + length])) as image:
        if image.width * image.height <= settings.max_pixels // 4:
            with BUDGET.take(image.width * image.height, settings.max_pixels, name):
                return np.asarray(image.convert("RGB"), np.uint8)
    return None
