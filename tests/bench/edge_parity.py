"""Verdicts of an export beside those of the installation that wrote it: python tests/bench/edge_parity.py FOLDER...

Each folder is a data set that `refdiff evaluate` reads: its good training photos are enrolled, its test photos are inspected
by torch in float32, and by an export of each format in a process that has no torch, no database and no vector search.
`--fit` fits a network to the golden samples first. `--written-in bfloat16`: an installation that computes so writes the
exports, and has inspected a part before, as servers have.

Every report is kept in `--out` as it is made, one line of JSON each. Stopped at any time and run again with the same
options, it continues there.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from refdiff.agent.evaluation.layouts import read_dataset
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.request import prepare
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.sessions import GRAPH_FORMATS, GraphFormat
from refdiff.model.settings import ModelSettings, NumberFormat
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.content import CONTENT, Content
from refdiff.tools.exported.export import export_product, largest_difference
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import fit_product
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

# what a device does not have; a process that imports one of them ends
ABSENT = (
    "torch", "transformers", "safetensors", "sklearn", "qdrant_client", "sqlalchemy", "alembic", "langgraph",
    "langchain_core", "langchain_openai", "fastapi", "httpx2", "typer", "jinja2", "yaml", "regex",
)  # fmt: skip
_RUN = """
import sys
for name in {absent!r}:
    sys.modules[name] = None
from refdiff.server.device.command import run
sys.exit(run(sys.argv[1:]))
"""


def on_device(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `refdiff-edge` in a process that cannot import what a device does not have."""
    command, environment = device_command(*arguments), device_environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=check)


def device_command(*arguments: str | Path) -> list[str]:
    """`refdiff-edge` in a process that cannot import what a device does not have."""
    return [sys.executable, "-c", _RUN.format(absent=ABSENT), *map(str, arguments)]


def device_environment() -> dict[str, str]:
    """Of such a process: no setting of this machine but the keys."""
    return {k: v for k, v in os.environ.items() if not k.startswith("REFDIFF_") or k.startswith("REFDIFF_EXPORT_")}


def device_reports(export: Path, photos: Sequence[Path], *more: str) -> list[DefectReport]:
    """Reports of photos, in their order."""
    done = on_device("inspect", export, *photos, "--json", *more, check=False)
    assert done.stdout, done.stderr
    return [DefectReport.model_validate_json(line) for line in done.stdout.splitlines()]


def installation_reports(workspace: Workspace, product: str, photos: Sequence[Path]) -> list[DefectReport]:
    """The same of the installation, driven by the script."""
    return list(_by_torch(workspace, product, photos))


def _by_torch(workspace: Workspace, product: str, photos: Sequence[Path]) -> Iterator[DefectReport]:
    settings = AgentSettings(llm="off", blind_share=0)
    with Inspector(workspace, settings, unattended=True) as inspector:
        for photo in photos:
            request = prepare(workspace, photo.stem, product=product, photo=photo, requested_by="bench")
            yield inspector.run(request)


@dataclass(frozen=True)
class Parity:
    """How far reports of a device are from those of the installation.

    verdicts: that differ. findings: photos with another number of findings, or of other types. score, p, limit: largest
    difference. corner_px: largest difference of a corner of a box. near: photos whose score lies nearer to a limit that
    decides than the largest difference of score.
    """

    photos: int
    verdicts: int
    reasons: int
    findings: int
    score: float
    p: float
    limit: float
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
        limit=max(abs((a.threshold or 0) - (b.threshold or 0)) for a, b in pairs),
        corner_px=max(corners, default=0),
        near=sum(a.threshold is not None and abs(a.image_score - a.threshold) <= score for a, _ in pairs),
    )


def _box(finding: Finding) -> tuple[int, int, int, int]:
    place = finding.location
    return place.x0, place.y0, place.x1, place.y1


def opened(folder: Path, cache: Path | None = None, number_format: NumberFormat = "float32") -> Workspace:
    """The installation in a folder, a new one at first; it computes with torch, on one thread."""
    model = ModelSettings(cache=cache or folder / "cache", number_format=number_format, engine="torch", threads=1)
    return Workspace.open(MemorySettings.of_folder(folder / "home"), model, ToolsSettings())


def main(
    folders: Annotated[list[Path], typer.Argument(help="Data sets in a layout of `refdiff evaluate`.")],
    out: Annotated[Path, typer.Option(help="Folder of the reports, and of what it takes to continue.")],
    formats: Annotated[list[str], typer.Option("--format", help="Formats of the networks.")] = list(GRAPH_FORMATS),  # noqa: B006
    photos: Annotated[int, typer.Option(min=1, help="Test photos of all data sets together, evenly drawn.")] = 1000,
    goldens: Annotated[int, typer.Option(min=2, help="Golden samples of a data set, evenly drawn.")] = 40,
    fit: Annotated[bool, typer.Option("--fit", help="Fit a network to the golden samples first.")] = False,
    written_in: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What the installation that writes the exports computes in.")
    ] = "float32",
) -> None:
    """Print one line of JSON for each data set and format; progress goes to stderr."""
    os.environ["REFDIFF_NUMBER_FORMAT"] = "float32"
    for i, folder in enumerate(folders):
        data = read_dataset(folder)
        good = _evenly(data.train, goldens)
        most = (i + 1) * photos // len(folders) - i * photos // len(folders)
        chosen = [s.path for s in _evenly(data.test, most)]
        if not chosen:
            continue  # fewer photos than data sets
        place = out / f"{i:02d}-{folder.name}-{_digest([folder.resolve(), *good, *chosen, fit, written_in])}"
        _one(place, folder.name, good, chosen, formats, fit, written_in)


