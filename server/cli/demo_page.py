"""The demo's index page: every part with its picture, verdict and truth, linked to its report. No external resource."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined

from refdiff.agent.report.pictures import page_image
from refdiff.model.files import storage_error
from refdiff.model.images import data_url, decode_image

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from refdiff.agent.report.schema import DefectReport


_THUMB_PX = 360

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>RefDiff Inspector: demo</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1.5rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); margin: 1.5rem 0; }
a.card { border: 1px solid #8886; border-radius: .6rem; color: inherit; overflow: hidden; text-decoration: none; }
a.card:hover, a.card:focus { border-color: #48c; box-shadow: 0 0 0 2px #48c6; }
.card img { background: #000; display: block; width: 100%; }
.card div { padding: .7rem .9rem .9rem; }
.verdict { border-radius: .3rem; color: #fff; float: right; font-weight: 700; padding: 0 .5rem; }
.PASS { background: #1a7f37; } .FAIL { background: #c62828; } .REVIEW { background: #8a5a00; }
small, footer { opacity: .8; } footer { font-size: .875rem; }
@media print { a.card { break-inside: avoid; } }
</style></head><body>
<h1>RefDiff Inspector: six solar cells</h1>
<p>Asked: “{{ request }}”, and five more. Electroluminescence (near-infrared) images, compared with
{% for product, n in enrolled.items() %}{{ n }} good samples of {{ product }}{% if not loop.last %} and {% endif %}\
{% endfor %}.</p>
<main>
{% for c in cards %}<a class="card" href="{{ c.page }}">
<img src="{{ c.picture }}" alt="Part {{ c.part_id }} with its findings outlined">
<div><span class="verdict {{ c.verdict }}">{{ c.verdict }}</span><strong>Part #{{ c.part_id }}</strong><br>
{{ c.product }}<br>Truth: {{ c.truth }} ({{ c.agreement }})<br>
<small>score {{ c.score }}, p {{ c.p }}, {{ c.findings }} finding{{ "" if c.findings == 1 else "s" }}</small></div></a>
{% endfor %}</main>
<footer><p>The cells were drawn by a fixed seed before anything was scored. Truth is the judgement of the data set's
experts. No scale is known for these images, so sizes are in pixels.</p>
<p>Images: elpv-dataset (Buerhop-Lutz, Deitsch and others), CC BY-NC-SA 4.0.</p></footer>
</body></html>
"""


def write_index(out: Path, inspected: Sequence[InspectedCell], enrolled: dict[str, int], request: str) -> Path:
    """Write `out/index.html`; its path. Raises StorageError."""

    cards = [
        {
            "page": item.page,
            "picture": _thumbnail(Path(item.report.artefacts.overlay)),
            "part_id": item.part_id,
            "product": item.cell.product,
            "verdict": str(item.report.verdict),
            "truth": "defective" if item.cell.defective else "good",
            "agreement": agreement(item),
            "score": f"{item.report.image_score:.3f}",
            "p": "not calibrated" if item.report.p_value is None else f"{item.report.p_value:.3f}",
            "findings": len(item.report.findings),
        }
        for item in inspected
    ]
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_PAGE)
    path = out / "index.html"
    try:
        path.write_text(template.render(cards=cards, enrolled=enrolled, request=request), encoding="utf-8")
    except OSError as e:
        raise storage_error(path, e) from e
    return path


def _thumbnail(picture: Path) -> str:
    return data_url(page_image(decode_image(picture.read_bytes(), name=picture.name), _THUMB_PX))


@dataclass(frozen=True)
class Cell:
    """One image of the data set. probability: that the cell is defective, as its experts judged, 0 or 1 here."""

    path: Path
    kind: str
    probability: float

    @property
    def product(self) -> str:
        return f"solar-cell-{self.kind}"

    @property
    def defective(self) -> bool:
        return self.probability == 1.0


@dataclass(frozen=True)
class InspectedCell:
    """A part of the demo with its report. page: the report's page, relative to the output folder."""

    part_id: str
    cell: Cell
    report: DefectReport
    page: str
    seconds: float


def agreement(item: InspectedCell) -> str:
    """The verdict against the truth, in words."""
    verdict, defective = str(item.report.verdict), item.cell.defective
    if verdict == "REVIEW":
        return "asks a person"
    if (verdict == "FAIL") == defective:
        return "right"
    return "wrong: missed" if defective else "wrong: false reject"
