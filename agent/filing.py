"""File a report exactly once: pictures, JSON, Markdown and HTML on disk first, then one row in the store."""

from __future__ import annotations

from pathlib import Path

from refdiff.agent.context import AgentContext
from refdiff.agent.report import pictures
from refdiff.agent.report.html import PagePictures, render_html
from refdiff.agent.report.markdown import render_markdown
from refdiff.agent.report.schema import Artefacts, DefectReport
from refdiff.memory.artefacts import digests, inspection_folder
from refdiff.memory.stores import Stores
from refdiff.model.files import make_folder, write_atomic
from refdiff.model.images import encode_png

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


def filed_report(stores: Stores, inspection_id: str) -> DefectReport:
    """A filed report, its files named by absolute paths in the home as it lies now. Raises UnknownRecordError.

    Reports of earlier versions name the place of the home at the time of filing; its files are taken from here too.
    """
    report = DefectReport.model_validate(stores.inspections.get(inspection_id).report)
    folder = inspection_folder(stores.settings.home, inspection_id)
    kept = report.artefacts.model_dump(exclude_none=True)  # older reports have fewer files
    here = Artefacts(**{name: str(folder / ARTEFACTS[name]) for name in kept})
    return report.model_copy(update={"artefacts": here})


def file_report(context: AgentContext, report: DefectReport) -> DefectReport:
    """Write the artefacts and file the report with their digests. Filed already: the filed one is returned."""
    inspections = context.tools.workspace.stores.inspections
    if (known := inspections.find(report.inspection_id)) is not None:
        return DefectReport.model_validate(known.report)
    folder = make_folder(inspection_folder(context.tools.workspace.stores.settings.home, report.inspection_id))
    paths = {name: folder / file for name, file in ARTEFACTS.items()}
    query, canonical = context.tools.query, context.tools.canonical
    nearest = canonical.comparison.nearest
    anomaly_map, reference = canonical.comparison.difference.anomaly_map, nearest.reduced
    drawn = {
        "overlay": pictures.overlay(query, report.findings, anomaly_map, canonical.threshold),
        "heatmap": pictures.heatmap(query, anomaly_map, canonical.threshold),
        "side_by_side": pictures.side_by_side(reference, query, registered=report.alignment.ok),
    }
    crops = {}
    for finding in report.findings:
        at = finding.location
        pair = pictures.crops(query, nearest.picture, (at.x0, at.y0, at.x1, at.y1))
        crops[finding.id] = (pictures.page_image(pair.query), pictures.page_image(pair.reference))
    page = PagePictures(
        query=pictures.page_image(query),
        reference=pictures.page_image(reference),
        overlay=pictures.page_image(drawn["overlay"]),
        heatmap=pictures.page_image(drawn["heatmap"]),
        side_by_side=pictures.page_image(drawn["side_by_side"]),
        crops=crops,
    )
    for name, picture in drawn.items():
        write_atomic(paths[name], encode_png(picture))
    write_atomic(paths["query"], pictures.plain_jpeg(query))
    write_atomic(paths["reference"], pictures.plain_jpeg(reference))
    write_atomic(paths["anomaly"], pictures.anomaly_layer(anomaly_map, canonical.threshold))
    write_atomic(paths["html"], render_html(report, page).encode())
    write_atomic(paths["markdown"], render_markdown(report).encode())
    write_atomic(paths["report"], report.model_dump_json(indent=2).encode())
    filed = inspections.file(
        report.inspection_id,
        report.part_id,
        report.product,
        report.verdict.value,
        report.created_at,
        report.model_dump(mode="json"),
        blind_share=context.settings.blind_share,
        facts={"artefacts": digests(paths.values())},
    )
    return report if filed else DefectReport.model_validate(inspections.get(report.inspection_id).report)
