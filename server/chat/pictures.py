"""Pictures of a filed report for a chat."""

from __future__ import annotations

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.summary import called
from refdiff.agent.service import InspectionService
from refdiff.model.images import decode_image
from refdiff.tools.evidence import ScoreEvidence

MAX_CROPS = 4
_PICTURE_PX = 1600


def overlay(service: InspectionService, inspection_id: str) -> bytes:
    """The photo with its findings drawn in, PNG or JPEG."""
    return pictures.page_image(decode_image(service.artefact(inspection_id, "overlay").read_bytes()), _PICTURE_PX)


def crops(service: InspectionService, inspection_id: str) -> list[tuple[str, bytes]]:
    """The strongest findings enlarged, reference beside photo: (title, PNG or JPEG) each."""
    report, drawing = service.report(inspection_id), service.files.drawing(inspection_id)
    if drawing is None:  # of an earlier version
        if (shown := _compared(report)) is None:
            return []
        query, reference = (service.workspace.image(shown[role], report.product) for role in ("query", "reference"))
    else:
        query, reference = drawing.query, drawing.registered
    made = []
    for f in report.findings[:MAX_CROPS]:
        at = f.location
        pair = pictures.crops(query, reference, (at.x0, at.y0, at.x1, at.y1))
        title = f"{f.id} {called(f)}"
        picture = pictures.side_by_side(pair.reference, pair.query, title, registered=report.alignment.ok)
        made.append((title, pictures.page_image(picture)))
    return made


def _compared(report: DefectReport) -> dict[str, str] | None:
    """The pictures of the comparison that the verdict rests on."""
    scores = [e for e in report.evidence if isinstance(e, ScoreEvidence) and {"query", "reference"} <= set(e.images)]
    canonical = [e for e in scores if e.numbers.canonical]
    return (canonical or scores)[0].images if scores else None
