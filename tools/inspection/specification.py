"""Product specification (`refdiff product set P --spec FILE.yaml`): scale, zones, limits by type and size, fineness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from refdiff.model.defect_types import DefectType, MeasuredType
from refdiff.model.errors import SpecError
from refdiff.tools.kinds.cloud import CloudRules
from refdiff.tools.kinds.depth import DepthRules
from refdiff.tools.kinds.thermal import ThermalRules

MAX_BYTES = 1_000_000

SpecSeverity = Literal["minor", "major", "critical"]
# beyond any image, and small enough to be drawn in fixed point
_FAR = 100_000
Pixel = Annotated[float, Field(ge=-_FAR, le=_FAR)]

EXAMPLE = """\
scale_mm_per_px: 0.05          # of the golden samples; leave out if unknown
frame: g-0123456789ab          # golden whose pixels the zones are drawn in (default: the first one enrolled)
max_turn_deg: 10               # a part turned further is reviewed; leave out if it may lie any way round
smallest_defect_mm: 0.5        # photos are compared as finely as this needs; or smallest_defect_px, px of the golden samples
zones:
  - name: bore
    kind: critical             # any finding here fails the part
    box: [120, 80, 260, 220]   # x0, y0, x1, y1 px, exclusive end
  - name: label
    kind: ignore               # never looked at
    polygon: [[10, 10], [90, 10], [90, 60]]
limits:                        # the first limit that fits a finding's type and size decides
  - type: any                  # a defect type or "any"
    max_length_mm: 0.5
    severity: minor            # within the limit: filed, not failed
  - type: any
    severity: major            # no maximum: everything else fails
    reject: true
