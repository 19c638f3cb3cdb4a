"""Thermal files to temperatures: FLIR radiometric JPEG, radiometric TIFF and CSV, with the conditions they rest on.

Knows nothing about products. A scale is never guessed: a 16-bit TIFF has 0.01, 0.04 or 0.4 K a count, by camera and mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from refdiff.model.decode_budget import BUDGET
from refdiff.model.errors import ImageError, InputError
from refdiff.model.images import F32, MAX_ASPECT, MIN_SIDE_PX, RgbImage, check_bytes, deep_values
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal import flir
from refdiff.model.thermal.conditions import Source, split_conditions

SUFFIXES = frozenset((".csv",))  # besides those of images
MAX_SIDE_PX = 4096  # no camera has more, and an anomaly map is no finer either
KELVIN_0 = -273.15  # °C
_POSSIBLE_C = (-150.0, 3000.0)  # what nearly all pixels of a picture must lie in
_TIFF, _PNG, _JPEG = (b"II*\0", b"MM\0*"), b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
_DJI = (b"DJI", b"drone-dji")
_HEADER_LINES = 64  # of a CSV file, before its numbers
_UNSTATED = (
    "{name}: holds numbers, and nothing says how many kelvins each is; state it in the specification of the product, under "
    "`thermal`: `gain: 0.01` (0.04, 0.4, as the camera's manual says; K from absolute zero), or `gain: 1` and `offset_c: 0` "
    "for °C"
)


@dataclass(frozen=True)
class Thermogram:
    """Temperatures as a file has them."""

    celsius: F32  # (H, W), NaN where nothing was measured
    conditions: Mapping[str, tuple[float, Source]] = field(default_factory=dict)  # by name, with who stated them
    notes: tuple[str, ...] = ()
    visible: RgbImage | None = None


@dataclass(frozen=True)
class ReadingRules:
    """What is stated of files whose format does not say it. gain: K a count; offset_c: °C at count 0.

    conditions: by name, of the product; for files that can be computed again they replace the file's own.
    """

    gain: float | None = None
    offset_c: float = KELVIN_0
    conditions: Mapping[str, float] = field(default_factory=dict)


def read_thermogram(data: bytes, *, name: str, rules: ReadingRules, settings: ModelSettings) -> Thermogram:
    """The temperatures in a file, which may be preceded by conditions (see `with_conditions`).

    Raises ImageError: no temperatures in it, a scale that nobody stated, impossible temperatures, damaged, too large;
    BusyError, UnavailableError: try again.
    """
    try:
        data, with_file = split_conditions(data)
    except InputError as e:
        raise ImageError(f"{name}: {e}") from e
    if not data:
        raise ImageError(f"{name}: the file is empty; take the picture again")
    check_bytes(len(data), name, settings)
    stated: dict[str, tuple[float, Source]] = {n: (v, "product") for n, v in rules.conditions.items()}
    stated |= {n: (v, "capture") for n, v in with_file.items()}
    if data.startswith(_JPEG):
        if not flir.is_radiometric(data):
            raise ImageError(f"{name}: {_no_temperatures(data)}")
        found = flir.read(data, name, {n: v for n, (v, _) in stated.items()}, settings)
        of_file: dict[str, tuple[float, Source]] = {n: (v, "file") for n, v in found.conditions.items()}
        celsius, visible, conditions = found.celsius, found.visible, of_file | stated
    else:
        counts = _counts(data, name, settings)
        if rules.gain is None:
            raise ImageError(_UNSTATED.format(name=name))
        celsius = (counts * np.float64(rules.gain) + rules.offset_c).astype(np.float32)
        visible, conditions = None, stated
    celsius = _checked(celsius, name)
    return Thermogram(celsius, conditions, tuple(_notes(conditions)), visible)


def _notes(conditions: Mapping[str, tuple[float, Source]]) -> list[str]:
    if "emissivity" in conditions:
        return []
    return [
        "the emissivity is not known: the file does not say it, nor does the specification (`thermal: emissivity`); "
        "temperatures are those that the camera exported"
    ]


def _no_temperatures(data: bytes) -> str:
    if any(word in data[: 1 << 16] for word in _DJI):
        return (
            "a DJI picture, whose temperatures cannot be read here; export it as a temperature TIFF first (dji-thermal-cli "
            "does), and state `thermal: {gain: 1, offset_c: 0}`"
        )
    return (
        "a picture without temperatures (a photo, or a thermal picture saved as colours); send the camera's radiometric "
        "JPEG (FLIR), TIFF or CSV, or enrol photos as a product of their own"
    )


def _counts(data: bytes, name: str, settings: ModelSettings) -> NDArray[np.float64]:
    if data.startswith(_TIFF) or data.startswith(_PNG):
        values = deep_values(data, name=name, settings=settings)
        if values is None:
            raise ImageError(f"{name}: {_no_temperatures(b'')}")
        return values.astype(np.float64)
    return _table(data, name, settings)


def _table(data: bytes, name: str, settings: ModelSettings) -> NDArray[np.float64]:
    """The numbers of a CSV file: one row a line, `,`, `;` or tab between them, lines of text only before the first."""
    if b"\0" in data[:4096]:
        raise ImageError(
            f"{name}: not a thermal file that can be read (FLIR radiometric JPEG, radiometric TIFF or 16-bit PNG, CSV are); "
            "export one of these from the camera's program"
        )
    rows: list[list[float]] = []
    width = total = 0
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), start=1):
        if not line.strip():
            continue
        between = next((d for d in (";", "\t") if d in line), ",")
        cells = line.replace(",", ".").split(between) if between != "," else line.split(",")
        if not cells[-1].strip():
            cells.pop()  # a delimiter at the end of each line
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            if not rows and number <= _HEADER_LINES:
                continue
            raise ImageError(
                f"{name}: line {number} holds something that is no number; a CSV file is one row of temperatures a line"
            ) from None
        if len(row) < 2 and not rows:
            continue
        if rows and len(row) != width:
            raise ImageError(f"{name}: line {number} has {len(row)} numbers, those before it have {width}")
        width, total = len(row), total + len(row)
        if total > settings.max_pixels:
            raise ImageError(f"{name}: more than {settings.max_pixels:,} numbers; export one picture")
        rows.append(row)
    if not rows:
        raise ImageError(f"{name}: not a thermal file that can be read: it holds no table of numbers, nor temperatures")
    with BUDGET.take(total, settings.max_pixels, name):
        return np.array(rows, np.float64)


def _checked(celsius: F32, name: str) -> F32:
    if celsius.ndim != 2:
        raise ImageError(f"{name}: several bands; temperatures are one band")
    height, width = celsius.shape
    if min(height, width) < MIN_SIDE_PX or max(height, width) > min(MAX_SIDE_PX, MAX_ASPECT * min(height, width)):
        raise ImageError(
            f"{name}: {width} x {height} px; a thermal picture has {MIN_SIDE_PX} to {MAX_SIDE_PX:,} px a side, one side at "
            f"most {MAX_ASPECT} times the other"
        )
    known = celsius[np.isfinite(celsius)]
    if known.size < celsius.size / 2:
        raise ImageError(f"{name}: fewer than half of its pixels hold a temperature; take the picture again")
    low, high = (float(v) for v in np.percentile(known, (1, 99)))
    if not (_POSSIBLE_C[0] <= low and high <= _POSSIBLE_C[1]) or not math.isfinite(low + high):
        raise ImageError(
            f"{name}: temperatures from {low:.4g} to {high:.4g} °C; is the scale right that the product states (`thermal: "
            "gain`, `offset_c`)?"
        )
    # a file may mark pixels without a value by a number that no temperature is; .01 K: what float32 rounds
    return np.ascontiguousarray(np.where(celsius > KELVIN_0 + 0.01, celsius, np.nan), np.float32)
