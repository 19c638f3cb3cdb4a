"""What was stated about a file, and by whom: a measured value rests on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Source = Literal["file", "product", "capture"]


@dataclass(frozen=True)
class Stated:
    """A condition with its value and who stated it: the file, the product's specification, or whoever sent the file."""

    name: str
    label: str
    value: float
    unit: str
    source: Source
