"""File a report exactly once, and give its files: pictures, JSON, Markdown and HTML.

Where a person waits they are drawn and written first, and filed with their digests. Else they are drawn whenever somebody
asks, from what is filed: report, photo, golden sample and anomaly map, which the audit record has the digests of.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from refdiff.agent.context import AgentContext
from refdiff.agent.report.artefacts import ARTEFACTS
from refdiff.agent.report.drawing import Drawing
from refdiff.agent.report.schema import Artefacts, DefectReport
from refdiff.agent.report.values import Colours, Values
from refdiff.memory.artefacts import inspection_folder
from refdiff.memory.audit_chain import ARTEFACTS as FILES
from refdiff.memory.audit_chain import DIFFERENCE
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, StorageError, TamperedError, UnknownRecordError
from refdiff.model.files import make_folder, make_room, mark_used, write_atomic
from refdiff.model.images import F32, RgbImage
from refdiff.model.thermal.palettes import NOT_MEASURED, coloured
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.methods import method_of
from refdiff.tools.kinds.readers import reader_of
from refdiff.tools.kinds.reading import How, Reading
from refdiff.tools.vision.registration import warp_reference
from refdiff.tools.workspace import Workspace

_DRAWN_BYTES = 256 << 20  # of files that were drawn later, in the cache folder


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
    """File the report, in one transaction with its audit record; with its files where somebody waits for them.

    Filed already: the filed one is returned.
    """
    workspace, canonical = context.tools.workspace, context.tools.canonical
    inspections = workspace.stores.inspections
    if inspections.find(report.inspection_id) is not None:
        return DefectReport.model_validate(inspections.get(report.inspection_id).report)
    nearest, kept = canonical.comparison.nearest, context.tools.kept_difference.encode()
    digests: dict[str, str] = {}
    if context.draws:
        _ = context.tools.query  # says what is lost, where it is
        query = workspace.reading(report.query_sha256, report.product)
        drawing = _drawn_of(
            workspace, report, query, workspace.golden_reading(nearest.golden), KeptDifference.decode(kept)
        )
        folder = make_folder(inspection_folder(workspace.stores.settings.home, report.inspection_id))
        for name, data in drawing.files(ARTEFACTS).items():
            write_atomic(folder / ARTEFACTS[name], data)
            digests[ARTEFACTS[name]] = sha256(data).hexdigest()
    filed = inspections.file(
        report.inspection_id,
        report.part_id,
        report.product,
        report.verdict.value,
        report.created_at,
        report.model_dump(mode="json"),
        blind_share=context.settings.blind_share,
        facts={FILES: digests},
        difference=kept,
    )
    return report if filed else DefectReport.model_validate(inspections.get(report.inspection_id).report)


class ReportFiles:
    """The files of filed reports. Safe to share between threads.

    Those that are drawn lie in the cache folder; those used longest ago go first. Only what this process drew is given
    again: what else lies there may be anybody's.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._root = workspace.model_settings.cache / "reports"
        self._lock = threading.Lock()
        self._digests: dict[Path, str] = {}
        self._last: tuple[str, Drawing] | None = None  # a page asks for several pictures of one inspection

    def path(self, inspection_id: str, name: str) -> Path:
        """A file of a filed inspection, of the names of `ARTEFACTS`.

        Raises UnknownRecordError (also for any other name), StorageError if it was filed and is gone, TamperedError if it,
        or what it would be drawn from, is not what was filed.
        """
        stores = self._workspace.stores
        stores.inspections.get(inspection_id)
        if name not in ARTEFACTS:
            raise UnknownRecordError(f"unknown artefact {name!r}; choose from {', '.join(ARTEFACTS)}")
        file = ARTEFACTS[name]
        if not _is_drawn(stores.audit.filed(inspection_id).facts, file):
            path = inspection_folder(stores.settings.home, inspection_id) / file
            if not path.is_file():
                raise StorageError(f"{path.name} of inspection {inspection_id} is missing; restore it from a backup")
            if wrong := stores.audit.not_as_filed(inspection_id, file):
                raise TamperedError(f"inspection {inspection_id}: {wrong[file]}")
            return path
        with self._lock:
            return self._drawn(inspection_id, name)

    def report(self, inspection_id: str) -> DefectReport:
        """A filed report with the absolute paths of its files; what was not filed is drawn. Raises as `path`."""
        stores = self._workspace.stores
        report, facts = filed_report(stores, inspection_id), stores.audit.filed(inspection_id).facts
        named = report.artefacts.model_dump(exclude_none=True)
        drawn = {n: str(self.path(inspection_id, n)) for n in named if _is_drawn(facts, ARTEFACTS[n])}
        return report.model_copy(update={"artefacts": Artefacts(**named | drawn)})

    def drawing(self, inspection_id: str) -> Drawing | None:
        """What draws the pictures of an inspection; None for one of an earlier version. Raises as `path`."""
        facts = self._workspace.stores.audit.filed(inspection_id).facts
        if DIFFERENCE not in facts:
            return None
        with self._lock:
            return self._drawing(inspection_id)

    def points(self, inspection_id: str) -> F32 | None:
        """What can be turned in space of an inspection: (n, 4) x, y, z and deviation in mm; None where its files are
        pictures. Raises as `path`."""
        facts = self._workspace.stores.audit.filed(inspection_id).facts
        if DIFFERENCE not in facts:
            return None
        report, query, golden, _ = self._filed(inspection_id)
        return method_of(self._workspace, report.product).points(query, golden)

    def _drawing(self, inspection_id: str) -> Drawing:
        if self._last is None or self._last[0] != inspection_id:
            self._last = inspection_id, _drawn_of(self._workspace, *self._filed(inspection_id))
        return self._last[1]

    def _filed(self, inspection_id: str) -> tuple[DefectReport, Reading, Reading, KeptDifference]:
        """A filed report, the files of the part and its golden sample as they were read, and what was kept of their
        comparison."""
        inspections = self._workspace.stores.inspections
        report = DefectReport.model_validate(inspections.get(inspection_id).report)
        kept = KeptDifference.decode(inspections.difference(inspection_id) or b"")
        how = _how(self._workspace, report, kept)
        query = self._filed_reading(report, report.query_sha256, "photo", how)
        golden = self._filed_reading(report, report.reference.sha256, "golden sample", how)
        return report, query, golden, kept

    def _filed_reading(self, report: DefectReport, sha256: str, what: str, how: How) -> Reading:
        named = f"{what} of inspection {report.inspection_id}"
        try:
            return self._workspace.reading(sha256, report.product, named, how)
        except UnknownRecordError as e:
            place = self._workspace.stores.images.where(sha256)
            raise StorageError(f"{place}: the {named} is missing; restore it from a backup") from e

    def _drawn(self, inspection_id: str, name: str) -> Path:
        path = self._root / inspection_id / ARTEFACTS[name]
        if (digest := self._digests.get(path)) and _digest(path) == digest:
            mark_used(path)
            return path
        data = self._drawing(inspection_id).file(name)
        make_folder(path.parent)
        write_atomic(path, data)
        make_room(self._root, _DRAWN_BYTES, keep=path.parent)
        self._digests[path] = sha256(data).hexdigest()
        return path


