"""`refdiff demo`: the whole path on real electroluminescence (near-infrared) images of solar cells, or on rendered thermal
pictures (--thermal) or 3D scans (--cloud).

Everything stays in the output folder; the user's golden bank and stores are not touched. The cells are drawn with a
fixed seed before anything is scored, and each verdict is shown next to the ground truth, right or wrong.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
import typer

from refdiff.model.errors import InputError
from refdiff.model.files import storage_error
from refdiff.server.cli import demo_cloud, demo_thermal, output
from refdiff.server.cli.invocation import settings
from refdiff.server.cli.options import Json
from refdiff.server.cli.output import emit
from refdiff.server.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.agent.report.schema import DefectReport
    from refdiff.agent.settings import AgentSettings
    from refdiff.tools.workspace import Workspace

SEED = 4412
GOLDENS_PER_PRODUCT = 30
_MARK = ".made-by-refdiff-demo"
_TYPES = ("mono", "poly")
_THUMB_PX = 360
REQUEST = "inspect part #4412 against the nearest good sample"


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff demo --out demo-output")(demo)


def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Output folder; emptied and filled again on each run.")
    ] = Path("demo-output"),
    thermal: Annotated[
        bool, typer.Option("--thermal", help="Rendered thermal pictures instead, compared in kelvin.")
    ] = False,
    cloud: Annotated[bool, typer.Option("--cloud", help="Rendered 3D scans instead, compared in mm.")] = False,
    _json: Json = False,
) -> None:
    """Enrol real solar cells, inspect six parts and write the reports. Never touches your own data.

    With --thermal the parts are rendered assemblies, four of them with a hot spot, some in warmer or colder surroundings;
    with --cloud rendered scans of a bracket turned any way, four of them with a defect.
    """
    if thermal and cloud:
        raise typer.BadParameter("give one of --thermal and --cloud.", param_hint="--cloud")
    document, shown = run_demo(out, settings(), rendered=demo_thermal if thermal else demo_cloud if cloud else None)
    emit(document, *shown)


@dataclass(frozen=True)
class Cell:
    """One image of the data set. probability: that the cell is defective, according to its experts; 0 or 1 here."""

    path: Path
    kind: str
    probability: float

    @property
    def product(self) -> str:
        return f"solar-cell-{self.kind}"

    @property
    def defective(self) -> bool:
        return self.probability == 1.0

    @property
    def truth(self) -> str:
        return "defective" if self.defective else "good"


class DemoPart(Protocol):
    """A file of the demo, with its truth."""

    @property
    def path(self) -> Path: ...
    @property
    def product(self) -> str: ...
    @property
    def defective(self) -> bool: ...
    @property
    def truth(self) -> str: ...


@dataclass(frozen=True)
class Words:
    """What the demo says of its parts."""

    title: str
    about: str
    footer: str
    line: str


_CELLS = Words(
    "six solar cells",
    "Electroluminescence (near-infrared) images",
    "The cells were drawn with a fixed seed before anything was scored. The ground truth comes from the data set's experts. "
    "The scale of these images is unknown, so sizes are in pixels. Images: elpv-dataset (Buerhop-Lutz, Deitsch and others), "
    "CC BY-NC-SA 4.0.",
    "Truth: the data set's experts. No scale is known for these images, so no mm.",
)
_THERMAL = Words(
    "six thermal pictures",
    "Rendered thermal pictures of an assembly",
    "The pictures were rendered with a fixed seed before anything was scored: by a camera with noise, drift and an "
    "emissivity that is not quite right, of parts whose components differ a little.",
    "Truth: rendered. Parts 4415 to 4417 are in surroundings that are warmer or colder by up to 4 K.",
)


_CLOUD = Words(
    "six 3D scans",
    "Rendered scans of a bracket",
    "The scans were rendered with a fixed seed before anything was scored: 30,000 points each with 0.03 mm of noise, turned "
    "any way, of parts whose features differ a little.",
    "Truth: rendered. Each scan is turned another way.",
)
_WORDS = {"thermal": _THERMAL, "cloud": _CLOUD}


class Rendered(Protocol):
    """A module of parts of another kind."""

    KIND: str
    SPECIFICATION: dict[str, Any]

    def render_parts(self, folder: Path) -> tuple[Mapping[str, Sequence[DemoPart]], Mapping[str, DemoPart]]: ...


@dataclass(frozen=True)
class InspectedCell:
    """A part of the demo with its report. page: the report's page, relative to the output folder."""

    part_id: str
    cell: DemoPart
    report: DefectReport
    page: str
    seconds: float


