"""DefectReport -> Markdown, and the number formats that the HTML page shares with it.

Every value that a person or a language model wrote is escaped: it cannot start a heading, a link, a table cell or an
HTML element. Knows nothing about pictures; the page links them, Markdown names them by path.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from refdiff.agent.report.schema import DefectReport, Finding, Scale, SeenBefore, VerdictBasis

# characters with a meaning anywhere in a line, the start of bare links, and what opens a block at a line's start
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_BLOCK_START = re.compile(r"^(\d*)((?<=\d)[.)](?=\s|$)|(?<!\d)[#+\-=])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

BASIS_WORDS = {
    VerdictBasis.ANOMALY: "anomaly score against the calibration",
    VerdictBasis.LIMIT: "limit of the product specification",
    VerdictBasis.LLM_DISAGREEMENT: "language model and score disagree",
    VerdictBasis.SYSTEM: "state of the system",
}


class Raw(str):
    """Markdown that this package wrote itself and that is not escaped again."""

    __slots__ = ()


def render_markdown(report: DefectReport) -> str:
    """The report as GitHub-flavoured Markdown (tables), ending in one newline."""
    text = _environment().get_template("report.md.j2").render(r=report, created=when(report.created_at))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def escape(value: object) -> str:
    """Text that renders as itself in Markdown, on one line."""
    if isinstance(value, Raw):
        return value
    text = _SPECIAL.sub(r"\\\1", _CONTROL.sub(" ", str(value)).strip())
    return _BLOCK_START.sub(r"\1\\\2", text)


def code(value: object) -> Raw:
    """An inline code span, safe in a table cell and with backticks inside."""
    text = _CONTROL.sub(" ", str(value)).replace("|", "¦").strip() or " "
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return Raw(f"{fence}{pad}{text}{pad}{fence}")


# ---- formats shared with the page ----


def when(moment: datetime) -> str:
    """`2026-03-01 14:05:09 UTC`; a time without a zone is taken as UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def number(value: float | int | str | bool | None, digits: int = 4) -> str:
    """A number with at most `digits` significant digits, without an exponent where that reads well; `–` for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (value == int(value) if abs(value) < 1e9 else False):
        return f"{value:,.0f}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def size_mm(finding: Finding) -> str | None:
    """`3.2 × 0.4 mm (± 0.1)`, or None where no scale is known."""
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


def finding_line(finding: Finding) -> str:
    """`missing component: 3.20 × 0.40 mm, upper left, major, within limits`: what it is in one line, wherever it is told."""
    size = size_mm(finding) or size_px(finding)
    within = ", within limits" if finding.within_limits else ""
    kind = finding.type.replace("_", " ")
    return f"{kind}: {size}, {finding.location.region}, {finding.severity.value}{within}"


def seen_words(seen: SeenBefore) -> str:
    """`3 other parts of this product in the last 30 days`."""
    parts = "1 other part" if seen.parts == 1 else f"{seen.parts} other parts"
    return f"{parts} of this product in the last {seen.days} days" + (f", {seen.place} as here" if seen.place else "")


def scale_words(scale: Scale) -> str:
    if scale.mm_per_px is None:
        return "scale unknown, so no sizes in mm"
    words = {"capture": "given with the photo", "golden": "from the golden, registered"}
    source = words.get(scale.source or "")
    return f"{scale.mm_per_px:.4g} mm per px" + (f" ({source})" if source else "")


def judge_words(report: DefectReport) -> str:
    judge = report.judge
    if judge.via == "fallback":
        return "no language model" + (f": {judge.reason}" if judge.reason else " (canonical order of tools)")
    where = "served endpoint" if judge.via == "endpoint" else "embedded model"
    return f"{judge.model or 'unnamed model'}, {where}" + (f" {judge.url}" if judge.url else "")


def alignment_words(report: DefectReport) -> str:
    alignment = report.alignment
    if not alignment.ok:
        return f"no honest registration ({alignment.method}); compared unregistered"
    parts = [alignment.method]
    if alignment.residual_px is not None:
        parts.append(f"residual {alignment.residual_px:.2f} px")
    if alignment.overlap is not None:
        parts.append(f"overlap {percent(alignment.overlap)}")
    return ", ".join(parts)


def arguments_words(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "–"


FILTERS: dict[str, Any] = {
    "number": number,
    "percent": percent,
    "size_mm": size_mm,
    "size_px": size_px,
    "seen_before": seen_words,
    "scale": scale_words,
    "judge": judge_words,
    "alignment": alignment_words,
    "arguments": arguments_words,
    "basis": lambda basis: BASIS_WORDS[basis],
    "when": when,
}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("refdiff.agent.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=escape,  # the Markdown counterpart of autoescape: every value passes through it
        autoescape=False,
    )
    environment.filters.update(FILTERS)
    environment.filters["code"] = code
    return environment
