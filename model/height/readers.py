"""Height maps from files: organised xyz TIFF, float or 16-bit TIFF, and 16-bit PNG.

Knows nothing about products. Nothing is guessed: neither how many mm a unit is, nor whether a larger number is nearer to
the sensor.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from refdiff.model.decode_budget import BUDGET
from refdiff.model.errors import ImageError, UnavailableError, out_of_memory
from refdiff.model.images import F32, MAX_ASPECT, MIN_SIDE_PX, check_bytes, deep_values
from refdiff.model.settings import ModelSettings

MAX_SIDE_PX = 4096  # an anomaly map is no finer
_LEAST_KNOWN = 0.02  # part of the pixels that must have a height
_TIFF, _PNG, _JPEG = (b"II*\0", b"MM\0*"), b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_WIDTH, _HEIGHT, _BANDS, _BITS, _SAMPLE_KIND = 256, 257, 277, 258, 339  # TIFF tags
_FLOAT = 3
_MOST_MM = 1e6
_UNSTATED = (
    "{name}: holds numbers, and nothing says what {what}; state it in the specification of the product, under `depth`: "
    "`unit_mm: 1` (mm of one unit: 1000 for metres, 0.01 for hundredths of a mm) and `values: distance` (from the sensor) "
    "or `values: height` (above something)"
)

Direction = Literal["distance", "height"]


@dataclass(frozen=True)
class HeightRules:
    """What is stated of files. unit_mm: mm of one unit of the file; offset_mm: at 0 of it.

    values: "distance" grows away from the sensor, "height" towards it. hole: the number that marks a px without a
    measurement, besides NaN; None: no number does.
    """

    unit_mm: float | None = None
    offset_mm: float = 0.0
    values: Direction | None = None
    hole: float | None = 0.0


@dataclass(frozen=True)
class HeightMap:
    """Heights as a file has them."""

    mm: F32  # (H, W), larger is nearer to the sensor; NaN in holes
    mm_per_px: float | None  # in the plane, where the file says it


def read_height_map(data: bytes, *, name: str, rules: HeightRules, settings: ModelSettings) -> HeightMap:
    """The heights in a file.

    Raises ImageError: no height map, something that nobody stated, damaged, too large; BusyError, UnavailableError: try
    again.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty; measure the part again")
    check_bytes(len(data), name, settings)
    bands = _float_bands(data, name, settings) if data.startswith(_TIFF) else None
    if bands is not None:
        units, hole = _xyz(bands, rules)
    else:
        units = _one_band(data, name, settings)
        hole = ~np.isfinite(units) | (np.zeros(units.shape, bool) if rules.hole is None else units == rules.hole)
    if rules.unit_mm is None:
        raise ImageError(_UNSTATED.format(name=name, what="a unit is"))
    if rules.values is None:
        raise ImageError(_UNSTATED.format(name=name, what="a larger number means"))
    mm = units * rules.unit_mm + rules.offset_mm
    mm[hole] = np.nan
    pitch = None if bands is None else _pitch(bands, hole, rules.unit_mm)
    return HeightMap(_checked(-mm if rules.values == "distance" else mm, name, settings), pitch)