def agreement(item: InspectedCell) -> str:
    """The verdict compared with the ground truth, in words."""
    verdict, defective = str(item.report.verdict), item.cell.defective
    if verdict == "REVIEW":
        return "asks a person"
    if (verdict == "FAIL") == defective:
        return "right"
    return "wrong: missed" if defective else "wrong: false reject"


def read_cells() -> list[Cell]:
    """Cells with a certain label that no network was trained on. Raises InputError if the package is not installed."""
    from refdiff.model.training.sources import held_out, list_elpv

    return [
        Cell(image.path, kind, float(image.kind != "good"))
        for kind in _TYPES
        for image in list_elpv(kind)
        if held_out(f"elpv_{kind}", image.group)
    ]


def choose(cells: Sequence[Cell]) -> tuple[dict[str, list[Cell]], dict[str, Cell]]:
    """(goldens by product, cell by part id), disjoint; drawn with `SEED` before anything is scored.

    The data set is cut into equal stretches and one golden is drawn from each, which covers all modules and their busbar
    variants.
    """
    rng = np.random.default_rng(SEED)
    goldens: dict[str, list[Cell]] = {}
    drawn: dict[tuple[str, bool], list[Cell]] = {}
    for kind in _TYPES:
        good = [c for c in cells if c.kind == kind and not c.defective]
        bad = [c for c in cells if c.kind == kind and c.defective]
        stretches = np.array_split(np.arange(len(good)), GOLDENS_PER_PRODUCT)
        taken = {int(rng.choice(stretch)) for stretch in stretches}
        goldens[f"solar-cell-{kind}"] = [good[i] for i in sorted(taken)]
        rest = [c for i, c in enumerate(good) if i not in taken]
        drawn[kind, False] = [rest[i] for i in rng.choice(len(rest), 1, replace=False)]
        drawn[kind, True] = [bad[i] for i in rng.choice(len(bad), 2, replace=False)]
    order = [("mono", True), ("mono", False), ("mono", True), ("poly", False), ("poly", True), ("poly", True)]
    return goldens, {str(4412 + i): drawn[key].pop() for i, key in enumerate(order)}


def run_demo(
    out: Path, settings: Settings, *, rendered: Rendered | None = None
) -> tuple[dict[str, Any], list[RenderableType]]:
    """Run the demo; returns (JSON data, view). rendered: parts of another kind than photos.

    Raises InputError: package missing, or other files in the folder.
    """
    started = time.perf_counter()
    cells = [] if rendered else read_cells()  # what is missing is said before a folder is emptied
    out = _fresh_folder(out)
    goldens: Mapping[str, Sequence[DemoPart]]
    parts: Mapping[str, DemoPart]
    goldens, parts = rendered.render_parts(out / "files") if rendered else choose(cells)
    words = _WORDS[rendered.KIND] if rendered else _CELLS
    from refdiff.tools.workspace import Workspace

    # no server, database or checkpoints of the user's; the cache is shared, since it holds the language model's folder and
    # features by content
    servers = ("database_url", "qdrant_url", "qdrant_api_key")
    memory = settings.memory.model_copy(update=dict.fromkeys(servers) | {"home": out / "home"})
    agent = settings.agent.model_copy(update={"checkpoint_url": None})
    with Workspace.open(memory=memory, model=settings.model, tools=settings.tools) as workspace:
        enrolled = {product: _enroll(workspace, product, chosen, rendered) for product, chosen in goldens.items()}
        for part_id, cell in parts.items():
            _capture(workspace, part_id, cell)
        inspected = _inspect_all(workspace, agent, parts, out)
    seconds = time.perf_counter() - started
    index = _write_index(out, inspected, enrolled, words)
    return _document(out, index, inspected, enrolled, seconds), _view(index, inspected, enrolled, seconds, words)


def _fresh_folder(out: Path) -> Path:
    """Empty the folder, but only one that the demo made. Raises InputError, StorageError."""
    out = out.expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    try:
        if out.is_dir() and any(out.iterdir()):
            if not (out / _MARK).is_file():
                raise InputError(f"--out {out}: holds files that the demo did not make; choose another folder")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).touch()
        (out / "reports").mkdir()
    except OSError as e:
        raise storage_error(out, e) from e
    return out


