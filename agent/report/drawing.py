"""Every file of a report, from what is kept of the inspection: the same bytes whenever it is drawn.

Knows nothing about stores; the way here is `agent/filing.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from propcache.api import cached_property

from refdiff.agent.report import pictures, values
from refdiff.agent.report.html import PagePictures, render_html
from refdiff.agent.report.markdown import render_markdown
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.report.values import Values
from refdiff.model.defect_types import COLOUR_CHANGE
from refdiff.model.images import RgbImage, encode_png
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.vision.regions import map_size, on_map
from refdiff.tools.vision.registration import warp_reference


@dataclass(frozen=True)
class Drawing:
    """query, golden: the photo and its nearest golden sample, each (H, W, 3) uint8 RGB at its own resolution.

    examples: finding id -> picture of the named finding that it is like.
    """

    report: DefectReport
    query: RgbImage
    golden: RgbImage
    kept: KeptDifference
    examples: Mapping[str, RgbImage] = field(default_factory=dict)
    values: Values | None = None  # of a product whose files are measured; `query` and `golden` show them in colours

    @cached_property
    def registered(self) -> RgbImage:
        """The golden sample on the photo's pixels, (H, W, 3) uint8."""
        return warp_reference(self.golden, self.kept.matrix, self.query.shape[:2])[0]

    @cached_property
    def reference(self) -> RgbImage:
        """The same at the `map_size` of the photo, for all that needs no finer pixels."""
        if map_size(self.query.shape) == self.query.shape[:2]:
            return self.registered
        return on_map(self.golden, self.kept.matrix, self.query.shape)

    def crops(self, finding: Finding) -> pictures.CropPair:
        """The surroundings of a finding in photo and reference."""
        at = finding.location
        box = at.x0, at.y0, at.x1, at.y1
        shown = pictures.crops(self.query, self.registered, box)
        if self.values is None or self.values.colour is None:
            return shown
        colour = pictures.crops(self.values.colour.query, self.values.colour.reference, box)
        query, reference = values.above(shown.query, colour.query), values.above(shown.reference, colour.reference)
        return replace(shown, query=query, reference=reference)

    @property
    def _measured(self) -> list[Finding]:
        """The findings that are marked with what was measured there: not those of colour alone."""
        return [f for f in self.report.findings if f.type != COLOUR_CHANGE]

    def file(self, name: str) -> bytes:
        """The file of that name of `Artefacts`."""
        return _FILES[name](self)

    def files(self, names: Collection[str]) -> dict[str, bytes]:
        """Several of them, drawn and encoded on as many cores as there are."""
        drawn = (lambda: self._overlay), (lambda: self._heatmap), (lambda: self._side_by_side)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(lambda draw: draw(), drawn):  # several files show them
                pass
            return dict(zip(names, threads.map(self.file, names), strict=True))

    @cached_property
    def _overlay(self) -> RgbImage:
        findings, kept = self.report.findings, self.kept
        if self.values is not None:
            drawn = pictures.overlay(self.query, findings, kept.outlines or ())
            factor = pictures.display_scale(*self.query.shape[:2])
            measured = values.overlay(self.values, drawn, self._measured, factor)
            if (colour := self.values.colour) is None:
                return measured
            return values.above(measured, pictures.overlay(colour.query, findings, kept.outlines or ()))
        if kept.outlines is None:
            return pictures.overlay(self.query, findings, anomaly_map=kept.anomaly_map, threshold=kept.threshold)
        return pictures.overlay(self.query, findings, kept.outlines, components=self.report.components)

    @cached_property
    def _heatmap(self) -> RgbImage:
        if self.values is not None:
            return values.difference(
                self.values, self.kept.threshold * self.kept.mm, self.report.unit or self.values.look.unit
            )
        return pictures.heatmap(self.query, self.kept.anomaly_map, self.kept.threshold)

    @cached_property
    def _side_by_side(self) -> RgbImage:
        if self.values is not None:
            return values.side_by_side(self.values, self._measured, registered=self.report.alignment.ok)
        return pictures.side_by_side(self.reference, self.query, registered=self.report.alignment.ok)

    def _page(self) -> bytes:
        shown = pictures.page_image
        pairs = {f.id: self.crops(f) for f in self.report.findings}
        page = PagePictures(
            query=shown(self.query),
            reference=shown(self.reference),
            overlay=shown(self._overlay),
            heatmap=shown(self._heatmap),
            side_by_side=shown(self._side_by_side),
            crops={name: (shown(pair.query), shown(pair.reference)) for name, pair in pairs.items()},
            examples={name: shown(picture) for name, picture in self.examples.items()},
        )
        return render_html(self.report, page).encode()


_FILES: dict[str, Callable[[Drawing], bytes]] = {
    "overlay": lambda d: encode_png(d._overlay),
    "heatmap": lambda d: encode_png(d._heatmap),
    "side_by_side": lambda d: encode_png(d._side_by_side),
    "html": Drawing._page,
    "markdown": lambda d: render_markdown(d.report).encode(),
    "report": lambda d: d.report.model_dump_json(indent=2).encode(),
    "query": lambda d: pictures.plain_jpeg(d.query),
    "reference": lambda d: pictures.plain_jpeg(d.reference),
    "anomaly": lambda d: pictures.anomaly_layer(d.kept.anomaly_map, d.kept.threshold),
}
