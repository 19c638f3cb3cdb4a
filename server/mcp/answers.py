"""What the MCP tools answer: typed data beside pictures, small enough for a model to read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.report.summary import decision_text, size, summarise
from refdiff.agent.service import Inspection
from refdiff.memory.kinds import Verdict
from refdiff.memory.records.inspections import InspectionSummary
from refdiff.tools.evidence import Evidence


class FoundPlace(BaseModel):
    """One finding. box: x0, y0, x1, y1 in px of the photo, exclusive end. confidence: 0..1."""

    id: str
    type: str
    name: str | None = Field(default=None, description="what people call defects like it")
    description: str
    box: tuple[int, int, int, int]
    place: str
    size: str
    length_mm: float | None
    width_mm: float | None
    severity: str
    within_limits: bool
    confidence: float
    evidence: list[str]

    @classmethod
    def of(cls, f: Finding) -> FoundPlace:
        at = f.location
        return cls(
            id=f.id, type=f.type, name=f.named.name if f.named else None, description=f.description,
            box=(at.x0, at.y0, at.x1, at.y1), place=at.region, size=size(f), length_mm=f.length_mm,
            width_mm=f.width_mm, severity=str(f.severity),
            within_limits=f.within_limits, confidence=f.confidence, evidence=f.evidence,
        )  # fmt: skip


class InspectionAnswer(BaseModel):
    """An inspection as it stands. verdict: None while it is not filed."""

    inspection_id: str
    state: Literal["queued", "running", "done", "failed"]
    part_id: str
    product: str | None
    verdict: Verdict | None = None
    verdict_reason: str | None = None
    image_score: float | None = None
    p_value: float | None = Field(
        default=None, description="share of good parts that differ at least as much; null if not calibrated"
    )
    threshold: float | None = None
    golden_id: str | None = None
    findings: list[FoundPlace] = []
    reasoning: str | None = None
    judge: str | None = Field(default=None, description="endpoint, embedded, or fallback: the script ran the tools")
    decided: str | None = Field(default=None, description="what a person decided about the verdict, if anyone did")
    error: str | None = None
    page: str | None = Field(default=None, description="address of the report for people, if the server knows its own")

    @classmethod
    def of(cls, inspection: Inspection) -> InspectionAnswer:
        answer = cls(
            inspection_id=inspection.inspection_id, state=inspection.state, part_id=inspection.part_id,
            product=inspection.product, error=(inspection.error or {}).get("message"),
        )  # fmt: skip
        report, decided = inspection.report, inspection.disposition
        if report is None:
            return answer
        return answer.model_copy(update=_filed(report) | {"decided": decision_text(decided) if decided else None})


def inspection_text(inspection: Inspection) -> str:
    """An inspection for a model that reads only text."""
    report, decided = inspection.report, inspection.disposition
    if report is None:
        error = (inspection.error or {}).get("message", "")
        return (
            f"Inspection {inspection.inspection_id} of part {inspection.part_id} is {inspection.state}. {error}".strip()
        )
    summary = summarise(report, decided, most=len(report.findings))
    found = "".join(f"\n- {line}" for line in summary.findings)
    end = f"\nDecided: {summary.decided}" if summary.decided else ""
    return f"{summary.title}. {summary.reason}.{found}{end}"


def _filed(report: DefectReport) -> dict[str, Any]:
    return {
        "verdict": report.verdict.value, "verdict_reason": report.verdict_reason, "image_score": report.image_score,
        "p_value": report.p_value, "threshold": report.threshold, "golden_id": report.reference.golden_id,
        "findings": [FoundPlace.of(f) for f in report.findings], "reasoning": report.reasoning, "judge": report.judge.via,
    }  # fmt: skip


class Row(BaseModel):
    """A filed inspection in a list."""

    inspection_id: str
    part_id: str
    product: str
    verdict: Verdict
    created_at: str
    verdict_reason: str
    decided: bool

    @classmethod
    def of(cls, s: InspectionSummary) -> Row:
        return cls(
            inspection_id=s.inspection_id, part_id=s.part_id, product=s.product, verdict=s.verdict,
            created_at=s.created_at, verdict_reason=s.verdict_reason, decided=s.decision is not None,
        )  # fmt: skip


class Rows(BaseModel):
    inspections: list[Row]


class ProductAnswer(BaseModel):
    """A product. goldens: number by status. calibration: what its good samples promise, None before the first."""

    name: str
    goldens: dict[str, int]
    scale_mm_per_px: float | None
    spec: dict[str, Any]
    calibration: dict[str, Any] | None


class Products(BaseModel):
    products: list[str]


class CaptureAnswer(BaseModel):
    capture_id: str
    part_id: str
    product: str
    scale_mm_per_px: float | None


class Said(BaseModel):
    answer: str


class StepAnswer(BaseModel):
    """What one tool measured. bench: pass it to the next tool. evidence: e1, e2, ... of this bench, with all numbers."""

    bench: str
    result: dict[str, Any]
    evidence: Evidence