def _evenly(items: Sequence, most: int) -> Sequence:
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def _digest(what: Sequence[object]) -> str:
    """Of what is compared: other options are another run."""
    return hashlib.sha256("\n".join(map(str, what)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Kept:
    """Reports by the name of the photo, in a JSON lines file that grows, with the seconds of each."""

    path: Path

    def read(self) -> dict[str, tuple[DefectReport, float]]:
        """A line that a crash cut off is none."""
        found = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found[row["photo"]] = (DefectReport.model_validate(row["report"]), float(row["seconds"]))
        return found

    def add(self, photo: str, report: DefectReport, seconds: float) -> None:
        row = {"photo": photo, "seconds": round(seconds, 4), "report": report.model_dump(mode="json")}
        with self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # of a line that a crash cut off
                    file.write(b"\n")
            file.write(json.dumps(row).encode() + b"\n")


def _one(
    place: Path,
    name: str,
    good: Sequence[Path],
    photos: Sequence[Path],
    formats: Sequence[str],
    fit: bool,
    written_in: NumberFormat,
) -> None:
    copies = _named_apart(photos, place / "photos")
    ready, exports = place / "ready", {f: place / f"{f}.refdiff" for f in formats}
    with opened(place) as workspace:
        if not ready.exists():  # enrolling and calibrating again changes nothing
            enroll(workspace, "bench", list(good))
            if fit:
                fit_product(workspace, "bench", "bench", progress=_shown)
            current_calibration(workspace, "bench")
            ready.touch()
        calibration, fitted = current_calibration(workspace, "bench"), workspace.fitted("bench")
        assert calibration is not None
        ours = _inspected(place, "torch", copies, lambda left: _by_torch(workspace, "bench", left))
    with opened(place, number_format=written_in) as workspace:
        if not all(path.exists() for path in exports.values()):
            list(_by_torch(workspace, "bench", copies[:1]))
        for graphs, path in exports.items():
            if not path.exists():
                export_product(workspace, "bench", path, graphs=_format(graphs))
    for graphs, path in exports.items():
        theirs = _inspected(place, graphs, copies, lambda left, path=path: _by_device(path, left))  # type: ignore[misc]
        found = parity([r for r, _ in ours], [r for r, _ in theirs])
        verdicts = {str(v): sum(r.verdict == v for r, _ in ours) for v in ("PASS", "FAIL", "REVIEW")}
        with Export(path) as export:
            theirs_of = Content.decode(export.json(CONTENT)).calibration
            row = {
                "data": name,
                "format": graphs,
                "export": export.digest,
                **vars(found),
                "verdicts_of_torch": verdicts,
            }
        row |= {"written_in": written_in, "fitted": None if fitted is None else fitted.found}
        row |= {"golden_scores": largest_difference(calibration, theirs_of)}
        row |= {"goldens": len(good), "mb": round(path.stat().st_size / 1e6, 1)}
        for how, reports in (("torch", ours), (graphs, theirs)):
            row[f"ms_{how}"] = round(1e3 * sum(seconds for _, seconds in reports) / len(reports), 1)
        print(json.dumps(row), flush=True)


def _inspected(
    place: Path,
    how: str,
    photos: Sequence[Path],
    inspect: Callable[[Sequence[Path]], Iterator[DefectReport]],
) -> list[tuple[DefectReport, float]]:
    """Reports of all photos in their order, with the seconds of each; those that are kept already are not made again."""
    kept = Kept(place / f"{how}.jsonl")
    known = kept.read()
    left = [p for p in photos if p.stem not in known]
    began = time.perf_counter()
    for i, (photo, report) in enumerate(zip(left, inspect(left), strict=True), start=1):
        now = time.perf_counter()
        kept.add(photo.stem, report, now - began)
        began = now
        print(f"{place.name} {how}: {len(known) + i} of {len(photos)}", file=sys.stderr, flush=True)
    found = kept.read()
    return [found[p.stem] for p in photos]


def _shown(what: str, done: int, total: int, note: str = "") -> None:
    print(f"{what}: {done} of {total} {note}", file=sys.stderr, flush=True)


def _by_device(export: Path, photos: Sequence[Path]) -> Iterator[DefectReport]:
    """As they are made: a process that is stopped leaves those before."""
    if not photos:
        return
    arguments = ("inspect", export, *photos, "--json", "--threads", "1")
    with subprocess.Popen(
        device_command(*arguments), env=device_environment(), stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            yield DefectReport.model_validate_json(line)
    assert len(photos) == 1 or running.returncode == 0, running.returncode


def _format(name: str) -> GraphFormat:
    return next(f for f in GRAPH_FORMATS if f == name)


def _named_apart(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Links whose names are part ids: photos of several folders may share one."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i, photo in enumerate(photos):
        link = folder / f"{i:05d}{photo.suffix}"
        if not link.is_symlink():
            link.symlink_to(photo.resolve())
        made.append(link)
    return made


if __name__ == "__main__":
    typer.run(main)
