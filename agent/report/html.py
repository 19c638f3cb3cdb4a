"""DefectReport and its pictures -> one self-contained HTML page: no script, no external resource, prints well.

Text is autoescaped, and a Content-Security-Policy forbids everything but inline style and data URIs, so nothing that a
user or a model wrote can run. Knows nothing about where pictures come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment

from refdiff.agent.report.markdown import environment
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.summary import when
from refdiff.model.images import data_url


@dataclass(frozen=True)
class PagePictures:
    """Encoded images (PNG, JPEG, WebP or GIF bytes) of a page; None where there is no such picture."""

    query: bytes
    overlay: bytes
    reference: bytes | None = None
    heatmap: bytes | None = None
    side_by_side: bytes | None = None
    crops: Mapping[str, tuple[bytes, bytes | None]] = field(default_factory=dict)  # finding id -> query, reference
    examples: Mapping[str, bytes] = field(default_factory=dict)  # finding id -> the named finding that it is like


def render_html(report: DefectReport, pictures: PagePictures) -> str:
    """The page as text (UTF-8 when written). Raises ValueError for bytes that no browser shows as an image."""
    anchors = {record.id: f"evidence-{i}" for i, record in enumerate(report.evidence, start=1)}
    crops = {
        finding: (data_url(query), data_url(reference) if reference else None)
        for finding, (query, reference) in pictures.crops.items()
    }
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            r=report,
            created=when(report.created_at),
            created_iso=report.created_at.isoformat(),
            anchors=anchors,
            query=data_url(pictures.query),
            overlay=data_url(pictures.overlay),
            reference=data_url(pictures.reference) if pictures.reference else None,
            heatmap=data_url(pictures.heatmap) if pictures.heatmap else None,
            side_by_side=data_url(pictures.side_by_side) if pictures.side_by_side else None,
            crops=crops,
            examples={finding: data_url(picture) for finding, picture in pictures.examples.items()},
        )
    )


@cache
def _environment() -> Environment:
    return environment(autoescape=True)
