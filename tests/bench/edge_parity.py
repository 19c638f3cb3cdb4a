"""Verdicts of an export beside those of the installation that wrote it: python tests/bench/edge_parity.py FOLDER...

Each folder is a data set that `refdiff evaluate` reads: its good training photos are enrolled, its test photos are inspected
by torch in float32, and by an export of each format in a process that has no torch, no database and no vector search.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from refdiff.agent.evaluation.layouts import read_dataset
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.request import prepare
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.sessions import GRAPH_FORMATS, GraphFormat
from refdiff.model.settings import ModelSettings
from refdiff.tools.exported.export import export_product
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

# what a device does not have; a process that imports one of them ends
ABSENT = (
    "torch", "transformers", "safetensors", "sklearn", "qdrant_client", "sqlalchemy", "alembic", "langgraph",
    "langchain_core", "langchain_openai", "fastapi", "httpx2", "typer", "jinja2", "yaml", "regex",
)  # fmt: skip
_RUN = """
import resource, sys, time
for name in {absent!r}:
    sys.modules[name] = None
began = time.perf_counter()
from refdiff.server.device.command import run
code = run(sys.argv[1:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{{peak:.0f}} MB at most, {{time.perf_counter() - began:.2f}} s", file=sys.stderr)
sys.exit(code)
"""


def on_device(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `refdiff-edge` in a process that cannot import what a device does not have."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REFDIFF_") or k == "REFDIFF_EXPORT_KEY"}
    command = [sys.executable, "-c", _RUN.format(absent=ABSENT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)


def device_reports(export: Path, photos: Sequence[Path], *more: str) -> list[DefectReport]:
    """Reports of photos, in their order."""
    done = on_device("inspect", export, *photos, "--json", *more, check=False)
    assert done.stdout, done.stderr
    return [DefectReport.model_validate_json(line) for line in done.stdout.splitlines()]


def installation_reports(workspace: Workspace, product: str, photos: Sequence[Path]) -> list[DefectReport]:
    """The same of the installation, driven by the script."""
    settings = AgentSettings(llm="off", blind_share=0)
    reports = []
    with Inspector(workspace, settings, unattended=True) as inspector:
        for photo in photos:
            request = prepare(workspace, photo.stem, product=product, photo=photo, requested_by="bench")
            reports.append(inspector.run(request))
    return reports


@dataclass(frozen=True)
class Parity:
    """How far reports of a device are from those of the installation.

    verdicts: that differ. findings: photos with another number of findings, or of other types. score, p: largest difference.
    corner_px: largest difference of a corner of a box. near: photos whose score lies nearer to a limit that decides than the
    largest difference of score.
    """

    photos: int
    verdicts: int
    reasons: int
    findings: int
    score: float
    p: float
    corner_px: int
    near: int


def parity(installation: Sequence[DefectReport], device: Sequence[DefectReport]) -> Parity:
    """Compare reports of the same photos in the same order."""
    pairs = list(zip(installation, device, strict=True))
    assert all(a.query_sha256 == b.query_sha256 for a, b in pairs)
    score = max(abs(a.image_score - b.image_score) for a, b in pairs)
    alike = [(a, b) for a, b in pairs if [f.type for f in a.findings] == [f.type for f in b.findings]]
    corners = [
        abs(x - y)
        for a, b in alike
        for f, g in zip(a.findings, b.findings, strict=True)
        for x, y in zip(_box(f), _box(g), strict=True)
    ]
    return Parity(
        photos=len(pairs),
        verdicts=sum(a.verdict != b.verdict for a, b in pairs),
        reasons=sum(a.verdict_reason != b.verdict_reason for a, b in pairs),
        findings=len(pairs) - len(alike),
        score=score,
        p=max(abs((a.p_value or 0) - (b.p_value or 0)) for a, b in pairs),
        corner_px=max(corners, default=0),
        near=sum(a.threshold is not None and abs(a.image_score - a.threshold) <= score for a, _ in pairs),
    )


def _box(finding: Finding) -> tuple[int, int, int, int]:
    place = finding.location
    return place.x0, place.y0, place.x1, place.y1


def opened(folder: Path, cache: Path | None = None) -> Workspace:
    """A new installation in a folder that computes in float32 with torch, on one thread."""
    model = ModelSettings(cache=cache or folder / "cache", number_format="float32", engine="torch", threads=1)
    return Workspace.open(MemorySettings.of_folder(folder / "home"), model, ToolsSettings())


def main(
    folders: Annotated[list[Path], typer.Argument(help="Data sets in a layout of `refdiff evaluate`.")],
    formats: Annotated[list[str], typer.Option("--format", help="Formats of the networks.")] = list(GRAPH_FORMATS),  # noqa: B006
    most: Annotated[int, typer.Option(help="Test photos of a data set, evenly drawn.")] = 1000,
    goldens: Annotated[int, typer.Option(help="Golden samples of a data set, evenly drawn.")] = 40,
) -> None:
    """Print one line of JSON for each data set and format."""
    os.environ["REFDIFF_NUMBER_FORMAT"] = "float32"
    for folder in folders:
        data = read_dataset(folder)
        good = _evenly(data.train, goldens)
        photos = [s.path for s in _evenly(data.test, most)]
        with tempfile.TemporaryDirectory() as scratch:
            _one(Path(scratch), folder.name, good, photos, formats)


def _evenly(items: Sequence, most: int) -> Sequence:
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _one(scratch: Path, name: str, good: Sequence[Path], photos: Sequence[Path], formats: Sequence[str]) -> None:
    copies = _named_apart(photos, scratch / "photos")
    with opened(scratch) as workspace:
        enroll(workspace, "bench", list(good))
        current_calibration(workspace, "bench")
        began = time.perf_counter()
        ours = installation_reports(workspace, "bench", copies)
        seconds: dict[str, float] = {"torch": (time.perf_counter() - began) / len(copies)}
        exports: Mapping[str, Path] = {f: scratch / f"{f}.refdiff" for f in formats}
        for graphs, path in exports.items():
            export_product(workspace, "bench", path, graphs=_format(graphs))
    for graphs, path in exports.items():
        began = time.perf_counter()
        theirs = device_reports(path, copies, "--threads", "1")
        seconds[graphs] = (time.perf_counter() - began) / len(copies)
        found = parity(ours, theirs)
        verdicts = {str(v): sum(r.verdict == v for r in ours) for v in ("PASS", "FAIL", "REVIEW")}
        row = {"data": name, "format": graphs, **vars(found), "verdicts_of_torch": verdicts, "goldens": len(good)}
        row |= {"mb": round(path.stat().st_size / 1e6, 1)}
        row |= {f"ms_{how}": round(1e3 * seconds[how], 1) for how in ("torch", graphs)}
        print(json.dumps(row), flush=True)


def _format(name: str) -> GraphFormat:
    return next(f for f in GRAPH_FORMATS if f == name)


def _named_apart(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Links whose names are part ids: photos of several folders may share one."""
    folder.mkdir(parents=True)
    made = []
    for i, photo in enumerate(photos):
        link = folder / f"{i:05d}{photo.suffix}"
        link.symlink_to(photo.resolve())
        made.append(link)
    return made


if __name__ == "__main__":
    typer.run(main)