def _float_bands(data: bytes, name: str, settings: ModelSettings) -> NDArray[np.float64] | None:
    """(H, W, 3) x, y, z of an organised TIFF; None for a TIFF of another kind."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags, file = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
        width, height = (int(_first(tags[tag])) for tag in (_WIDTH, _HEIGHT))
        bands = int(_first(tags.get(_BANDS, 1)))
        deep = int(_first(tags.get(_BITS, 1))) >= 32 and int(_first(tags.get(_SAMPLE_KIND, 1))) == _FLOAT
    except Exception as e:  # what is damaged raises many types
        raise ImageError(f"{name}: the TIFF is damaged ({type(e).__name__}); export it again") from e
    if bands == 1 or not deep:
        return None
    if bands != 3:
        raise ImageError(f"{name}: a TIFF of {bands} float bands; an organised cloud has three: x, y and z")
    _check_size(width, height, name, settings)
    with BUDGET.take(6 * width * height, settings.max_pixels, name):
        try:
            read = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as e:
            if out_of_memory(e):
                raise UnavailableError(f"{name}: too little memory is free to read it; try again later") from e
            read = None
        if read is None or read.shape != (height, width, 3) or read.dtype not in (np.float32, np.float64):
            raise ImageError(
                f"{name}: the TIFF is damaged, or packed in a way that cannot be read; save it uncompressed"
            )
        return np.asarray(read[..., ::-1], np.float64)  # from OpenCV's BGR


def _first(value: object) -> float:
    return float(value[0] if isinstance(value, tuple) else value)  # type: ignore[arg-type]


def _xyz(bands: NDArray[np.float64], rules: HeightRules) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """z, and where nothing was measured: a coordinate is no number, or all three are 0."""
    hole = ~np.isfinite(bands).all(2) | (bands == 0).all(2)
    z = bands[..., 2].copy()
    if rules.hole is not None:
        hole |= z == rules.hole
    return z, hole


def _one_band(data: bytes, name: str, settings: ModelSettings) -> NDArray[np.float64]:
    if data.startswith((*_TIFF, _PNG)):
        values = deep_values(data, name=name, settings=settings)
        if values is not None:
            return values.astype(np.float64)
    if data.startswith((*_TIFF, _PNG, _JPEG)):
        raise ImageError(
            f"{name}: a picture of colours or 8-bit greys, not a height map; send what the sensor measured (organised xyz "
            "TIFF, 16-bit or float TIFF, 16-bit PNG), or enrol photos as a product of their own"
        )
    raise ImageError(
        f"{name}: not a height map that can be read (organised xyz TIFF, 16-bit or float TIFF and 16-bit PNG are)"
    )


def _check_size(width: int, height: int, name: str, settings: ModelSettings) -> None:
    if width * height > settings.max_pixels:
        raise ImageError(f"{name}: {width} x {height} px is over the limit of {settings.max_pixels:,} pixels")
    if min(width, height) < MIN_SIDE_PX or max(width, height) > min(MAX_SIDE_PX, MAX_ASPECT * min(width, height)):
        raise ImageError(
            f"{name}: {width} x {height} px; a height map has {MIN_SIDE_PX} to {MAX_SIDE_PX:,} px a side, one side at most "
            f"{MAX_ASPECT} times the other"
        )


def _checked(mm: NDArray[np.float64], name: str, settings: ModelSettings) -> F32:
    if mm.ndim != 2:
        raise ImageError(f"{name}: several bands; a height map has one, an organised cloud three of floats")
    _check_size(mm.shape[1], mm.shape[0], name, settings)
    known = np.isfinite(mm)
    if known.mean() < _LEAST_KNOWN:
        raise ImageError(f"{name}: only {100 * known.mean():.1f} % of its pixels have a height; measure the part again")
    if float(np.abs(mm[known]).max()) > _MOST_MM:
        raise ImageError(
            f"{name}: heights of more than a kilometre; is the unit right that the product states (`unit_mm`)?"
        )
    return np.ascontiguousarray(mm, np.float32)


def _pitch(bands: NDArray[np.float64], hole: NDArray[np.bool_], unit_mm: float) -> float | None:
    """mm per px in the plane: the median distance of neighbours in x and y; None where too few have neighbours."""
    steps = []
    for axis in (0, 1):
        both = ~hole[1:] & ~hole[:-1] if axis == 0 else ~hole[:, 1:] & ~hole[:, :-1]
        apart = np.diff(bands[..., :2], axis=axis)[both]
        if len(apart) >= 100:
            steps.append(float(np.median(np.hypot(apart[:, 0], apart[:, 1]))))
    found = float(np.sqrt(np.prod(steps))) * unit_mm if len(steps) == 2 else 0.0
    return found if found > 0 else None
