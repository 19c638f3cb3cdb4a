"""A filed report as a chat answer says it, for any platform."""

from __future__ import annotations

from dataclasses import dataclass

from refdiff.agent.report import pictures
from refdiff.agent.report.markdown import finding_line
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.service import InspectionService
from refdiff.memory.records.dispositions import Disposition
from refdiff.model.images import decode_image
from refdiff.tools.evidence import ScoreEvidence

MAX_FINDINGS = 8  # shown; the page has them all
MAX_CROPS = 4
_PICTURE_PX = 1600


@dataclass(frozen=True)
class Told:
    """findings: one line each. decided: what a person decided, "" while nobody has. page: address of the review page."""

    inspection_id: str
    verdict: str
    part_id: str
    product: str
    reason: str
    findings: list[str]
    reasoning: str
    judge: str
    decided: str
    page: str | None

    @property
    def title(self) -> str:
        return f"{self.verdict}: part {self.part_id} ({self.product})"


def tell(report: DefectReport, decided: Disposition | None, public_url: str | None) -> Told:
    lines = [f"{f.id} {finding_line(f)}" for f in report.findings[:MAX_FINDINGS]]
    if (more := len(report.findings) - MAX_FINDINGS) > 0:
        lines.append(f"and {more} more")
    judge = f"{report.judge.model}, {report.judge.via}" if report.judge.model else "script, no language model"
    return Told(
        inspection_id=report.inspection_id,
        verdict=report.verdict.value,
        part_id=report.part_id,
        product=report.product,
        reason=report.verdict_reason,
        findings=lines,
        reasoning=report.reasoning,
        judge=judge,
        decided=f"{decided.decision} by {decided.by}: {decided.reason}" if decided else "",
        page=f"{public_url.rstrip('/')}/#/inspections/{report.inspection_id}" if public_url else None,
    )


def overlay(service: InspectionService, inspection_id: str) -> bytes:
    """The photo with its findings drawn in, PNG or JPEG."""
    return pictures.page_image(decode_image(service.artefact(inspection_id, "overlay").read_bytes()), _PICTURE_PX)


def crops(service: InspectionService, inspection_id: str) -> list[tuple[str, bytes]]:
    """The strongest findings enlarged, photo beside registered reference: (title, PNG or JPEG) each."""
    report = service.report(inspection_id)
    shown = _compared(report)
    if shown is None:
        return []
    query = service.workspace.image(shown["query"], report.product)
    reference = service.workspace.image(shown["reference"], report.product)
    made = []
    for f in report.findings[:MAX_CROPS]:
        at = f.location
        pair = pictures.crops(query, reference, (at.x0, at.y0, at.x1, at.y1))
        assert pair.reference is not None
        picture = pictures.side_by_side(pair.reference, pair.query, ("Reference", f"{f.id} {f.type.replace('_', ' ')}"))
        made.append((f"{f.id} {f.type.replace('_', ' ')}", pictures.page_image(picture)))
    return made


def _compared(report: DefectReport) -> dict[str, str] | None:
    """The pictures of the comparison that the verdict rests on."""
    scores = [e for e in report.evidence if isinstance(e, ScoreEvidence) and {"query", "reference"} <= set(e.images)]
    canonical = [e for e in scores if e.numbers.canonical]
    return (canonical or scores)[0].images if scores else None
