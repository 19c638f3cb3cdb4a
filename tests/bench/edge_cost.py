"""What a device needs on one core and on two, beside the installation: python tests/bench/edge_cost.py FOLDER... --out RUN

Each folder is a data set that `refdiff evaluate` reads: its good training photos are enrolled and exported in each format.
Every row is a process of its own that may use so many cores: `refdiff-edge`'s code without torch, or the installation, once
with torch in float32 and once as it is by default. Rows take turns for `--rounds`. The bare encoder is one pass of the
device's own over a whole photo. Exports that are there are not written again. Linux only.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from edge_parity import ABSENT, _evenly, _named_apart, device_environment, opened

from refdiff.agent.evaluation.layouts import read_dataset
from refdiff.model.difference.sessions import GRAPH_FORMATS
from refdiff.tools.exported.export import export_product
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import current_calibration

# argv: cores, when the parent began (s since the epoch), export or home, photos
_MEASURE = """
import json, os, sys, time
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
for name in ("OMP_WAIT_POLICY=PASSIVE", "OPENBLAS_NUM_THREADS=1"):
    os.environ.setdefault(*name.split("="))
{opening}
ready, ready_cpu = time.time() - float(sys.argv[2]), time.process_time()
inspect(sys.argv[4])
first = time.time() - float(sys.argv[2])
wall, cpu = [], []
for photo in sys.argv[4:]:
    w, c = time.perf_counter(), time.process_time()
    inspect(photo)
    wall.append(1e3 * (time.perf_counter() - w))
    cpu.append(1e3 * (time.process_time() - c))
with open("/proc/self/status") as status:  # ru_maxrss counts the process that started this one
    peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))
encoder = bare() if bare else []
print(json.dumps(dict(ready=ready, ready_cpu=ready_cpu, first=first, wall=wall, cpu=cpu, peak=peak, encoder=encoder)))
"""
_DEVICE = """
for name in {absent!r}:
    sys.modules[name] = None
import cv2
cv2.setNumThreads(int(sys.argv[1]))
from refdiff.agent.device.device import Device
device = Device.open(sys.argv[3], threads=int(sys.argv[1]))
def inspect(photo):
    device.inspect(photo, part_id="part")
def bare():
    image, took = cv2.imread(sys.argv[4])[..., ::-1].copy(), []
    for _ in range(20):
        c = time.perf_counter()
        device.workspace.encoder.embed(image)
        took.append(1e3 * (time.perf_counter() - c))
    return took
"""
_INSTALLATION = """
from pathlib import Path
os.environ["REFDIFF_THREADS"] = sys.argv[1]
from refdiff.agent.inspector import Inspector
from refdiff.agent.request import prepare
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace
home = Path(sys.argv[3])
workspace = Workspace.open(MemorySettings.of_folder(home / "home"), ModelSettings(cache=home / "cache"), ToolsSettings())
inspector = Inspector(workspace, AgentSettings(llm="off", blind_share=0), unattended=True)
def inspect(photo):
    inspector.run(prepare(workspace, "part", product="bench", photo=Path(photo), requested_by="bench"))
bare = None
"""


def main(
    folders: Annotated[list[Path], typer.Argument(help="Data sets in a layout of `refdiff evaluate`.")],
    out: Annotated[Path, typer.Option(help="Folder of homes and exports.")],
    photos: Annotated[int, typer.Option(min=1, help="Test photos of a data set, evenly drawn.")] = 20,
    goldens: Annotated[int, typer.Option(min=2, help="Golden samples of a data set, evenly drawn.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="How often each row is measured.")] = 3,
) -> None:
    """Print one line of JSON for each data set, number of cores and way; times are medians over photos, of all rounds."""
    for folder in folders:
        data, place = read_dataset(folder), out / folder.name
        links = _named_apart([s.path for s in _evenly(data.test, photos)], place / "photos")
        with opened(place) as workspace:
            if not workspace.bank.count("bench"):
                enroll(workspace, "bench", list(_evenly(data.train, goldens)))
                current_calibration(workspace, "bench")
            for graphs in GRAPH_FORMATS:
                if not (place / f"{graphs}.refdiff").exists():
                    export_product(workspace, "bench", place / f"{graphs}.refdiff", graphs=graphs)
        rows: dict[tuple[int, str], list[dict]] = defaultdict(list)
        for number in range(rounds):
            for cores in (1, 2):
                for way in (*GRAPH_FORMATS, "torch", "installation"):
                    rows[cores, way].append(_measured(place, way, cores, links))
                    print(f"{folder.name}: round {number + 1} of {rounds}, {cores} cores, {way}", file=sys.stderr)
        for (cores, way), found in rows.items():
            print(json.dumps({"data": folder.name, "cores": cores, "way": way, **_summary(found)}), flush=True)


def _measured(place: Path, way: str, cores: int, photos: list[Path]) -> dict:
    device = way in GRAPH_FORMATS
    opening = _DEVICE.format(absent=ABSENT) if device else _INSTALLATION
    what = place / f"{way}.refdiff" if device else place
    environment = device_environment()
    if way == "torch":
        environment |= {"REFDIFF_NUMBER_FORMAT": "float32", "REFDIFF_ENGINE": "torch"}
    code = _MEASURE.format(opening=opening)
    arguments = [str(cores), repr(time.time()), str(what), *map(str, photos)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _summary(found: list[dict]) -> dict[str, float | int | None]:
    wall, cpu = (sorted(x for f in found for x in f[k]) for k in ("wall", "cpu"))
    encoder = [x for f in found for x in f["encoder"]]
    return {
        "ready_s": round(statistics.median(f["ready"] for f in found), 2),
        "ready_cpu_s": round(statistics.median(f["ready_cpu"] for f in found), 2),
        "first_report_s": round(statistics.median(f["first"] for f in found), 2),
        "ms_p50": round(statistics.median(wall), 1),
        "ms_p95": round(wall[int(0.95 * (len(wall) - 1))], 1),
        "cpu_ms_p50": round(statistics.median(cpu), 1),
        "encoder_ms_p50": round(statistics.median(encoder), 1) if encoder else None,
        "peak_mb": round(max(f["peak"] for f in found)),
        "photos": len(wall),
    }


if __name__ == "__main__":
    typer.run(main)
