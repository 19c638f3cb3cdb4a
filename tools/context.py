"""What the agent's tools share during one inspection: the request, the photo and each stage of its inspection."""

from __future__ import annotations

import json
import math
import shlex
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from propcache.api import cached_property

from refdiff.memory.golden_bank.golden import Golden, GoldenHit
from refdiff.memory.rows.captures import Capture
from refdiff.memory.rows.products import Product
from refdiff.model.errors import DamagedError, ToolOrderError, UnavailableError, UnknownRecordError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.progress import Progress, silent
from refdiff.tools.evidence import (
    CaptureEvidence,
    Evidence,
    MeasureEvidence,
    MeasureNumbers,
    RegionArguments,
    RegionEvidence,
    ScoreArguments,
    ScoreEvidence,
    ScoreNumbers,
    SimilarEvidence,
    SimilarNumbers,
    finding_of,
    moved_by,
)
from refdiff.tools.framing.photos import Query, alignment
from refdiff.tools.inspection.against_golden import AgainstGolden
from refdiff.tools.inspection.captures import find_part
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.colour import as_one
from refdiff.tools.inspection.comparison import compare_with, similarities
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.inspection import Found, PhotoInspection, RegionResult, inspect_photo, regions_of, search
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.methods import method_of
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.inspection.specification import ProductSpec, parse_spec
from refdiff.tools.kinds.reading import How
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

if TYPE_CHECKING:
    from refdiff.tools.naming.examples import NamedDefects

_MAX_TRIES = 3  # of an inspection during which the specification changes

Result = tuple[str, dict[str, Any]]  # what the LLM reads (JSON), what the state keeps (artifact)


class ToolContext:
    """One inspection in the making. Each stage is computed once, on first use, and shared by all tools.

    It is never checkpointed: a resumed run recomputes what it still needs. Ask for the photo (`find_capture`,
    `capture_in`) before any stage.
    """

    # not a dataclass: the tools' argument schemas would try to validate its fields

    def __init__(
        self,
        workspace: Workspace,
        part_id: str,
        product: str | None = None,
        capture_id: str | None = None,
        progress: Progress = silent,
        capture: Capture | None = None,
        *,
        keeps_pictures: bool = True,
    ) -> None:
        """part_id: tools refuse any other. product, capture_id: of the request. capture: the photo, if it is known.
        progress: of a calibration that is redone. keeps_pictures: those that tools make are stored, for a model that is
        shown them and may be resumed; without, evidence names none of them."""
        self.workspace = workspace
        self.part_id = part_id
        self.product = product
        self.capture_id = capture_id
        self._progress = progress
        self._capture = capture
        self._keeps_pictures = keeps_pictures
        self._lent: list[RgbImage] = []  # lives as long as this inspection
        self._photo: Query | None = None
        self._found: dict[int, Found] = {}  # by how many
        self._clock = Clock()
        self._lock = threading.RLock()

    # ---- the photo ----

    def find_capture(self) -> Capture:
        """The photo of the part: the one asked for, else the newest. Raises UnknownPartError, InputError."""
        if self._capture is None:
            self._capture = find_part(self.workspace.stores, self.part_id, self.product, self.capture_id)
        return self._capture

    def capture_in(self, evidence: Sequence[Evidence]) -> Capture:
        """The photo that the first find_part found: a part photographed again meanwhile does not change a run.

        Raises ToolOrderError if find_part was not called.
        """
        found = next((e for e in evidence if isinstance(e, CaptureEvidence)), None)
        if found is None:
            raise ToolOrderError("no photo yet: call find_part first")
        if self._capture is None or self._capture.capture_id != found.arguments.capture_id:
            self._capture = self.workspace.stores.captures.get(found.arguments.capture_id)
        return self._capture

    @property
    def query(self) -> RgbImage:
        """(H, W, 3) uint8 RGB. Raises DamagedError where the photo is missing or damaged: no other call could help."""
        capture = self.find_capture()
        try:
            return self.workspace.image(capture.sha256, capture.product, f"photo of part {capture.part_id}")
        except (UnknownRecordError, DamagedError) as e:
            what = "missing" if isinstance(e, UnknownRecordError) else "damaged"
            command = (
                f"refdiff capture --part {shlex.quote(capture.part_id)} --product {shlex.quote(capture.product)} FILE"
            )
            raise DamagedError(
                f"part {capture.part_id}: its photo {self.workspace.stores.images.where(capture.sha256)} is {what}; send it "
                f"again ({command}), or restore it from a backup"
            ) from e

    @cached_property
    def shown_query(self) -> str:
        """sha256 of the photo in a form that anyone can show: itself, or 8-bit through the product's intensity window."""
        capture = self.find_capture()
        known = self.workspace.stores.products.get(capture.product)
        return self.keep_image(self.query) if known and known.intensity_window else capture.sha256

    # ---- the stages ----

    def _search(self, k: int) -> Found:
        """The photo and its k nearest goldens. How tools register it besides shows in nothing that others get."""
        with self._lock:
            if self._photo is None:
                query = self.query
                with self._clock.stage("encode"):
                    self._photo = Query(query, self.find_capture().sha256, self.workspace.encoder.embed(query))
            if k not in self._found:
                self._found[k] = search(self.workspace, self._photo, self.find_capture().product, k, self._clock)
            return self._found[k].as_registered()

    def nearest(self, k: int) -> list[GoldenHit]:
        """The k nearest goldens, the photo itself among them if it is one. Raises UnknownProductError."""
        return self._search(k).hits

    def align(self, golden: Golden) -> Alignment:
        """How a golden lies on the photo, as in the canonical inspection."""
        return alignment(self.workspace, self._canonical_search().photo, golden)

    def _canonical_search(self) -> Found:
        return self._search(self.workspace.settings.references)

    @property
    def canonical(self) -> PhotoInspection:
        """The inspection that the verdict rests on: against the nearest goldens, as many as the settings say.

        One object, whichever threads ask: tools may run at the same time. Raises UnavailableError if somebody keeps changing
        the product meanwhile.
        """
        with self._lock:
            return self._inspected

    @cached_property
    def _inspected(self) -> PhotoInspection:
        for _ in range(_MAX_TRIES):
            self._judged_by = self._product_now()
            self._anchor = self.workspace.how(self._judged_by.name).anchor
            found = inspect_photo(
                self.workspace,
                self.find_capture(),
                found=self._canonical_search(),
                clock=self._clock,
                progress=self._progress,
            )
            if self._product_now() == self._judged_by:
                return found
            self._photo = None  # it may be read in another way now
            self._found.clear()
        raise UnavailableError(
            f"the specification of product {self._judged_by.name!r} keeps changing; try again when nobody sets it"
        )

    @property
    def kept_difference(self) -> KeptDifference:
        """What the pictures of the canonical inspection are drawn from."""
        canonical = self.canonical
        nearest, difference = canonical.comparison.nearest, canonical.comparison.difference
        outlines, rules = [r.extent.outline for r in canonical.regions], How.of(self.judged_by).rules
        return KeptDifference(
            difference.anomaly_map, canonical.threshold, nearest.alignment.matrix, outlines, difference.offset, rules,
            difference.fit, difference.colour_map, difference.thresholds[0], self._anchor,
        )  # fmt: skip

    @property
    def unit(self) -> str:
        """Of the image score and the anomaly map; "" without."""
        return method_of(self.workspace, self.find_capture().product).unit

    @property
    def judged_by(self) -> Product:
        """The product as it was for `canonical`: what is set later does not concern this inspection."""
        _ = self.canonical
        return self._judged_by

    @cached_property
    def spec(self) -> ProductSpec:
        """The specification of `judged_by`. Raises SpecError."""
        return parse_spec(self.judged_by.spec, f"specification of {self.judged_by.name}")

    def _product_now(self) -> Product:
        name = self.find_capture().product
        return self.workspace.stores.products.get(name) or Product(name)

    @cached_property
    def named_defects(self) -> NamedDefects | None:
        """The findings of this product that people have named, as they were when somebody first asked."""
        if not self.workspace.names_defects:
            return None
        from refdiff.tools.naming.examples import named_defects

        return named_defects(self.workspace, self.find_capture().product)

    @property
    def names_defects(self) -> bool:
        """Whether a region can be compared with named findings."""
        known = self.named_defects
        return known is not None and bool(known.examples)

    def compare(self, golden_ids: Sequence[str]) -> Comparison:
        """The photo against the given goldens, nearest first. Raises UnknownRecordError."""
        capture = self.find_capture()
        goldens = [self.workspace.bank.get(i) for i in golden_ids]
        for golden in goldens:
            if golden.product != capture.product:
                raise UnknownRecordError(
                    f"golden {golden.golden_id} is of product {golden.product!r}, the photo of {capture.product!r}"
                )
        photo = self._canonical_search().photo
        hits = similarities(self.workspace, photo, goldens)
        hits.sort(key=lambda hit: hit.similarity, reverse=True)
        found = compare_with(self.workspace, photo, capture.product, hits, Clock())
        return replace(found, difference=as_one(found.difference, self.canonical.calibration))

    def nearest_of(self, scored: ScoreEvidence) -> tuple[Golden, Alignment]:
        """The nearest of the goldens that a score compared the photo with, and how it is registered."""
        if scored.numbers.canonical:
            nearest = self.canonical.comparison.nearest
            return nearest.golden, nearest.alignment
        golden = self.workspace.bank.get(scored.arguments.golden_ids[0])
        return golden, self.align(golden)

    @cached_property
    def shown_reference(self) -> str:
        """sha256 of the nearest golden on the photo's pixels."""
        return self.keep_image(self.canonical.comparison.nearest.reduced)

    def keep_image(self, image: RgbImage) -> str:
        """The id by which a model is shown a picture that a tool made: its sha256 where it is stored."""
        if self._keeps_pictures:
            return self.workspace.stores.images.put(encode_png(image))
        picture_id, lent = self.workspace.lend(image)
        self._lent.append(lent)
        return picture_id

    def evidence_images(self, **made: RgbImage | None) -> dict[str, str]:
        """Pictures that a tool made, by role, as evidence names them: those that are there and stored."""
        stored = made if self._keeps_pictures else {}
        return {role: self.keep_image(image) for role, image in stored.items() if image is not None}

    # ---- evidence that a tool gives, or that is added where no tool was asked for it ----

    def score_evidence(self, comparison: Comparison) -> ScoreEvidence:
        """Score, regions with boxes, the registered pair; a p-value of the canonical comparison alone."""
        canonical, difference = self.canonical, comparison.difference
        is_canonical = comparison is canonical.comparison
        regions = (
            [r.region for r in canonical.regions]
            if is_canonical
            else regions_of(comparison, canonical.threshold, at_least_one=False)
        )
        p = canonical.p_value if is_canonical else None
        odd = [*canonical.pose, *(c for c in canonical.counts if c.wrong_by)]
        said = "".join(f"; {what}" for what in odd) if is_canonical else ""
        return ScoreEvidence(
            arguments=ScoreArguments(golden_ids=[h.golden.golden_id for h in comparison.hits]),
            numbers=ScoreNumbers(
                score=round(difference.score, 4),
                p_value=None if p is None else round(p, 4),
                calibration_parts=canonical.calibration.n if canonical.calibration else 0,
                regions=[
                    RegionEvidence(
                        x0=r.box[0], y0=r.box[1], x1=r.box[2], y1=r.box[3],
                        place=r.place, area_px=r.area_px, peak=round(r.peak, 4), type=r.type,
                    )
                    for r in regions
                ],
                canonical=is_canonical,
            ),
            images=self._compared(comparison),
            summary=f"image score {difference.score:.3f}; golden samples compared: {len(comparison.hits)}, "
            f"regions above the threshold: {len(regions)}{said}",
        )  # fmt: skip

    def similar_evidence(self, result: RegionResult, score_id: str) -> SimilarEvidence | None:
        """Which named findings a region of the canonical comparison is like; None where there are none to compare with."""
        known = self.named_defects
        if known is None:
            return None
        from refdiff.tools.naming.examples import similar
        from refdiff.tools.naming.looks import sight

        nearest = self.canonical.comparison.nearest
        photo, alignment = self.find_capture().sha256, nearest.alignment
        seen = sight(photo, nearest.golden, alignment, result.extent.box, result.measurement)
        with self._clock.stage("names"):
            found = similar(self.workspace, known, seen)
        if found is None:
            return None
        like, region = found.likes[0], result.region.id
        naming = like.example.naming
        said = f"{region} is called {found.name}" if found.name else f"{region} is not near enough to a named defect"
        return SimilarEvidence(
            arguments=RegionArguments(region=region, score=score_id),
            numbers=SimilarNumbers(
                name=found.name, nearest_name=found.nearest_name, examples=known.counts[found.nearest_name],
                part_id=naming.part_id, inspection_id=naming.inspection_id, finding=naming.finding,
                confirmed_by=naming.by, confirmed_at=naming.created_at,
                distance=round(like.distance, 4), strangeness=round(found.strangeness, 4),
                limit=round(known.rule.limit, 4), precision=round(known.rule.precision, 4),
                not_compared=len(known.left_out),
            ),
            images={"example": naming.picture},
            summary=f"{said}; nearest is {finding_of(naming.finding, naming.part_id)} ({found.nearest_name}), "
            f"confirmed by {naming.by}",
        )  # fmt: skip

    def _compared(self, comparison: Comparison) -> dict[str, str]:
        """The photo and its nearest golden on the photo's pixels."""
        if not self._keeps_pictures:
            return {"query": self.find_capture().sha256}
        is_canonical = comparison is self.canonical.comparison
        reference = self.shown_reference if is_canonical else self.keep_image(comparison.nearest.reduced)
        return {"query": self.shown_query, "reference": reference}


@runtime_checkable  # the tools' argument schemas check it
class HasTools(Protocol):
    """The context of a run, as the tools see it."""

    @property
    def tools(self) -> ToolContext: ...


def measure_evidence(result: RegionResult, score_id: str, scale: ResolvedScale) -> MeasureEvidence:
    """The size of a region of a score's evidence, and what the golden sample has there."""
    m, region = result.measurement, result.region.id

    def rounded(value: float) -> float:
        return float(f"{value:.4g}")

    def if_known(value: float | None) -> float | None:
        return None if value is None else rounded(value)

    x0, y0, x1, y1 = result.extent.box
    size = f"{m.length_mm:.3g} x {m.width_mm:.3g} mm" if m.length_mm and m.width_mm else "scale unknown"
    quantities = result.described.quantities
    return MeasureEvidence(
        arguments=RegionArguments(region=region, score=score_id),
        numbers=MeasureNumbers(
            length_px=rounded(m.length_px), width_px=rounded(m.width_px), uncertainty_px=rounded(m.uncertainty_px),
            length_mm=if_known(m.length_mm), width_mm=if_known(m.width_mm), area_mm2=if_known(m.area_mm2),
            uncertainty_mm=if_known(m.uncertainty_mm), x0=x0, y0=y0, x1=x1, y1=y1,
            area_px=m.area_px, place=m.place, method=m.method, **_of_golden(result.golden, scale),
        ).with_more({q.name: rounded(q.value) for q in quantities}),
        summary=f"{region}: {m.length_px:.1f} x {m.width_px:.1f} px ({size}), {m.place}"
        + "".join(f"; {q.label} {q.said}" for q in quantities)
        + _said_of_golden(result.golden),
    )  # fmt: skip


def _of_golden(golden: AgainstGolden, scale: ResolvedScale) -> dict[str, Any]:
    """What is known of the golden sample, as `MeasureNumbers` has it."""
    numbers: dict[str, Any] = {}
    if (moved := golden.moved) is not None:
        px = moved.distance_px
        numbers |= {
            "moved_px": round(px, 1), "moved_x_px": round(moved.dx, 1), "moved_y_px": round(moved.dy, 1),
            "moved_uncertainty_px": round(moved.uncertainty_px, 2), "moved_direction": moved.direction,
        } | ({"moved_at_least": True} if moved.at_least else {})  # fmt: skip
        if (mm := scale.mm_per_px) is not None:
            u = math.hypot(moved.uncertainty_px * mm, px * mm * scale.uncertainty)
            numbers |= {"moved_mm": float(f"{px * mm:.3g}"), "moved_uncertainty_mm": float(f"{u:.2g}")}
    if (outline := golden.outline) is not None and outline.only_golden:
        numbers |= {"outline_golden": round(outline.golden, 1), "outline_photo": round(outline.photo, 1)}
    if (component := golden.component) is not None:
        numbers |= {"component": component.number, "component_name": component.name}
    return numbers


def _said_of_golden(golden: AgainstGolden) -> str:
    said = ""
    if golden.moved is not None:
        moved = golden.moved
        by = moved_by(f"{moved.distance_px:.3g} px", moved.direction, at_least=moved.at_least)
        said += f"; an edge lies {by} than on the golden sample"
    if golden.outline is not None and golden.outline.only_golden:
        said += "; the golden sample has an outline there that the photo does not show"
    return said


def answer(record: Evidence, **for_the_model: Any) -> Result:
    """A tool's result: short JSON for the LLM and the evidence record for the state."""
    content = {k: v for k, v in for_the_model.items() if v is not None}
    return json.dumps(content, ensure_ascii=False), {"evidence": record.model_dump()}
