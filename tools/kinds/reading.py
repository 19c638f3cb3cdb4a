"""What a file is once its kind has read it, and what a reader is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Protocol, Self

from propcache.api import cached_property

from refdiff.memory.kinds import ProductKind
from refdiff.memory.rows.products import Product
from refdiff.model.images import F32, RgbImage
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.palettes import Palette
from refdiff.tools.kinds.conditions import Stated

Window = tuple[float, float]  # (lo, hi) values shown as 0..255


@dataclass(frozen=True)
class How:
    """How the files of a product are read: what is read another way is another reading."""

    kind: ProductKind = "photo"
    window: Window | None = None  # None: of 8-bit photos, or not set yet
    rules: str = ""  # JSON: what the specification says about reading files of this kind

    @classmethod
    def of(cls, product: Product | None, kind: ProductKind | None = None) -> How:
        """As a product says; kind: of one that is new."""
        if product is None:
            return cls(kind or "photo")
        kind = kind or product.kind
        rules = product.spec.get(kind)
        return cls(kind, product.intensity_window, json.dumps(rules, sort_keys=True) if rules else "")


@dataclass(frozen=True)
class Reading:
    """A file as its kind reads it."""

    picture: RgbImage  # (H, W, 3): what is shown, encoded and registered
    values: F32 | None = None  # (H, W) in the unit of the kind, NaN where nothing was measured; None: photos
    visible: RgbImage | None = None  # (h, w, 3), a photo that the file carries besides
    conditions: tuple[Stated, ...] = ()  # that the values rest on
    notes: tuple[str, ...] = ()  # what people must know of them, in words

    def freeze(self) -> Self:
        """Itself, its arrays made read-only: readings are shared."""
        for array in (self.picture, self.values, self.visible):
            if array is not None:
                array.flags.writeable = False
        return self

    @cached_property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.picture, self.values, self.visible) if a is not None)


@dataclass(frozen=True)
class Quantity:
    """What a kind measures of a finding. uncertainty: expanded (about 95 %), in the same unit; None: not stated."""

    name: str  # of the slot that prose may use: letters and _, ending in _k, _c, _mm, ...
    label: str  # "ΔT against the golden sample"
    value: float
    unit: str
    uncertainty: float | None = None

    @property
    def said(self) -> str:
        """`+12.3 ± 0.8 K`."""
        tolerance = "" if self.uncertainty is None else f" ± {self.uncertainty:.1f}"
        sign = "+" if self.unit == "K" else ""
        return f"{self.value:{sign}.1f}{tolerance} {self.unit}"


@dataclass(frozen=True)
class Look:
    """How values are shown to people: the same for every picture of a product."""

    span: tuple[float, float]  # lowest and highest of the colour bar
    unit: str
    palette: Palette


class Reader(Protocol):
    """Reads the files of one kind. Deterministic."""

    suffixes: frozenset[str]  # lower-case, of files that are tried in folders besides images

    def read(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
        """Raises ImageError (also for a file of another kind, and without a window where one is needed), BusyError,
        UnavailableError."""
        ...

    def suggest_window(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Window | None:
        """The window that the first golden sample of a product suggests; None where none is needed. Raises as `read`."""
        ...

    def look(self, how: How) -> Look | None:
        """How values are shown; None for pictures that show themselves."""
        ...

    def join(self, data: bytes, conditions: dict[str, float]) -> bytes:
        """The file with what was stated with it. Raises InputError where nothing of that can be stated."""
        ...