"""


def _is_none(value: object) -> bool:
    return value is None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Zone(_Model):
    """A region in px of the zone golden, the one that `ProductSpec.frame` names."""

    name: str = Field(min_length=1, max_length=64)
    kind: Literal["ignore", "critical", "named"]  # named: a place that limits may be about
    box: tuple[Pixel, Pixel, Pixel, Pixel] | None = None
    polygon: list[tuple[Pixel, Pixel]] | None = Field(default=None, min_length=3, max_length=200)

    @model_validator(mode="after")
    def _one_shape(self) -> Self:
        if (self.box is None) == (self.polygon is None):
            raise ValueError(f"zone {self.name!r}: give either box or polygon")
        if self.box is not None and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"zone {self.name!r}: box is x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return self

    def points(self) -> NDArray[np.float64]:
        """(n, 2) corner points x, y in px of the zone golden."""
        if self.polygon is not None:
            return np.array(self.polygon, np.float64)
        assert self.box is not None
        x0, y0, x1, y1 = self.box
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float64)


class Limit(_Model):
    """Acceptable size of a defect type. The limit applies if every stated maximum holds."""

    type: DefectType | MeasuredType | Literal["any"] = "any"
    max_length_mm: float | None = Field(default=None, gt=0)
    max_width_mm: float | None = Field(default=None, gt=0)
    max_length_px: float | None = Field(default=None, gt=0)
    max_area_px: float | None = Field(default=None, gt=0)
    # of thermal products: difference from the golden sample, hotter or colder, and hottest temperature
    max_delta_k: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    max_temperature_c: float | None = Field(default=None, exclude_if=_is_none)
    # of depth and cloud products: distance from the golden sample's surface, either way, and what is added or missing
    max_deviation_mm: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    max_volume_mm3: float | None = Field(default=None, gt=0, exclude_if=_is_none)
    zone: str | None = Field(
        default=None, max_length=64, exclude_if=_is_none
    )  # only for findings in the zone of that name
    severity: SpecSeverity
    reject: bool = False

    @property
    def of_height(self) -> bool:
        """Whether it is about how far a surface is off."""
        return self.max_deviation_mm is not None or self.max_volume_mm3 is not None

    @property
    def of_kinds(self) -> list[str]:
        """What is set that only a product of another kind than photo has."""
        names = ("max_delta_k", "max_temperature_c", "max_deviation_mm", "max_volume_mm3")
        return [name for name in names if getattr(self, name) is not None]


class ProductSpec(_Model):
    scale_mm_per_px: float | None = Field(default=None, gt=0)
    frame: str | None = Field(default=None, pattern=r"^g-[0-9a-f]{12}$")
    max_turn_deg: float | None = Field(default=None, ge=0, le=180)  # against the goldens, either way
    smallest_defect_mm: float | None = Field(default=None, gt=0, le=_FAR)  # what must be seen; one of the two
    smallest_defect_px: float | None = Field(default=None, ge=1, le=_FAR)  # px of the golden samples
    zones: list[Zone] = Field(default=[], max_length=64)
    limits: list[Limit] = Field(default=[], max_length=64)
    thermal: ThermalRules | None = Field(default=None, exclude_if=_is_none)  # of a thermal product
    depth: DepthRules | None = Field(default=None, exclude_if=_is_none)  # of a product of height maps
    cloud: CloudRules | None = Field(default=None, exclude_if=_is_none)  # of a product of point clouds

    @property
    def of_kinds(self) -> list[str]:
        """What is set that only a product of another kind than photo has."""
        sections = [name for name in ("thermal", "depth", "cloud") if getattr(self, name) is not None]
        return sections + sorted({name for limit in self.limits for name in limit.of_kinds})

    @model_validator(mode="after")
    def _zones_exist(self) -> Self:
        if unknown := {limit.zone for limit in self.limits} - {None, *(zone.name for zone in self.zones)}:
            raise ValueError(f"limits: there is no zone {sorted(map(str, unknown))[0]!r}; list it under zones")
        return self

    @model_validator(mode="after")
    def _one_smallest(self) -> Self:
        if self.smallest_defect_mm is not None and self.smallest_defect_px is not None:
            raise ValueError("give the smallest defect in mm or in px, not both")
        return self


def parse_spec(data: Any, name: str = "specification") -> ProductSpec:
    """Validate parsed YAML. Raises SpecError naming each wrong field."""
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise SpecError(f"{name}: expected a mapping, got {type(data).__name__}; an example:\n{EXAMPLE}")
    try:
        return ProductSpec.model_validate(data)
    except ValidationError as e:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'top'}: {p['msg']}" for p in e.errors())
        raise SpecError(f"{name}: {problems}") from e


def load_spec(path: Path) -> ProductSpec:
    """Read and validate a YAML file. Raises SpecError."""
    import yaml  # a device gets specifications as data

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SpecError(f"{path}: a specification has at most {MAX_BYTES:,} bytes; name the YAML file")
        text = data.decode("utf-8")
    except (OSError, ValueError) as e:  # ValueError: no UTF-8, or a path that no file can have
        raise SpecError(f"{path}: cannot be read as text ({e})") from e
    try:
        parsed = yaml.safe_load(text)
    except Exception as e:  # not YAMLError alone: impossible dates and numbers and deep nesting raise many types
        raise SpecError(f"{path}: not valid YAML: {e}") from e
    return parse_spec(parsed, str(path))


def zone_mask(zone: Zone, matrix: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool of a zone on a photo of `size` (H, W); matrix (3, 3): zone golden px -> photo px."""
    h, w = size
    points = np.clip(cv2.perspectiveTransform(zone.points()[None], matrix)[0], -_FAR, _FAR)
    # fillPoly draws the outline too, up to half a pixel too far. At twice the size that is nowhere the greater part of a
    # pixel, so a box [0, 10) covers the pixels 0..9.
    fine = np.zeros((2 * h, 2 * w), np.uint8)
    cv2.fillPoly(fine, [np.round((2 * points - 0.5) * 16).astype(np.int32)], 255, shift=4)
    return np.asarray(cv2.resize(fine, (w, h), interpolation=cv2.INTER_AREA) > 128)
