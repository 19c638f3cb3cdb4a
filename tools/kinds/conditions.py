"""What was stated about a file, and by whom: a measured value rests on it."""

from __future__ import annotations

from dataclasses import dataclass

from refdiff.model.errors import InputError
from refdiff.model.thermal.conditions import Source


@dataclass(frozen=True)
class Stated:
    """A condition with its value and who stated it: the file, the product's specification, or whoever sent the file."""

    name: str
    label: str
    value: float
    unit: str
    source: Source


def parse_conditions(text: str) -> dict[str, float]:
    """`emissivity=0.95, reflected_c=21` as conditions by name; "" has none. Raises InputError.

    Whether a kind has such a condition, its reader says.
    """
    found: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = (p.strip() for p in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            equals = ""
        if not (equals and name) or name in found:
            raise InputError(f"conditions {text[:80]!r}: write each once, as NAME=NUMBER, like emissivity=0.95")
        found[name] = number
    return found
