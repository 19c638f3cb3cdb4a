"""DefectReport -> Markdown, whole or in a few lines, and the template filters that the HTML page shares with it.

Every value that a person or a language model wrote is escaped: it cannot start a heading, a link, a table cell or an
HTML element. Knows nothing about pictures; the page embeds them, Markdown names them by path.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from refdiff.agent.report.schema import DefectReport, Verdict
from refdiff.agent.report.summary import (
    MISSING,
    NO_FINDINGS,
    called,
    count_text,
    counted,
    facts,
    finding_line,
    named_text,
    number,
    percent,
    scale_text,
    seen_before_text,
    sentence_case,
    size,
    size_mm,
    size_px,
    spaced,
    when,
)

# characters with a meaning anywhere in a line, the start of bare links, and what opens a block at a line's start
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
_BLOCK_START = re.compile(r"^(\d*)((?<=\d)[.)](?=\s|$)|(?<!\d)[#+\-=])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


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


def short_markdown(report: DefectReport, link: str | None = None) -> str:
    """A report in a few lines of Markdown, for a chat; link: where its page is."""
    limit = "" if report.threshold is None else f", threshold {number(report.threshold)}"
    lines = [
        f"**{report.verdict.value}**: part {escape(report.part_id)} ({escape(report.product)}). "
        f"{escape(report.verdict_reason)}.",
        f"Compared with golden sample {report.reference.golden_id}, similarity {number(report.reference.similarity, 3)}; "
        f"image score {number(report.image_score)}{limit}.",
        "",
    ]
    for i, finding in enumerate(report.findings, start=1):
        line = f"{escape(finding_line(finding))}, confidence {percent(finding.confidence)}"
        lines.append(f"{i}. {line}. {escape(finding.description)}")
    if not report.findings:
        lines.append(NO_FINDINGS)
    if report.verdict is Verdict.REVIEW:
        lines += ["", "A person decides: accept or override it with a reason."]
    page = f" [Report]({link})" if link else ""
    return "\n".join([*lines, "", f"Inspection {report.inspection_id}.{page}"])


def _arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or MISSING


_FILTERS: dict[str, Any] = {
    "arguments": _arguments,
    "called": called,
    "count_text": count_text,
    "counted": counted,
    "facts": facts,
    "named": named_text,
    "number": number,
    "percent": percent,
    "scale": scale_text,
    "seen_before": seen_before_text,
    "sentence": sentence_case,
    "size": size,
    "size_mm": size_mm,
    "size_px": size_px,
    "spaced": spaced,
}


def environment(**options: Any) -> Environment:
    """The templates of this package with their filters. options: of Jinja, how values are escaped."""
    loader = PackageLoader("refdiff.agent.report", "templates")
    made = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)
    made.filters.update(_FILTERS)
    return made


@cache
def _environment() -> Environment:
    # the Markdown counterpart of autoescape: every value passes through `escape`
    made = environment(finalize=escape, autoescape=False)
    made.filters["code"] = code
    return made
