"""What people call findings: named, corrected, renamed, forgotten; the next findings like them take those names.

Names decide nothing: neither verdicts nor limits. They may come from the same people as dispositions, and count whatever
those say: a name tells what a finding looks like, not whether the part is bad. "Dust" is a name, too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from refdiff.agent.filing import ReportFiles, filed_report
from refdiff.agent.report import pictures
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.memory.records.defect_names import Naming, Sight, check_defect_name
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnknownRecordError
from refdiff.model.images import encode_png
from refdiff.tools.naming.examples import named_defects
from refdiff.tools.naming.looks import vector, weights_digest
from refdiff.tools.naming.nearest import MIN_EXAMPLES
from refdiff.tools.vision.registration import align
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class DefectName:
    """A name of defects of a product, and how far it is learned."""

    product: str
    name: str
    findings: int  # that have it
    given: bool  # whether new findings can take it
    why: str  # in words: why not, or how well names were told apart


@dataclass(frozen=True)
class DefectNames:
    """Use from any thread."""

    workspace: Workspace

    def name(self, inspection_id: str, finding: str, name: str, by: str, note: str = "") -> Naming:
        """Call a finding of a filed inspection something, or correct what it is called. The report never changes.

        finding: its id, like "f2", or its number. Raises UnknownRecordError (no such inspection or finding), InputError (no
        name, nobody who says it), DamagedError, StorageError (its photo cannot be read).
        """
        name = check_defect_name(name)
        report = filed_report(self._stores, inspection_id)
        found = finding_named(report, finding)
        drawn = ReportFiles(self.workspace).drawing(inspection_id)
        if drawn is not None:
            query, golden, ok, matrix = drawn.query, drawn.golden, report.alignment.ok, drawn.kept.matrix
            if drawn.values is not None:  # in colours for people: networks compare the pictures that were registered
                query, golden = (
                    self.workspace.image(s, report.product) for s in (report.query_sha256, report.reference.sha256)
                )
        else:  # of an earlier version
            query, golden = (
                self.workspace.image(s, report.product) for s in (report.query_sha256, report.reference.sha256)
            )
            again = align(query, golden)
            ok, matrix = again.ok, again.matrix
        at = found.location
        box = (at.x0, at.y0, at.x1, at.y1)
        width, height = at.x1 - at.x0, at.y1 - at.y0
        seen = Sight(
            report.query_sha256, report.reference.sha256, ok, tuple(np.asarray(matrix, np.float64).flatten().tolist()), box,
            found.length_px or float(max(width, height)), found.width_px or float(min(width, height)), found.area_px,
        )  # fmt: skip
        picture = pictures.crops(query, query, box).query
        return self._stores.defect_names.name(
            inspection_id,
            found.id,
            name,
            by,
            note,
            picture=self._stores.images.put(encode_png(picture)),
            sight=seen,
            weights=weights_digest(self.workspace),
            vector=vector(self.workspace, query, golden, seen),
        )

    def forget(self, inspection_id: str, finding: str, by: str, note: str = "") -> Naming:
        """Take the name of a finding away. Raises UnknownRecordError where it has none."""
        report = filed_report(self._stores, inspection_id)
        return self._stores.defect_names.forget(inspection_id, finding_named(report, finding).id, by, note)

    def rename(self, product: str, name: str, to: str | None, by: str, note: str = "") -> list[Naming]:
        """Call all findings of a name something else, or nothing (None). Raises UnknownRecordError, InputError."""
        return self._stores.defect_names.rename(product, name, to, by, note)

    def overview(self, product: str | None = None) -> list[DefectName]:
        """The names of that product, or of all, and how far each is learned."""
        named = self._stores.defect_names.named(product)
        made = []
        for one in sorted({n.product for n in named}):
            known = named_defects(self.workspace, one)
            names = [str(n.name) for n in named if n.product == one]
            for name in sorted(set(names)):
                compared = known.counts.get(name, 0) if known else 0
                parts = known.parts(name) if known else 0
                given = known is not None and parts >= MIN_EXAMPLES and known.rule.limit >= 0
                why = self._why(one, names.count(name), compared, parts)
                made.append(DefectName(one, name, names.count(name), given, why))
        return made

    def known(self, product: str) -> list[str]:
        """The names that findings of a product have, those of most findings first."""
        counts = Counter(str(n.name) for n in self._stores.defect_names.named(product))
        return sorted(counts, key=lambda name: (-counts[name], name))

    def _why(self, product: str, findings: int, compared: int, parts: int) -> str:
        known = named_defects(self.workspace, product)
        gone = f"; {findings - compared} cannot be compared: photos are gone" if compared < findings else ""
        if parts < MIN_EXAMPLES:
            return f"given from findings of {MIN_EXAMPLES} parts on{gone}"
        if known is None or len(known.counts) < 2:
            return f"given once another kind of defect has a name too: nothing tells it from others yet{gone}"
        if known.rule.limit < 0:
            asked = self.workspace.settings.name_precision
            return f"not told apart from the other names in {asked:.0%} of the cases yet; name more findings{gone}"
        return (
            f"leaving one out, {known.rule.coverage:.0%} of the findings get a name again, and {known.rule.precision:.0%} "
            f"of the names are right where every other finding is of a kind without a name{gone}"
        )

    @property
    def _stores(self) -> Stores:
        return self.workspace.stores


def finding_named(report: DefectReport, finding: str) -> Finding:
    """The finding of that id ("f2") or number ("2", "#2"). Raises UnknownRecordError naming those that there are."""
    wanted = finding.strip().casefold().removeprefix("#").strip()
    wanted = f"f{wanted}" if wanted.isdecimal() else wanted
    for found in report.findings:
        if found.id == wanted:
            return found
    known = ", ".join(f.id for f in report.findings) or "none"
    raise UnknownRecordError(f"inspection {report.inspection_id} has no finding {finding!r}; its findings are: {known}")