def _enroll(workspace: Workspace, product: str, cells: Sequence[DemoPart], rendered: Rendered | None) -> int:
    from refdiff.tools.golden_samples.enroll import enroll
    from refdiff.tools.inspection.calibration import calibrate
    from refdiff.tools.inspection.specification import parse_spec

    if rendered:
        rules = parse_spec(rendered.SPECIFICATION)
        workspace.stores.products.set_spec(product, rules.model_dump(mode="json"), by="refdiff demo")
    with output.progress(product) as moved:
        paths, kind = [c.path for c in cells], rendered.KIND if rendered else None
        result = enroll(workspace, product, paths, enrolled_by="refdiff demo", kind=kind, progress=moved)
    for golden in result.flagged:
        output.note(f"{product}: flagged {golden.filename}: {golden.note}")
    with output.progress(product) as moved:
        calibrate(workspace, product, progress=moved)
    return result.n_in_bank


def _capture(workspace: Workspace, part_id: str, cell: DemoPart) -> None:
    from refdiff.tools.golden_samples.captures import record_capture

    record_capture(workspace.stores, part_id, cell.product, cell.path, settings=workspace.model_settings)


def _inspect_all(
    workspace: Workspace, agent: AgentSettings, parts: Mapping[str, DemoPart], out: Path
) -> list[InspectedCell]:
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.request import InspectionRequest

    done = []
    with output.watching("inspecting") as show, Inspector(workspace, agent, on_event=show) as inspector:
        for part_id, cell in parts.items():
            began = time.perf_counter()
            report = inspector.run(replace(InspectionRequest.of_part(part_id), requested_by="refdiff demo"))
            seconds = time.perf_counter() - began
            page = out / "reports" / f"part-{part_id}.html"
            shutil.copyfile(report.artefacts.html, page)
            done.append(InspectedCell(part_id, cell, report, str(page.relative_to(out)), seconds))
    return done


def _document(
    out: Path, index: Path, inspected: list[InspectedCell], enrolled: dict[str, int], seconds: float
) -> dict[str, Any]:
    return {
        "folder": str(out),
        "index": str(index),
        "goldens": enrolled,
        "seconds": round(seconds, 1),
        "parts": [
            {
                "part_id": item.part_id,
                "product": item.cell.product,
                "truth": item.cell.truth,
                "verdict": str(item.report.verdict),
                "agreement": agreement(item),
                "image_score": item.report.image_score,
                "p_value": item.report.p_value,
                "inspection_id": item.report.inspection_id,
                "page": str(out / item.page),
                "seconds": round(item.seconds, 2),
            }
            for item in inspected
        ],
    }


def _view(
    index: Path, inspected: list[InspectedCell], enrolled: dict[str, int], seconds: float, words: Words
) -> list[RenderableType]:
    shown = output.table("Part", "Product", "Verdict", "Truth", "", "Score", "p-value", "Findings", "Nearest good",
                          right=("Score", "p-value", "Findings"), title=f'"{REQUEST}", and five others')  # fmt: skip
    for item in inspected:
        report = item.report
        shown.add_row(
            f"#{item.part_id}",
            item.cell.product,
            output.verdict_text(report.verdict),
            item.cell.truth,
            agreement(item),
            f"{report.image_score:.3f}",
            "–" if report.p_value is None else f"{report.p_value:.3f}",
            str(len(report.findings)),
            f"{report.reference.golden_id} ({report.reference.similarity:.2f})",
        )
    counts = ", ".join(f"{n} good samples of {product}" for product, n in enrolled.items())
    return [
        shown,
        f"{counts}; {seconds:.0f} s. {words.line}",
        f"Open {index}",
    ]


def _write_index(out: Path, inspected: Sequence[InspectedCell], enrolled: dict[str, int], words: Words) -> Path:
    """Write `out/index.html`: every part with picture, verdict and truth, linked to its report. Raises StorageError."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    cards = [
        {
            "page": item.page,
            "picture": _thumbnail(Path(item.report.artefacts.overlay)),
            "part_id": item.part_id,
            "product": item.cell.product,
            "verdict": str(item.report.verdict),
            "truth": item.cell.truth,
            "agreement": agreement(item),
            "score": f"{item.report.image_score:.3f}",
            "p": "not calibrated" if item.report.p_value is None else f"{item.report.p_value:.3f}",
            "findings": len(item.report.findings),
        }
        for item in inspected
    ]
    loader = PackageLoader("refdiff.server.cli", "templates")
    template = Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("demo.html.j2")
    path = out / "index.html"
    try:
        path.write_text(template.render(cards=cards, enrolled=enrolled, request=REQUEST, words=words), encoding="utf-8")
    except OSError as e:
        raise storage_error(path, e) from e
    return path


def _thumbnail(picture: Path) -> str:
    from refdiff.agent.report.pictures import page_image
    from refdiff.model.images import data_url, decode_image

    return data_url(page_image(decode_image(picture.read_bytes(), name=picture.name), _THUMB_PX))
