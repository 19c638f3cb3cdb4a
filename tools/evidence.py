"""Evidence: what a tool measured, in a form that a report can cite and a checkpoint can hold (ids, never pixels).

One record for each kind of tool. Written out, its numbers are flat: their names are those that slots such as {e3.length_mm}
use, {e4.r1_peak} for the peak of region r1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, model_serializer, model_validator

from refdiff.model.defect_types import UNKNOWN
from refdiff.model.errors import ToolOrderError, UnknownRecordError
from refdiff.model.images import Box

Slot = float | int | str | bool | None


class _Values(BaseModel):
    model_config = ConfigDict(extra="allow")  # an older report may hold more; it must still be shown whole


class _Evidence(BaseModel):
    """What all records have; id: "e1", "e2", ... in the order of filing, empty until the agent files it."""

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    kind: str
    arguments: _Values
    numbers: _Values
    images: dict[str, str] = Field(default={}, description="role -> sha256 in the image store")
    summary: str

    @property
    def slots(self) -> dict[str, Slot]:
        """All numbers, by the names that a report uses."""
        return self.numbers.model_dump()

    def region_of(self, slot: str) -> str | None:
        """The region that a slot is about, None for one about the photo or the record as a whole."""
        return None


class CaptureArguments(_Values):
    part_id: str
    capture_id: str
    product: str


class CaptureNumbers(_Values):
    width_px: int
    height_px: int
    scale_mm_per_px: float | None


class CaptureEvidence(_Evidence):
    """find_part: the photo. Images: query."""

    kind: Literal["capture"] = "capture"
    arguments: CaptureArguments
    numbers: CaptureNumbers


class ReferenceArguments(_Values):
    k: int
    product: str


class ReferenceNumbers(_Values):
    """Besides: golden_1, similarity_1, golden_2, ... of the goldens found, nearest first."""

    goldens_in_bank: int
    found: int


class ReferenceEvidence(_Evidence):
    """retrieve_reference: the nearest goldens. Images: golden_1, golden_2, ..."""

    kind: Literal["reference"] = "reference"
    arguments: ReferenceArguments
    numbers: ReferenceNumbers


class AlignmentArguments(_Values):
    golden_id: str


class AlignmentNumbers(_Values):
    ok: bool
    method: str
    residual_px: float | None
    overlap: float
    angle_deg: float
    scale: float


class AlignmentEvidence(_Evidence):
    """align: the registration of one golden. Images: golden."""

    kind: Literal["alignment"] = "alignment"
    arguments: AlignmentArguments
    numbers: AlignmentNumbers


class RegionEvidence(_Values):
    """A region of the anomaly map. x0, y0, x1, y1: its box, query px, exclusive end."""

    x0: int
    y0: int
    x1: int
    y1: int
    place: str
    area_px: int
    peak: float
    type: str = UNKNOWN

    @property
    def box(self) -> Box:
        return self.x0, self.y0, self.x1, self.y1


class ScoreArguments(_Values):
    golden_ids: list[str]


class ScoreNumbers(_Values):
    """Written out flat: `regions` is their number, and r1_x0, ..., r1_type, r2_x0, ... follow."""

    score: float
    p_value: float | None  # None: not calibrated, or other goldens than the nearest
    calibration_parts: int
    regions: list[RegionEvidence]  # r1, r2, ..., strongest first
    canonical: bool  # compared with the nearest goldens, as the verdict is

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, data: Any) -> Any:
        """From the flat form."""
        if not isinstance(data, dict) or not isinstance(data.get("regions"), int):
            return data
        found: list[dict[str, Slot]] = [{} for _ in range(data["regions"])]
        rest = {}
        for name, value in data.items():
            region, _, key = name.partition("_")
            index = int(region[1:]) - 1 if region[:1] == "r" and region[1:].isdecimal() else -1
            if 0 <= index < len(found):
                found[index][key] = value
            else:
                rest[name] = value
        return rest | {"regions": found}

    @model_serializer(mode="wrap")
    def _flat(self, plain: Any) -> dict[str, Slot]:
        values: dict[str, Slot] = plain(self)
        values["regions"] = len(self.regions)
        for number, region in enumerate(self.regions, start=1):
            values |= {f"r{number}_{name}": value for name, value in region.model_dump(exclude_unset=True).items()}
        return values


_FLAT = {"type": "object", "additionalProperties": {"type": ["number", "string", "boolean", "null"]}}


class ScoreEvidence(_Evidence):
    """score_difference: a comparison with goldens. Images: query, reference (the nearest golden on the photo's pixels)."""

    kind: Literal["score"] = "score"
    arguments: ScoreArguments
    numbers: Annotated[ScoreNumbers, WithJsonSchema(_FLAT)]

    def region(self, region: str) -> RegionEvidence | None:
        """The region of that id, None if there is none."""
        ids = [f"r{i + 1}" for i in range(len(self.numbers.regions))]
        return self.numbers.regions[ids.index(region)] if region in ids else None

    def region_of(self, slot: str) -> str | None:
        region = slot.partition("_")[0]
        return region if self.region(region) else None


class RegionArguments(_Values):
    """Which region, of which score's evidence."""

    region: str
    score: str


class ZoomNumbers(_Values):
    """x0, y0, x1, y1: the crop, query px, exclusive end. reference_covers: the reference reaches (nearly) all of it."""

    x0: int
    y0: int
    x1: int
    y1: int
    reference_covers: bool


class ZoomEvidence(_Evidence):
    """zoom: a closer look at a region. Images: query and, where there is one, reference."""

    kind: Literal["zoom"] = "zoom"
    arguments: RegionArguments
    numbers: ZoomNumbers


def _unless_known() -> Any:
    """Of a number that is written out only where it is known."""
    return Field(default=None, exclude_if=lambda value: value is None)


class MeasureNumbers(_Values):
    """The size of a region; mm: None where the scale is unknown. x0, y0, x1, y1: its box as reports have it, query px,
    exclusive end; place: of that box. What follows the method is of the golden sample and there only where it holds:

    moved_...: an edge of it lies so far away in the photo, along its normal (moved_x_px right, moved_y_px down), with one
    standard deviation; moved_at_least: so far or further, because one of the two is hidden. outline_...: how clear the
    outline of the finding is, grey levels a px, where the golden sample has one that the photo does not show. component,
    component_name: what of the counted components lies there.
    """

    length_px: float
    width_px: float
    uncertainty_px: float
    length_mm: float | None
    width_mm: float | None
    area_mm2: float | None
    uncertainty_mm: float | None
    x0: int
    y0: int
    x1: int
    y1: int
    area_px: int
    place: str
    method: str
    moved_px: float | None = _unless_known()
    moved_x_px: float | None = _unless_known()
    moved_y_px: float | None = _unless_known()
    moved_uncertainty_px: float | None = _unless_known()
    moved_mm: float | None = _unless_known()
    moved_uncertainty_mm: float | None = _unless_known()
    moved_direction: str | None = _unless_known()
    moved_at_least: bool | None = _unless_known()
    outline_golden: float | None = _unless_known()
    outline_photo: float | None = _unless_known()
    component: int | None = _unless_known()
    component_name: str | None = _unless_known()

    def with_more(self, quantities: Mapping[str, float]) -> Self:
        """The same with what the product's kind measures, by the names of its slots."""
        return self.model_validate(self.model_dump() | dict(quantities))


class MeasureEvidence(_Evidence):
    """measure: the size of a region."""

    kind: Literal["measure"] = "measure"
    arguments: RegionArguments
    numbers: MeasureNumbers

    @property
    def slots(self) -> dict[str, Slot]:
        """Without what people wrote, and without a bound, which would be read as a size."""
        bounds = {"moved_px", "moved_x_px", "moved_y_px", "moved_mm"} if self.numbers.moved_at_least else set()
        return {k: v for k, v in super().slots.items() if k not in bounds | {"component_name"}}


def moved_by(distance: str, direction: str, *, at_least: bool) -> str:
    """`14 px lower`, `at least 14 px (2.1 mm) lower`."""
    return f"{'at least ' * at_least}{distance} {direction}"


def finding_of(finding: str, part_id: str) -> str:
    """`finding 2 of part 4398`."""
    return f"finding {finding.removeprefix('f')} of part {part_id}"


class SimilarNumbers(_Values):
    """The named findings that a region is like. name: what it takes, None where none is near enough; what follows is of the
    nearest name, and part_id, ... confirmed_at of its nearest finding.

    strangeness: >= 0, against the limit that leave-one-out gives; precision: 0..1, that the names had there.
    """

    name: str | None
    nearest_name: str
    examples: int  # findings of that name
    part_id: str
    inspection_id: str
    finding: str
    confirmed_by: str
    confirmed_at: str
    distance: float
    strangeness: float
    limit: float
    precision: float
    not_compared: int = 0  # named findings of the product whose photos are gone


class SimilarEvidence(_Evidence):
    """similar_defects: which named findings a region is like. Images: example (the nearest of them)."""

    kind: Literal["similar"] = "similar"
    arguments: RegionArguments
    numbers: SimilarNumbers

    @property
    def slots(self) -> dict[str, Slot]:
        """Numbers alone: what people wrote is told where it is known to hold, in the finding's own name."""
        return {k: v for k, v in super().slots.items() if not isinstance(v, str)}


Evidence = Annotated[
    CaptureEvidence
    | ReferenceEvidence
    | AlignmentEvidence
    | ScoreEvidence
    | ZoomEvidence
    | MeasureEvidence
    | SimilarEvidence,
    Field(discriminator="kind"),
]
_RECORDS: TypeAdapter[list[Evidence]] = TypeAdapter(list[Evidence])
E_ = TypeVar("E_", bound=_Evidence)


def evidence_of(records: Iterable[Any]) -> list[Evidence]:
    """The evidence of a run's state, in the order of filing."""
    return _RECORDS.validate_python(list(records))


def latest(evidence: Sequence[Evidence], kind: type[E_], missing: str) -> E_:
    """The newest evidence of a kind. Raises ToolOrderError saying what to call first."""
    for record in reversed(evidence):
        if isinstance(record, kind):
            return record
    raise ToolOrderError(missing)


def scored_region(evidence: Sequence[Evidence], region: str) -> tuple[ScoreEvidence, RegionEvidence]:
    """The region of that id in the newest score. Raises ToolOrderError, UnknownRecordError."""
    scored = latest(evidence, ScoreEvidence, "no regions yet: call score_difference first")
    found = scored.region(region)
    if found is None:
        known = ", ".join(f"r{i + 1}" for i in range(len(scored.numbers.regions))) or "none"
        raise UnknownRecordError(f"no region {region!r} in {scored.id}; its regions are: {known}")
    return scored, found
