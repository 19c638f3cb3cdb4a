"""The defect report [contract]: what is filed, rendered and returned. Adding fields is fine, changing them is not.

Boxes are `x0, y0, x1, y1` in px of the submitted query image after EXIF rotation, at original resolution, exclusive end.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from refdiff.memory.kinds import ProductKind
from refdiff.tools.evidence import Evidence
from refdiff.tools.kinds.conditions import Stated
from refdiff.tools.kinds.reading import Quantity

SCHEMA_VERSION = "1.0"


class Verdict(StrEnum):
    PASS = "PASS"
    FAIL = "FAIL"
    REVIEW = "REVIEW"


class VerdictBasis(StrEnum):
    ANOMALY = "anomaly"
    LIMIT = "limit"
    LLM_DISAGREEMENT = "llm_disagreement"
    SYSTEM = "system"


class Severity(StrEnum):
    MINOR = "minor"
    MAJOR = "major"
    CRITICAL = "critical"
    UNRATED = "unrated"


def _nothing(value: object) -> bool:
    """Left out of the JSON: a report without it is what it ever was."""
    return not value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Location(_Model):
    """Box in query px (exclusive end) and its name on a 3 x 3 grid of the image, e.g. "upper left", "centre"."""

    x0: int
    y0: int
    x1: int
    y1: int
    region: str


class Cause(_Model):
    text: str
    basis: str


class SeenBefore(_Model):
    """On how many other parts of the product people confirmed a defect of this type in the last `days` days."""

    parts: int
    days: int
    place: str | None = None  # set where only the same place counts, because the type is unknown


class LikeFinding(_Model):
    """A finding that a person named."""

    inspection_id: str
    part_id: str
    finding: str  # its id, like "f2"
    confirmed_by: str
    confirmed_at: str  # ISO 8601, UTC
    picture: str | None = None  # sha256 in the image store


class NamedAs(_Model):
    """The customer's own name of a finding, which it takes from named findings of the product that it is near enough to.

    It decides nothing: limits and verdict go by `type`.
    """

    name: str
    evidence: str  # id of the record that it rests on
    like: LikeFinding  # the nearest finding of that name


class EdgeMove(_Model):
    """An edge of the golden sample that lies elsewhere in the photo, along its normal; for a fill level, the level.

    x_px: right, y_px: down, in the photo. Uncertainties are one standard deviation. mm: None where the scale is unknown.
    at_least: so far or further the same way, because it is hidden in the photo or in the golden sample.
    """

    distance_px: float
    x_px: float
    y_px: float
    uncertainty_px: float
    distance_mm: float | None = None
    uncertainty_mm: float | None = None
    at_least: bool = Field(default=False, exclude_if=_nothing)
    direction: str  # "lower", "higher", "further left", "further right", "lower and further left", ...
    evidence: str  # id of the record that measured it


class Expected(_Model):
    """What the golden sample has where something is missing. place: the expected place in the photo."""

    place: Location
    component: int | None = None  # number of the counted component that lies there
    name: str | None = None  # what people called it
    outlined: bool  # measured: the golden sample has an outline there that the photo does not show
    evidence: str


class Finding(_Model):
    id: str
    type: str
    named: NamedAs | None = None
    description: str
    location: Location
    area_px: int
    length_mm: float | None = None
    width_mm: float | None = None
    uncertainty_mm: float | None = None
    length_px: float | None = None
    width_px: float | None = None
    severity: Severity = Severity.UNRATED
    confidence: float = Field(ge=0, le=1)
    evidence: list[str] = Field(min_length=1)
    probable_cause: Cause | None = None
    reasoning: str
    within_limits: bool = False
    zone: str | None = None
    seen_before: SeenBefore | None = None
    reported_by: Literal["llm", "system"] = "system"
    moved: EdgeMove | None = Field(default=None, exclude_if=_nothing)  # only where it was measured
    expected: Expected | None = Field(default=None, exclude_if=_nothing)  # only of what is missing
    # what the product's kind measures besides; the first is what limits and summaries speak of
    quantities: list[Quantity] = Field(default=[], exclude_if=_nothing)
    found_in: list[str] = Field(default=[], exclude_if=_nothing)  # "height", "colour" or both, where both are compared


class ComponentCount(_Model):
    """How many of one component the photo shows. Components were found without labels: they have numbers."""

    number: int
    name: str | None = None  # what people called it when the part was inspected
    expected: int  # on every golden sample
    found: int
    seen: list[Location] = []  # several that touch are one place

    @property
    def wrong(self) -> bool:
        return self.found != self.expected


class Alpha(_Model):
    requested: float
    attained: float


class Reference(_Model):
    golden_id: str
    similarity: float
    sha256: str


class AlignmentSummary(_Model):
    method: str
    ok: bool
    residual_px: float | None
    overlap: float | None


class Scale(_Model):
    mm_per_px: float | None
    source: Literal["capture", "golden"] | None


class LlmReading(_Model):
    """What the model sees in the image pair."""

    defect: bool
    type: str
    confidence: float = Field(ge=0, le=1)
    counts: bool = True  # confident enough to turn the verdict into REVIEW where it contradicts the score


class Judge(_Model):
    model: str | None
    via: Literal["endpoint", "embedded", "fallback"]
    url: str | None
    reason: str | None = None


class ToolCall(_Model):
    step: int
    tool: str
    arguments: dict[str, Any]
    evidence: str | None
    ok: bool
    message: str


class Artefacts(_Model):
    """Paths of files that exist once the report is filed: filed relative to the home folder, answered as absolute paths."""

    overlay: str
    heatmap: str
    side_by_side: str
    html: str
    markdown: str | None = None
    report: str | None = None
    query: str | None = None
    reference: str | None = None
    anomaly: str | None = None


class Software(_Model):
    """What computed the report."""

    version: str
    weights_sha256: str  # one digest of everything that scores depend on
    weights: dict[str, str] = {}  # sha256 of each weight file; difference: "none" without a trained network
    # sha256 of the manifest of the export that a device decided by; only in reports of devices
    export: str | None = Field(default=None, exclude_if=lambda value: value is None)
    # that its networks compute in: float32 or int8; only in reports of devices
    number_format: str | None = Field(default=None, exclude_if=lambda value: value is None)


class Specification(_Model):
    """The product's specification that the part was judged by."""

    version: int  # how often it had been set; 0: never
    sha256: str  # of specification, scale, window and component names, as the audit records of their changes have it


