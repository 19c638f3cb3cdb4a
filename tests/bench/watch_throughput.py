"""How many photos a second a line takes, beside what the encoder alone would allow on the same cores.

python tests/bench/watch_throughput.py --photos 100 --size 480x640
--turned: parts lie at any angle. REFDIFF_ENGINE=auto measures what `refdiff watch` takes.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from refdiff.agent.inspector import Inspector
from refdiff.agent.settings import AgentSettings
from refdiff.memory.journals.watch import WatchJournal
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import Pose, random_pose, render
from refdiff.server.watch.folder import WatchedFolder
from refdiff.server.watch.jsonl import JsonLinesFile
from refdiff.server.watch.names import NamePattern
from refdiff.server.watch.watcher import FolderWatcher, WatchOptions
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

_PRODUCT, _FIRST_PART = "board", 1000


def measure(
    root: Path, photos: int, goldens: int, size: tuple[int, int], workers: list[int], working_px: int, turned: bool
) -> dict[str, Any]:
    """Figures for rendered good parts of `size` (H, W) px, boards or, turned, labels; without the language model."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    good = root / "good"
    good.mkdir()
    for i in range(goldens):
        (good / f"{i:03}.png").write_bytes(encode_png(_photo(i, size, turned)))
    pool = [_photo(_FIRST_PART + i, size, turned) for i in range(photos)]
    model = ModelSettings(cache=root / "cache", working_px=working_px, threads=1)
    with Workspace.open(MemorySettings(home=root / "home", qdrant_url=None), model, ToolsSettings()) as workspace:
        enroll(workspace, _PRODUCT, [good])
        current_calibration(workspace, _PRODUCT)
        cores = max(workers)
        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(workspace.encoder.embed, pool[:cores]))
            began, cpu = time.perf_counter(), time.process_time()
            list(threads.map(workspace.encoder.embed, pool))
            encoder = len(pool) / (time.perf_counter() - began)
            encoder_ms = (time.process_time() - cpu) / len(pool) * 1000
        runs = [_run(root / f"workers-{n}", workspace, pool, n) for n in workers]
    for run in runs:
        run["share_of_encoder"] = round(run["photos_per_second"] / encoder, 4)
        run["share_of_encoder_by_cpu"] = round(encoder_ms / run["cpu_ms_each"], 4)  # whatever else the machine does
    return {
        "photos": photos,
        "goldens": goldens,
        "size": list(size),
        "working_px": working_px,
        "tiles": model.tiles,
        "turned": turned,
        "engine": model.engine,
        "references": ToolsSettings().references,
        "encoder_photos_per_second": round(encoder, 2),
        "encoder_cpu_ms_each": round(encoder_ms, 1),
        "encoder_threads": cores,
        "load_average": round(os.getloadavg()[0], 1),
        "runs": runs,
    }


def _photo(part: int, size: tuple[int, int], turned: bool) -> RgbImage:
    pose = random_pose(np.random.default_rng(part), size=size) if turned else Pose()
    return render("label" if turned else "circuit", 1, part, size=size, noise_seed=part, pose=pose).image


def _run(root: Path, workspace: Workspace, pool: list[Any], workers: int) -> dict[str, Any]:
    camera = root / "camera"
    camera.mkdir(parents=True)
    for i, image in enumerate(pool):
        (camera / f"{workers}-{i:05}.png").write_bytes(encode_png(image))
    options = WatchOptions(NamePattern.parse("(?P<part>.+)", _PRODUCT), judge="never", workers=workers)
    with (
        WatchJournal(root / "journal.sqlite") as journal,
        Inspector(workspace, AgentSettings(llm="off"), unattended=True) as inspector,
        JsonLinesFile(root / "lines.jsonl") as lines,
    ):
        time.sleep(0.6)  # until the files rest
        began, cpu = time.perf_counter(), time.process_time()
        state = FolderWatcher(WatchedFolder(camera), journal, inspector, options, lines=lines).run(once=True)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "workers": workers,
        "filed": state.filed,
        "verdicts": dict(state.verdicts),
        "photos_per_second": round(state.filed / seconds, 3),
        "cpu_ms_each": round(cpu / state.filed * 1000, 1),
        "cores_used": round(cpu / seconds, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--goldens", type=int, default=40)
    parser.add_argument("--size", default="480x640", help="height x width of the photos, px")
    parser.add_argument("--workers", default="1,2", help="runs, one for each number")
    parser.add_argument("--working-px", type=int, default=320)
    parser.add_argument("--turned", action="store_true", help="parts lie at any angle")
    args = parser.parse_args()
    height, _, width = args.size.partition("x")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), args.photos, args.goldens, (int(height), int(width)), [int(n) for n in args.workers.split(",")],
            args.working_px, args.turned,
        )  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
