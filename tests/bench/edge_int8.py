"""int8 exports beside float32: python tests/bench/edge_int8.py FOLDER... --out RUN

Each folder is a data set that `refdiff evaluate` reads: its good training photos are enrolled, exported in both number
formats, and its test photos inspected by each in a process that has no torch, on one thread. Exports that are there
are not written again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from edge_parity import _evenly, _named_apart, device_command, device_environment, opened

from refdiff.agent.device.int8 import export_int8
from refdiff.agent.evaluation.layouts import read_dataset
from refdiff.agent.evaluation.metrics import image_auroc, paired_auroc_difference
from refdiff.agent.report.schema import DefectReport
from refdiff.model.difference.sessions import GRAPH_FORMATS
from refdiff.model.errors import InputError
from refdiff.tools.exported.archive import Export
from refdiff.tools.exported.export import export_product
from refdiff.tools.golden_samples.enroll import enroll


def main(
    folders: Annotated[list[Path], typer.Argument(help="Data sets in a layout of `refdiff evaluate`.")],
    out: Annotated[Path, typer.Option(help="Folder of homes and exports.")],
    photos: Annotated[int, typer.Option(min=2, help="Test photos of a data set, evenly drawn.")] = 40,
    goldens: Annotated[int, typer.Option(min=2, help="Golden samples of a data set, evenly drawn.")] = 40,
) -> None:
    """Print one line of JSON for each data set and format of the networks."""
    os.environ["REFDIFF_NUMBER_FORMAT"] = "float32"
    for folder in folders:
        data, place = read_dataset(folder), out / folder.name
        chosen = _evenly(data.test, photos)
        links = _named_apart([s.path for s in chosen], place / "photos")
        with opened(place) as workspace:
            if not workspace.bank.count("bench"):
                enroll(workspace, "bench", list(_evenly(data.train, goldens)))
            for graphs in GRAPH_FORMATS:
                plain, small = place / f"{graphs}.refdiff", place / f"{graphs}-int8.refdiff"
                row: dict[str, object] = {"data": folder.name, "format": graphs}
                if not plain.exists():
                    export_product(workspace, "bench", plain, graphs=graphs)
                try:
                    if not small.exists():
                        export_int8(workspace, "bench", small, graphs=graphs)
                except InputError as e:
                    print(json.dumps(row | {"refused": str(e)}), flush=True)
                    continue
                _compared(row, [plain, small], links, [s.label for s in chosen])


def _compared(row: dict[str, object], exports: list[Path], photos: list[Path], labels: list[int]) -> None:
    found = [_inspected(e, photos) for e in exports]
    scores = [[r.image_score for r in reports] for reports, _ in found]
    gained = paired_auroc_difference(labels, scores[1], scores[0])
    row |= {"good": labels.count(0), "bad": labels.count(1), "auroc": [image_auroc(labels, s) for s in scores]}
    row |= {"gained": gained and gained.difference, "interval": gained and gained.interval}
    for name, truth, verdict in (("escapes", 1, "PASS"), ("false_rejects", 0, "FAIL")):
        row[name] = [sum(r.verdict == verdict for r, t in zip(reports, labels, strict=True) if t == truth)
                     for reports, _ in found]  # fmt: skip
    row["cpu_ms_a_photo"] = [round(ms, 1) for _, ms in found]
    row["mb"] = [round(e.stat().st_size / 1e6, 1) for e in exports]
    with Export(exports[1], parts=False) as export:
        row["said_at_export"] = (export.manifest.model_extra or {})["beside_float32"]
    print(json.dumps(row), flush=True)


def _inspected(export: Path, photos: list[Path]) -> tuple[list[DefectReport], float]:
    """Reports, and ms of CPU time of a photo, without what it takes to start."""
    _, first = _run(export, photos[:1])
    reports, all_of_them = _run(export, photos)
    return reports, 1e3 * (all_of_them - first) / (len(photos) - 1)


def _run(export: Path, photos: list[Path]) -> tuple[list[DefectReport], float]:
    before = _children_s()
    command = device_command("inspect", export, *photos, "--json", "--threads", "1")
    done = subprocess.run(command, env=device_environment(), stdout=subprocess.PIPE, text=True, check=False)
    return [DefectReport.model_validate_json(line) for line in done.stdout.splitlines()], _children_s() - before


def _children_s() -> float:
    used = os.times()
    return used.children_user + used.children_system


if __name__ == "__main__":
    sys.exit(typer.run(main))
