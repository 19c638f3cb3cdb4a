"""What a file is once its kind has read it, and what a reader is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

from propcache.api import cached_property

from refdiff.memory.kinds import ProductKind
from refdiff.memory.rows.products import Product
from refdiff.model.cloud.points import Cloud
from refdiff.model.errors import InputError
from refdiff.model.images import F32, RgbImage
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.palettes import Palette
from refdiff.tools.kinds.conditions import Stated
from refdiff.tools.vision.registration import Alignment

Window = tuple[float, float]  # (lo, hi) values shown as 0..255


@dataclass(frozen=True)
class How:
    """How the files of a product are read: what is read another way is another reading."""

    kind: ProductKind = "photo"
    window: Window | None = None  # None: of 8-bit photos, or not set yet
    rules: str = ""  # JSON: what the specification says about reading files of this kind
    anchor: str = ""  # sha256 of the golden sample in whose frame files are placed, of kinds that are placed when read
    in_colour: bool = False  # the picture of a height map is its colour photo, not its heights in grey

    @classmethod
    def of(cls, product: Product | None, kind: ProductKind | None = None) -> How:
        """As a product says; kind: of one that is new."""
        if product is None:
            return cls(kind or "photo")
        kind = kind or product.kind
        rules = product.spec.get(kind)
        return cls(kind, product.intensity_window, json.dumps(rules, sort_keys=True) if rules else "")


@dataclass(frozen=True)
class Pose:
    """How a file lies in the frame of another. matrix: the 16 numbers of a (4, 4) rigid, row by row; ok: whether it could be
    placed; fitted: part 0..1 of it that lies on the other, off_mm: its median distance there."""

    matrix: list[float]
    ok: bool
    fitted: float
    off_mm: float


@dataclass(frozen=True)
class Scan:
    """A free point cloud in its product's frame. placed: whether it could be placed there; fitted: part 0..1 of it that lies
    on the golden sample it was placed on, off_mm: its median distance there."""

    cloud: Cloud
    placed: bool
    fitted: float = 1.0
    off_mm: float = 0.0


@dataclass(frozen=True)
class Reading:
    """A file as its kind reads it."""

    picture: RgbImage  # (H, W, 3): what is shown, encoded and registered
    values: F32 | None = None  # (H, W) in the unit of the kind, NaN where nothing was measured; None: photos
    # (h, w, 3), a photo that the file carries besides; of a height map on its own px, and compared, too
    visible: RgbImage | None = None
    conditions: tuple[Stated, ...] = ()  # that the values rest on
    notes: tuple[str, ...] = ()  # what people must know of them, in words
    # of heights, the plane that was taken off: mm at px (0, 0), mm a px to the right and down
    level: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mm_per_px: float | None = None  # in the plane of the picture, where the file says it
    scan: Scan | None = None  # of a free point cloud

    def freeze(self) -> Self:
        """Itself, its arrays made read-only: readings are shared."""
        for array in (self.picture, self.values, self.visible):
            if array is not None:
                array.flags.writeable = False
        return self

    @cached_property
    def nbytes(self) -> int:
        arrays = sum(a.nbytes for a in (self.picture, self.values, self.visible) if a is not None)
        return arrays + (self.scan.cloud.nbytes if self.scan else 0)


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
        """`+12.3 ± 0.8 K`, `-0.342 ± 0.021 mm`."""
        n = self.decimals
        tolerance = "" if self.uncertainty is None else f" ± {self.uncertainty:.{n}f}"
        sign = "+" if self.signed else ""
        return f"{self.value:{sign}.{n}f}{tolerance} {self.unit}".rstrip()

    @property
    def signed(self) -> bool:
        """Whether it is a difference, whose sign is always written."""
        return self.unit == "K" or "deviation" in self.name

    @property
    def decimals(self) -> int:
        """One of temperatures; of mm, two digits of the uncertainty, else three of the value."""
        if self.unit in ("K", "°C"):
            return 1
        digits, of = (2, abs(self.uncertainty)) if self.uncertainty else (3, abs(self.value))
        return 1 if of == 0 else min(4, max(0, digits - 1 - math.floor(math.log10(of))))


@dataclass(frozen=True)
class Look:
    """How values are shown to people: the same for every picture of a product."""

    span: tuple[float, float]  # lowest and highest of the colour bar
    unit: str
    palette: Palette


def no_colour(colour: bytes | None, kind: str) -> None:
    """Raises InputError where a colour photo came with a file of a kind that has none."""
    if colour is not None:
        raise InputError(f"a colour photo goes with a height map, and this product is one of {kind}; leave it out")


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

    def join(self, data: bytes, conditions: dict[str, float], colour: bytes | None = None) -> bytes:
        """The file with what was stated with it, and the colour photo that came with it. Raises InputError where the kind
        has no such thing."""
        ...


@runtime_checkable
class PlacingReader(Reader, Protocol):
    """Reads files that are registered in space when they are read; their pictures lie in one frame then."""

    def place(self, reading: Reading, anchor: Reading) -> Pose:
        """Where a reading lies in the frame of another one (`How.anchor`). Deterministic."""
        ...

    def placed(self, reading: Reading, pose: Pose, how: How) -> Reading:
        """A reading in that frame."""
        ...

    def alignment(self, query: Reading, golden: Reading) -> Alignment:
        """How two files that were placed lie on each other."""
        ...
