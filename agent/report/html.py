"""DefectReport and its pictures -> one self-contained HTML page: no script, no external resource, prints well.

Text is autoescaped and a Content-Security-Policy forbids everything but inline style and data URIs, so that nothing
that a user or a model wrote can run. Knows nothing about where pictures come from.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from refdiff.agent.report.markdown import FILTERS, when
from refdiff.agent.report.schema import DefectReport

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
)


@dataclass(frozen=True)
class PagePictures:
    """Encoded images (PNG, JPEG, WebP or GIF bytes) of a page; None where there is no such picture.

    crops: finding id -> (query crop, reference crop or None).
    """

    query: bytes
    overlay: bytes
    reference: bytes | None = None
    heatmap: bytes | None = None
    side_by_side: bytes | None = None
    crops: Mapping[str, tuple[bytes, bytes | None]] = field(default_factory=dict)


def render_html(report: DefectReport, pictures: PagePictures) -> str:
    """The page as text (UTF-8 when written). Raises ValueError for bytes that no browser shows as an image."""
    anchors = {record.id: f"evidence-{i}" for i, record in enumerate(report.evidence, start=1)}
    crops = {
        finding: (data_uri(query), data_uri(reference) if reference else None)
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
            query=data_uri(pictures.query),
            overlay=data_uri(pictures.overlay),
            reference=data_uri(pictures.reference) if pictures.reference else None,
            heatmap=data_uri(pictures.heatmap) if pictures.heatmap else None,
            side_by_side=data_uri(pictures.side_by_side) if pictures.side_by_side else None,
            crops=crops,
        )
    )


def data_uri(image: bytes) -> str:
    """`data:image/png;base64,...`, the type taken from the bytes. Raises ValueError for any other content."""
    kind = next((mime for start, mime in _SIGNATURES if image.startswith(start)), None)
    if kind is None and image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        kind = "image/webp"
    if kind is None:
        raise ValueError(f"picture starts with {image[:8]!r}: not PNG, JPEG, WebP or GIF; encode it first")
    return f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("refdiff.agent.report", "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment
