"""A report in words: the one home of its sentences, labels and numbers with units.

Everything is plain text; the caller escapes it and lays it out. Knows nothing about pictures, pages or chats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from refdiff.agent.report.schema import (
    ComponentCount,
    DefectReport,
    EdgeMove,
    Expected,
    Finding,
    Judge,
    NamedAs,
    Scale,
    SeenBefore,
    VerdictBasis,
)
from refdiff.model.defect_types import WRONG_FILL_LEVEL
from refdiff.tools.evidence import finding_of, moved_by
from refdiff.tools.inspection.components import said_count

if TYPE_CHECKING:
    from refdiff.memory.records.defect_names import Naming
    from refdiff.memory.records.dispositions import Disposition

MISSING = "–"
NO_FINDINGS = "No findings."

_UNITS = (
    ("_mm3", " mm³"), ("_mm2", " mm²"), ("area_px", " px²"), ("_mm", " mm"), ("_px", " px"), ("_deg", "°"), ("_k", " K"),
    ("_c", " °C"),
)  # fmt: skip
BASIS_WORDS = {
    VerdictBasis.ANOMALY: "image score against the calibration",
    VerdictBasis.LIMIT: "limit of the product specification",
    VerdictBasis.LLM_DISAGREEMENT: "language model and image score disagree",
    VerdictBasis.SYSTEM: "nothing: calibration or set-up needs attention",
}
_SOURCES = {"file": "from the file", "product": "stated by the specification", "capture": "stated with the file"}
_SCALE_SOURCES = {"capture": "given with the photo", "golden": "from the golden sample, through the registration"}
_VIA = {"endpoint": "served endpoint", "embedded": "embedded model"}
_DECISIONS = {"accept": "accepted", "override": "overridden"}


@dataclass(frozen=True)
class Fact:
    """A labelled line of a report."""

    label: str
    value: str
    detail: str = ""

    @property
    def text(self) -> str:
        return f"{self.value} ({self.detail})" if self.detail else self.value


@dataclass(frozen=True)
class ReportSummary:
    """A filed report in the few lines that a message shows."""

    inspection_id: str
    verdict: str
    part_id: str
    product: str
    reason: str  # one sentence without its full stop
    findings: list[str]  # one line each
    reasoning: str
    model: str  # the language model that drove, or why none did
    decided: str  # what a person decided; "" while nobody has
    page: str | None  # address of the review page
    nameable: dict[str, str] = field(default_factory=dict)  # every finding that people can name: its id -> its line
    named: list[str] = field(default_factory=list)  # what people called findings since, one line each
    known_names: list[str] = field(default_factory=list)  # of defects of the product, those of most findings first

    @property
    def title(self) -> str:
        return f"{self.verdict}: part {self.part_id} ({self.product})"


def summarise(
    report: DefectReport,
    decided: Disposition | None = None,
    public_url: str | None = None,
    most: int = 8,
    named: Mapping[str, Naming] | None = None,
    known_names: Sequence[str] = (),
) -> ReportSummary:
    """public_url: address of this server, to link the review page. most: findings shown; the others are counted.

    named: the newest word of people about each finding, by its id. known_names: of the product's defects.
    """
    all_lines = {f.id: f"{f.id} {finding_line(f)}" for f in report.findings}
    since = named or {}
    lines = list(all_lines.values())[:most]
    if (more := len(report.findings) - most) > 0:
        lines.append(f"and {more} more")
    return ReportSummary(
        inspection_id=report.inspection_id,
        verdict=report.verdict.value,
        part_id=report.part_id,
        product=report.product,
        reason=report.verdict_reason,
        findings=lines,
        reasoning=report.reasoning,
        model=_model(report.judge).text,
        decided=decision_text(decided) if decided else "",
        page=review_page(public_url, report.inspection_id),
        nameable=all_lines,
        named=[f"{f.id}: {n.name}, by {n.by}" for f in report.findings if (n := since.get(f.id))],
        known_names=list(known_names),
    )


def review_page(public_url: str | None, inspection_id: str) -> str | None:
    """The address of an inspection for people; None if this server's public address is not known."""
    return f"{public_url.rstrip('/')}/#/inspections/{inspection_id}" if public_url else None


def facts(report: DefectReport) -> list[Fact]:
    """What the verdict rests on, in the order in which it is read."""
    alpha, reading, n = report.alpha, report.llm_reading, len(report.references)
    unit = f" {report.unit}" if report.unit else ""
    threshold = "" if report.threshold is None else f"threshold {number(report.threshold)}{unit}"
    promised = f"alpha {number(alpha.requested)} requested, {number(alpha.attained)} attained"
    calibrated = f", {counted(report.n_calibration, 'good part')}" if report.n_calibration else ""
    compared = f", {n} references compared" if n > 1 else ""
    found = [
        Fact("Decided by", BASIS_WORDS[report.verdict_basis]),
        Fact("Image score", number(report.image_score) + unit, threshold),
        Fact("p-value", "not calibrated" if report.p_value is None else number(report.p_value), promised + calibrated),
        Fact("Reference", report.reference.golden_id, f"similarity {number(report.reference.similarity, 3)}{compared}"),
        _registration(report),
        _scale(report.scale),
        _model(report.judge),
    ]
    if report.components:
        counted_first = sorted(report.components, key=lambda c: not c.wrong)
        found.insert(1, Fact("Counted", "; ".join(map(count_text, counted_first))))
    found += [Fact(c.label, f"{number(c.value)} {c.unit}".rstrip(), _SOURCES[c.source]) for c in report.conditions]
    found += [Fact("Note", note) for note in report.notes]
    if reading:
        seen = f"defect, {spaced(reading.type)}" if reading.defect else "no defect"
        unsure = "" if reading.counts else ", too low to count"
        found.append(Fact("Model's reading", seen, f"confidence {percent(reading.confidence)}{unsure}"))
    return found


def finding_line(finding: Finding) -> str:
    """`missing component: 3.20 × 0.40 mm (± 0.10), upper left, major, within limits`; of a kind that measures more, that
    first: `hot spot: +12.3 ± 0.8 K, ...`."""
    within = ", within limits" if finding.within_limits else ""
    first = f"{finding.quantities[0].said}, " if finding.quantities else ""
    moved = f", {moved_text(finding.type, finding.moved)}" if finding.moved else ""
    return (
        f"{called(finding)}: {first}{size(finding)}, {finding.location.region}, {finding.severity.value}{moved}{within}"
    )


def called(finding: Finding) -> str:
    """The customer's own name of a finding, else its type in words."""
    return finding.named.name if finding.named else spaced(finding.type)


def moved_text(kind: str, moved: EdgeMove) -> str:
    """`level 14 px (2.1 mm) lower`, `level at least 14 px lower`; of any other type than a fill level `edge 14 px lower`."""
    return f"{moved_word(kind, moved)} {_moved_by(moved)}"


def moved_distance(moved: EdgeMove) -> str:
    """`14 px (2.1 mm)`; without a scale `14 px`."""
    px = with_unit("_px", moved.distance_px)
    return px if moved.distance_mm is None else f"{px} ({with_unit('_mm', moved.distance_mm)})"


def _moved_by(moved: EdgeMove) -> str:
    return moved_by(moved_distance(moved), moved.direction, at_least=moved.at_least)


def moved_word(kind: str, moved: EdgeMove) -> str:
    """What moved; a bound is measured of levels alone, whatever the finding is called since."""
    return "level" if kind == WRONG_FILL_LEVEL or moved.at_least else "edge"


def golden_sentences(kind: str, moved: EdgeMove | None, expected: Expected | None) -> list[str]:
    """What was measured against the golden sample, as sentences: `The level is 14 px (2.1 mm) lower than on the golden
    sample.`, `The golden sample shows a part there (box 20, 30, 60, 70 px) that the photo does not show.`"""
    said = []
    if moved is not None:
        article = "The level is" if moved_word(kind, moved) == "level" else "An edge is"
        hidden = ", and hidden in one of the two" if moved.at_least else ""
        said.append(f"{article} {_moved_by(moved)} than on the golden sample{hidden}.")
    if expected is not None:
        at = expected.place
        box = f"box {at.x0}, {at.y0}, {at.x1}, {at.y1} px"
        what = expected.name or (None if expected.component is None else f"component {expected.component}")
        shown = " that the photo does not show" if expected.outlined else ""
        said.append(f"The golden sample shows {what or 'something'} there ({box}){shown}.")
    return said


def named_text(named: NamedAs) -> str:
    """`like finding 2 of part 4398, confirmed by A. Smith`."""
    like = named.like
    return f"like {finding_of(like.finding, like.part_id)}, confirmed by {like.confirmed_by}"


def count_text(count: ComponentCount) -> str:
    """`component 2: 5 of 6`, `component 2: 7 instead of 6`, with a name `clip: 5 of 6`."""
    return said_count(count.number, count.found, count.expected, count.name)


def scale_text(scale: Scale) -> str:
    return _scale(scale).text


def seen_before_text(seen: SeenBefore) -> str:
    """`3 other parts of this product in the last 30 days`."""
    place = f", {seen.place} as here" if seen.place else ""
    return f"{counted(seen.parts, 'other part')} of this product in the last {counted(seen.days, 'day')}{place}"


def decision_text(decided: Disposition) -> str:
    return f"{_DECISIONS[decided.decision]} by {decided.by}: {decided.reason}"


def _registration(report: DefectReport) -> Fact:
    alignment = report.alignment
    if not alignment.ok:
        return Fact("Registration", "rejected", "compared without registration")
    details = [f"overlap {percent(alignment.overlap)}"] if alignment.overlap is not None else []
    if alignment.residual_px is not None:
        details.append(f"residual {number(alignment.residual_px, 2)} px")
    return Fact("Registration", alignment.method, ", ".join(details))


def _scale(scale: Scale) -> Fact:
    if scale.mm_per_px is None:
        return Fact("Scale", "unknown", "sizes are in pixels")
    return Fact("Scale", f"{scale.mm_per_px:.4g} mm per px", _SCALE_SOURCES[scale.source] if scale.source else "")


def _model(judge: Judge) -> Fact:
    if judge.via == "fallback":
        return Fact("Language model", "none", judge.reason or "the tools ran in their standard order")
    where = _VIA[judge.via] + (f" {judge.url}" if judge.url else "")
    return Fact("Language model", judge.model or "unnamed model", f"{where}; {judge.reason}" if judge.reason else where)


# ---- words ----


def spaced(name: str) -> str:
    """`missing_component` -> `missing component`."""
    return name.replace("_", " ")


def sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def counted(n: int, noun: str) -> str:
    """`1 region`, `3 regions`."""
    return f"{n} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(items: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


# ---- numbers ----


def when(moment: datetime) -> str:
    """`2026-03-01 14:05:09 UTC`; a time without a zone is taken as UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float | int | str | bool | None, digits: int = 4) -> str:
    """At most `digits` significant digits, without an exponent where that reads well; `–` for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value.is_integer() or abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def with_unit(name: str, value: float | int | str | bool) -> str:
    """A value with the unit that its name ends in: `length_mm`, 3.14159 -> `3.14 mm`. Trained models read these."""
    if isinstance(value, (bool, str)):
        return str(value).lower() if isinstance(value, bool) else value
    digits = f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:.0f}"
    return digits + next((unit for suffix, unit in _UNITS if name.endswith(suffix)), "")


def apart(value: float, bound: float, digits: int = 3) -> str:
    """`value` with as many significant digits as it takes to see on which side of `bound` it lies."""
    while digits < 17 and value != bound and (float(f"{value:.{digits}g}") - bound) * (value - bound) <= 0:
        digits += 1
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"


def size(finding: Finding) -> str:
    """In mm, or in px where no scale is known."""
    return size_mm(finding) or size_px(finding)


def size_mm(finding: Finding) -> str | None:
    """`3.20 × 0.40 mm (± 0.10)`, or None where no scale is known."""
    sides = [f"{v:.2f}" for v in (finding.length_mm, finding.width_mm) if v is not None]
    if not sides:
        return None
    tolerance = f" (± {finding.uncertainty_mm:.2f})" if finding.uncertainty_mm is not None else ""
    return " × ".join(sides) + " mm" + tolerance


def size_px(finding: Finding) -> str:
    """Measured length × width in px, else the sides of the box; always with the area."""
    place = finding.location
    if finding.length_px is not None and finding.width_px is not None:
        sides = f"{number(finding.length_px, 3)} × {number(finding.width_px, 3)} px"
    else:
        sides = f"box {place.x1 - place.x0} × {place.y1 - place.y0} px"
    return f"{sides}, area {finding.area_px:,} px²"
