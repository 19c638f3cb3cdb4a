"""What a temperature rests on besides the radiance: emissivity, reflected and ambient temperature, distance, humidity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from refdiff.model.errors import InputError

Source = Literal["file", "product", "capture"]


@dataclass(frozen=True)
class Condition:
    """A quantity that can be stated. low, high: what it may be; low itself may not."""

    label: str
    unit: str
    low: float
    high: float


CONDITIONS: Mapping[str, Condition] = {
    "emissivity": Condition("Emissivity", "", 0.0, 1.0),
    "reflected_c": Condition("Reflected temperature", "°C", -273.15, 3000.0),
    "distance_m": Condition("Distance", "m", 0.0, 100_000.0),
    "ambient_c": Condition("Ambient temperature", "°C", -273.15, 200.0),
    "humidity": Condition("Relative humidity", "", 0.0, 1.0),
}


def check_conditions(given: Mapping[str, float]) -> dict[str, float]:
    """The conditions as floats. Raises InputError for an unknown name or an impossible value."""
    checked = {}
    for name, value in given.items():
        known = CONDITIONS.get(name)
        if known is None:
            raise InputError(f"condition {name!r} is not known; conditions are {', '.join(CONDITIONS)}")
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not known.low < number <= known.high:
            limits = f"above {known.low:g} and at most {known.high:g}"
            raise InputError(f"{name} {value!r}: {known.label.lower()} is a number {limits} {known.unit}".rstrip())
        checked[name] = number
    return checked


# ---- conditions that came with a file, in front of its bytes: a file with other conditions is another one ----

_MARK = b"REFDIFF-CONDITIONS "
_MOST = 4096


def with_conditions(data: bytes, given: Mapping[str, float]) -> bytes:
    """A file and what was stated with it, as one; without anything stated, the file itself. Raises as `check_conditions`."""
    stated = check_conditions(given)
    if not stated:
        return data
    file, before = split_conditions(data)
    return _MARK + json.dumps(before | stated, sort_keys=True).encode() + b"\n" + file


def split_conditions(data: bytes) -> tuple[bytes, dict[str, float]]:
    """What `with_conditions` joined. Raises InputError for a head that it did not write."""
    if not data.startswith(_MARK):
        return data, {}
    head, found, _ = data[len(_MARK) : len(_MARK) + _MOST].partition(b"\n")
    try:
        given = json.loads(head)
    except ValueError:
        given = None
    if not found or not isinstance(given, dict):
        raise InputError("the conditions in front of the file cannot be read; send the file itself")
    return data[len(_MARK) + len(head) + 1 :], check_conditions(given)