def _how(workspace: Workspace, report: DefectReport, kept: KeptDifference) -> How:
    """How the files of a filed inspection were read."""
    how = workspace.how(report.product)
    # earlier versions did not keep which golden sample files in space were placed on
    return replace(how, rules=kept.rules, anchor=kept.anchor or how.anchor)


def _drawn_of(
    workspace: Workspace, report: DefectReport, query: Reading, golden: Reading, kept: KeptDifference
) -> Drawing:
    """What draws the pictures of a report, from the files of the part and its golden sample."""
    how = _how(workspace, report, kept)
    examples, look = _examples(workspace, report), reader_of(how.kind).look(how)
    planes = method_of(workspace, report.product).planes(query, golden, kept)
    if look is None or planes is None or golden.values is None:
        return Drawing(report, query.picture, golden.picture, kept, examples)
    colour = None
    if kept.colour is not None and query.visible is not None and golden.visible is not None:
        there, covered = warp_reference(golden.visible, kept.matrix, query.visible.shape[:2])
        there[~covered] = NOT_MEASURED
        colour = Colours(query.visible, there, kept.colour, kept.threshold)
    beside = query.visible if colour is None else None
    values = Values(look, planes.query, planes.reference, planes.signed, planes.own, beside, planes.shaded, colour)
    if planes.shaded:
        return Drawing(report, query.picture, golden.picture, kept, examples, values)
    ours, golden_shown = (coloured(v, look.span, look.palette) for v in (planes.query, golden.values))
    return Drawing(report, ours, golden_shown, kept, examples, values)


def _examples(workspace: Workspace, report: DefectReport) -> dict[str, RgbImage]:
    """Finding -> picture of the named finding that it is like, where that picture is still there; its words always are."""
    found = {}
    for finding in report.findings:
        if finding.named and finding.named.like.picture:
            with contextlib.suppress(InputError):
                found[finding.id] = workspace.picture(finding.named.like.picture)
    return found


def _is_drawn(facts: Mapping[str, Any], file: str) -> bool:
    """Whether a file is drawn when somebody asks, by the facts of the audit record: earlier versions wrote all of them."""
    return DIFFERENCE in facts and file not in (facts.get(FILES) or {})


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:  # another process made room
        return ""
