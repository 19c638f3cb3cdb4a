"""The files of an inspection, by the names that reports have for them."""

from __future__ import annotations

from pathlib import Path

from refdiff.agent.report.schema import Artefacts
from refdiff.memory.artefacts import inspection_folder

ARTEFACTS = {
    "overlay": "overlay.png",
    "heatmap": "heatmap.png",
    "side_by_side": "side_by_side.png",
    "html": "report.html",
    "markdown": "report.md",
    "report": "report.json",
    "query": "query.jpg",
    "reference": "reference.jpg",
    "anomaly": "anomaly.png",
}


def artefacts_of(inspection_id: str) -> Artefacts:
    """The files of an inspection, as a report names them: relative to the home folder, which may be moved or copied."""
    folder = inspection_folder(Path(), inspection_id)
    return Artefacts(**{name: (folder / file).as_posix() for name, file in ARTEFACTS.items()})