class DefectReport(_Model):
    schema_version: str = SCHEMA_VERSION
    inspection_id: str
    part_id: str
    product: str
    requested_by: str
    created_at: datetime
    request: str = ""
    query_sha256: str = ""
    verdict: Verdict
    verdict_basis: VerdictBasis
    verdict_reason: str
    image_score: float
    p_value: float | None
    threshold: float | None
    alpha: Alpha
    n_calibration: int = 0
    reference: Reference
    references: list[Reference] = []
    alignment: AlignmentSummary
    scale: Scale
    findings: list[Finding]
    components: list[ComponentCount] = []
    llm_reading: LlmReading | None = None
    reasoning: str
    unsupported_claims_dropped: list[str]
    evidence: list[Evidence] = []
    judge: Judge
    tool_trace: list[ToolCall]
    timings_ms: dict[str, float]
    artefacts: Artefacts
    software: Software
    specification: Specification | None = None
    kind: ProductKind = Field(default="photo", exclude_if=lambda kind: kind == "photo")  # of the product
    unit: str = Field(default="", exclude_if=_nothing)  # of image_score, threshold and anomaly map
    conditions: list[Stated] = Field(
        default=[], exclude_if=_nothing
    )  # that measured values rest on, with who stated them
    notes: list[str] = Field(default=[], exclude_if=_nothing)  # what people must know of the comparison
