"""Rendering of a report: its content, and that text by users and models never becomes markup."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from refdiff.agent.report import pictures
from refdiff.agent.report.html import PagePictures, render_html
from refdiff.agent.report.markdown import escape, render_markdown
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.report.summary import finding_line, number, summarise
from refdiff.memory.records.defect_names import Naming

SHA = "ab" * 32
PNG = pictures.page_image(np.zeros((20, 20, 3), np.uint8))
NASTY = "<script>alert(1)</script> [x](http://evil.example) | # **b** `c` \"q\" 's' www.evil.example ![i](j)\n# head"


def finding(number: int = 1, **changes: Any) -> Finding:
    values: dict[str, Any] = {
        "id": f"f{number}",
        "type": "crack",
        "description": "A dark line.",
        "location": {"x0": 20, "y0": 30, "x1": 60, "y1": 50, "region": "upper left"},
        "area_px": 1234,
        "length_mm": 3.25,
        "width_mm": 0.4,
        "uncertainty_mm": 0.11,
        "length_px": 40.0,
        "width_px": 4.6,
        "severity": "major",
        "confidence": 0.91,
        "evidence": ["e1"],
        "reasoning": "The golden is even here.",
    }
    return Finding.model_validate(values | changes)


def report(**changes: Any) -> DefectReport:
    values: dict[str, Any] = {
        "inspection_id": "i-1",
        "part_id": "4412",
        "product": "cell",
        "requested_by": "weber",
        "created_at": datetime(2026, 3, 1, 14, 5, 9, tzinfo=UTC),
        "request": "inspect part #4412",
        "query_sha256": SHA,
        "verdict": "FAIL",
        "verdict_basis": "anomaly",
        "verdict_reason": "above every good sample",
        "image_score": 0.2143,
        "p_value": 0.0244,
        "threshold": 0.1312,
        "alpha": {"requested": 0.01, "attained": 0.0244},
        "n_calibration": 40,
        "reference": {"golden_id": "g-1", "similarity": 0.94, "sha256": SHA},
        "alignment": {"method": "SIFT + ECC", "ok": True, "residual_px": 0.42, "overlap": 0.98},
        "scale": {"mm_per_px": 0.52, "source": "capture"},
        "findings": [finding()],
        "llm_reading": {"defect": True, "type": "crack", "confidence": 0.8},
        "reasoning": "A line that the golden does not have.",
        "unsupported_claims_dropped": ["a second crack"],
        "evidence": [
            {
                "id": "e1",
                "kind": "score",
                "arguments": {"golden_ids": ["g-1"]},
                "numbers": {"score": 0.2143, "p_value": None, "calibration_parts": 0, "regions": 0, "canonical": True},
                "images": {"map": SHA},
                "summary": "One region.",
            }
        ],
        "judge": {"model": "refdiff", "via": "endpoint", "url": "http://127.0.0.1:8001/v1"},
        "tool_trace": [
            {
                "step": 1,
                "tool": "align",
                "arguments": {"golden_id": "g-1"},
                "evidence": "e1",
                "ok": False,
                "message": "no",
            }
        ],
        "timings_ms": {"total": 1391.2},
        "artefacts": {"overlay": "/o.png", "heatmap": "/h.png", "side_by_side": "/s.png", "html": "/r.html"},
        "software": {"version": "0.1.0", "weights_sha256": SHA},
    }
    return DefectReport.model_validate(values | changes)


def page_pictures(*ids: str) -> PagePictures:
    return PagePictures(
        query=PNG, overlay=PNG, reference=PNG, heatmap=PNG, side_by_side=PNG, crops=dict.fromkeys(ids, (PNG, PNG))
    )


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


# ---- page ----


def test_page_shows_every_fact_of_the_report() -> None:
    page = Page(render_html(report(), page_pictures("f1")))
    for expected in (
        "FAIL", "Part 4412", "above every good sample", "crack", "upper left", "3.25 × 0.40 mm (± 0.11)",
        "40 × 4.6 px", "1,234 px²", "20, 30, 60, 50", "91 %", "0.2143", "0.1312", "0.0244", "g-1", "residual 0.42 px",
        "0.52 mm per px", "refdiff", "served endpoint http://127.0.0.1:8001/v1",
        "A line that the golden does not have.", "a second crack",
        "1,391 ms", SHA, "0.1.0",
        "One region.", "Error:",
    ):  # fmt: skip
        assert expected in page.text, expected


def test_page_is_self_contained_and_accessible() -> None:
    html = render_html(report(), page_pictures("f1"))
    page = Page(html)
    assert not page.all("script")
    assert not page.all("link")
    assert len(page.all("img")) == 7  # overlay, reference, query, two crops, heat map, side by side
    for image in page.all("img"):
        assert (image["src"] or "").startswith("data:image/")
        assert image["alt"]
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == 1
    assert page.all("details")
    assert "@media print" in html
    assert html.index("h-pictures") < html.index("h-findings") < html.index("h-reasoning") < html.index("h-evidence")


def test_every_link_of_the_page_has_a_target() -> None:
    two = [finding(1), finding(2, id="f2", evidence=["e1", "lost"])]
    page = Page(render_html(report(findings=two), page_pictures("f1")))
    ids = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    targets = {(a["href"] or "")[1:] for a in page.all("a")}
    assert {"evidence-1", "finding-1", "finding-2"} <= targets <= ids
    assert "lost" in page.text  # named, but no dead link


@pytest.mark.parametrize("field", ["part_id", "product", "requested_by", "request", "verdict_reason"])
def test_markup_in_report_fields_is_shown_as_text(field: str) -> None:
    clean = Page(render_html(report(), page_pictures("f1")))
    page = Page(render_html(report(**{field: NASTY}), page_pictures("f1")))
    assert "<script>alert(1)</script>" in page.text
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in clean.tags]


def test_markup_in_findings_and_evidence_is_shown_as_text() -> None:
    bad = finding(1, type=NASTY, description=NASTY, reasoning=NASTY, evidence=[NASTY],
                  probable_cause={"text": NASTY, "basis": NASTY}, zone=NASTY)  # fmt: skip
    crop = {"x0": 0, "y0": 0, "x1": 1, "y1": 1, "reference_covers": True}
    record = {"id": NASTY, "kind": "zoom", "arguments": {"region": NASTY, "score": NASTY, NASTY: NASTY},
              "numbers": crop | {NASTY: NASTY}, "images": {NASTY: NASTY}, "summary": NASTY}  # fmt: skip
    made = report(findings=[bad], evidence=[record], unsupported_claims_dropped=[NASTY])
    page = Page(render_html(made, page_pictures("f1")))
    assert not page.all("script")
    assert all((a["href"] or "").startswith("#") for a in page.all("a"))
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)


@pytest.mark.parametrize(
    ("changes", "expected", "absent"),
    [
        ({"verdict": "PASS", "findings": []}, "no findings", "Findings in detail"),
        ({"verdict": "REVIEW"}, "refdiff review i-1 --accept", "no findings"),
        ({"scale": {"mm_per_px": None, "source": None}, "findings": [finding(length_mm=None, width_mm=None)]},
         "sizes are in pixels", "0.40 mm"),
        ({"alignment": {"method": "none", "ok": False, "residual_px": None, "overlap": None}},
         "compared without registration", "residual"),
        ({"judge": {"model": None, "via": "fallback", "url": None, "reason": "endpoint timed out"}},
         "endpoint timed out", "served endpoint"),
        ({"findings": [finding(within_limits=True)]}, "within limits", "zone"),
    ],
)  # fmt: skip
def test_page_states_verdict_and_limits_in_words(changes: dict[str, Any], expected: str, absent: str) -> None:
    made = report(**changes)
    page = Page(render_html(made, page_pictures("f1"))).text
    assert expected in page
    assert absent not in page
    text = MarkdownIt("commonmark").enable("table").render(render_markdown(made))
    assert expected.lower() in Page(text).text.lower()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"within_limits": True}, ", within limits"),
        ({"type": "missing_component"}, "missing component: "),
        ({"length_mm": None, "width_mm": None, "uncertainty_mm": None}, " px², "),
    ],
)
def test_finding_line_names_place_severity_and_limits(changes: dict[str, Any], line: str) -> None:
    made = finding(**changes)
    told = finding_line(made)
    assert line in told
    assert f", {made.location.region}, {made.severity.value}" in told
    assert ("within limits" in told) is made.within_limits


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("name", ["ink", "soft", "pass", "fail", "review"])
def test_page_text_contrast_meets_wcag_aa(name: str) -> None:
    html = render_html(report(), page_pictures())
    found = dict(re.findall(r"--(\w+):(#[0-9a-f]{3,6})", html))
    ground = _luminance(found["ground"])
    assert (ground + 0.05) / (_luminance(found[name]) + 0.05) >= 4.5


# ---- Markdown ----


@pytest.mark.parametrize(
    "text",
    [NASTY, "# head", "- item", "1. item", "1) item", "+ x", "=====", "> quote", "    code", "a|b", "`tick", "\\",
     "&lt;", "<b>", "[a]: http://x", "http://evil.example", "~~x~~", "*x*", "_x_", "$x$", "---", "```"],
)  # fmt: skip
def test_markdown_escape_renders_as_the_text_itself(text: str) -> None:
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(escape(text))
    page = Page(rendered)
    assert [tag for tag, _ in page.tags] == ["p"]
    assert page.text.strip() == re.sub(r"\s+", " ", text).strip()


def test_markdown_structure_is_unchanged_by_markup_in_the_report() -> None:
    def tags(made: DefectReport) -> list[str]:
        html = MarkdownIt("commonmark").enable("table").render(render_markdown(made))
        return [tag for tag, _ in Page(html).tags]

    bad = finding(1, type=NASTY, description=NASTY, reasoning=NASTY, evidence=[NASTY])
    assert tags(report(findings=[bad], reasoning=NASTY, product=NASTY, inspection_id="`a|b`")) == tags(report())


def test_markdown_report_has_every_section_and_no_empty_gaps() -> None:
    text = render_markdown(report())
    for expected in ("# FAIL: part 4412", "## Findings", "3.25 × 0.40 mm (± 0.11)", "## Reasoning", "score = 0.2143",
                     "a second crack", "`/o.png`", "## Tool trace", SHA):  # fmt: skip
        assert expected in text, expected
    assert "\n\n\n" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (True, "yes"), (3, "3"), (12345, "12,345"), (0.21432, "0.2143"), (12345.6, "12,346"), (2.0, "2"),
     (1e-7, "1e-07"), ("x", "x")],
)  # fmt: skip
def test_number_is_formatted_for_reading(value: float | str | None, expected: str) -> None:
    assert number(value) == expected


def test_names_given_since_are_in_the_order_of_the_findings() -> None:
    made = report(findings=[finding(id=f"f{i}") for i in range(1, 13)])
    word = Naming(1, "i-1", "f1", "cell", "4412", "oil", None, "meyer", "", SHA, "2026-03-01")
    named = {f"f{i}": word for i in (10, 2, 12, 1)}
    assert [line.split(":")[0] for line in summarise(made, named=named).named] == ["f1", "f2", "f10", "f12"]
