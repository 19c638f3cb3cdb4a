"""`refdiff demo`: the whole path on real electroluminescence (near-infrared) images of solar cells.

Everything lives in a folder of its own; the user's golden bank and stores are not touched. The cells are drawn
by a fixed seed before anything is scored, and the verdicts are shown beside the truth, right or wrong.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import InputError
from refdiff.model.files import storage_error
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import output
from refdiff.server.cli.demo_page import Cell, InspectedCell, agreement
from refdiff.server.settings import load
from refdiff.tools.settings import ToolsSettings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from refdiff.tools.workspace import Workspace

SEED = 4412
GOLDENS_PER_PRODUCT = 30
_MARK = ".made-by-refdiff-demo"
_TYPES = ("mono", "poly")
REQUEST = "inspect part #4412 against the nearest good sample"


def read_cells() -> list[Cell]:
    """Cells that the experts were sure about and no network was trained on. Raises InputError: package not installed."""
    from refdiff.model.training.sources import held_out, list_elpv

    return [
        Cell(image.path, kind, float(image.kind != "good"))
        for kind in _TYPES
        for image in list_elpv(kind)
        if held_out(f"elpv_{kind}", image.group)
    ]


def choose(cells: Sequence[Cell]) -> tuple[dict[str, list[Cell]], dict[str, Cell]]:
    """(goldens by product, cell by part id), disjoint; drawn by `SEED`, before anything is scored.

    Goldens are one from each of as many equal stretches of the data set, so that all modules, and with them all busbar
    variants, are among them.
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


def run_demo(out: Path) -> tuple[dict[str, Any], list[RenderableType]]:
    """Run it; (JSON data, what to print). Raises InputError: package missing, folder holds other things."""
    started = time.perf_counter()
    cells = read_cells()
    out = _fresh_folder(out)
    goldens, parts = choose(cells)
    from refdiff.agent.settings import AgentSettings
    from refdiff.tools.workspace import Workspace

    home = out / "home"
    # explicit arguments beat the environment: no server, no bank, no checkpoints of the user's
    memory = MemorySettings(home=home, qdrant_url=None, qdrant_api_key=None)
    model = load(ModelSettings)  # the cache is shared: the language model lies there, and goldens are cached by content
    settings = AgentSettings(checkpoint_url=None)
    with Workspace.open(memory=memory, model=model, tools=load(ToolsSettings)) as workspace:
        enrolled = {product: _enroll(workspace, product, chosen) for product, chosen in goldens.items()}
        for part_id, cell in parts.items():
            _capture(workspace, part_id, cell)
        inspected = _inspect_all(workspace, settings, parts, out)
    from refdiff.server.cli.demo_page import write_index

    seconds = time.perf_counter() - started
    index = write_index(out, inspected, enrolled, REQUEST)
    return _document(out, index, inspected, enrolled, seconds), _view(index, inspected, enrolled, seconds)


def _fresh_folder(out: Path) -> Path:
    """The folder, empty. One that the demo did not make is never emptied. Raises InputError, StorageError."""
    out = out.expanduser().absolute()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: a file is there; name a folder")
    try:
        if out.is_dir() and any(out.iterdir()):
            if not (out / _MARK).is_file():
                raise InputError(f"--out {out}: holds files that the demo did not make; name another folder")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).touch()
        (out / "reports").mkdir()
    except OSError as e:
        raise storage_error(out, e) from e
    return out


def _enroll(workspace: Workspace, product: str, cells: Sequence[Cell]) -> int:
    from refdiff.tools.golden_samples.enroll import enroll
    from refdiff.tools.inspection.calibration import calibrate

    with output.progress(f"enrolling good samples of {product}") as moved:
        result = enroll(workspace, product, [c.path for c in cells], enrolled_by="refdiff demo", progress=moved)
    for golden in result.flagged:
        output.note(f"{product}: flagged {golden.filename}: {golden.note}")
    with output.progress(f"calibrating {product}") as moved:
        calibrate(workspace, product, progress=moved)
    return result.n_in_bank


def _capture(workspace: Workspace, part_id: str, cell: Cell) -> None:
    from refdiff.tools.golden_samples.captures import record_capture

    record_capture(workspace.stores, part_id, cell.product, cell.path, settings=workspace.model_settings)


def _inspect_all(workspace: Workspace, settings: Any, parts: dict[str, Cell], out: Path) -> list[InspectedCell]:
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.request import InspectionRequest

    done = []
    with output.watching("inspecting") as show, Inspector(workspace, settings, on_event=show) as inspector:
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
                "truth": "defective" if item.cell.defective else "good",
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
    index: Path, inspected: list[InspectedCell], enrolled: dict[str, int], seconds: float
) -> list[RenderableType]:
    shown = output.table("Part", "Product", "Verdict", "Truth", "", "Score", "p-value", "Findings", "Nearest good",
                          right=("Score", "p-value", "Findings"), title=f'"{REQUEST}", and five others')  # fmt: skip
    for item in inspected:
        report = item.report
        shown.add_row(
            f"#{item.part_id}",
            item.cell.product,
            output.verdict_text(report.verdict),
            "defective" if item.cell.defective else "good",
            agreement(item),
            f"{report.image_score:.3f}",
            "–" if report.p_value is None else f"{report.p_value:.3f}",
            str(len(report.findings)),
            f"{report.reference.golden_id} ({report.reference.similarity:.2f})",
        )
    counts = ", ".join(f"{n} good samples of {product}" for product, n in enrolled.items())
    return [
        shown,
        f"{counts}; {seconds:.0f} s. Truth: the data set's experts. No scale is known for these images, so no mm.",
        f"Open {index}",
    ]
