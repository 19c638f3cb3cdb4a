"""What a filed inspection costs beside its photo: bytes by kind, seconds, and CPU time in all and outside of the tools.

python tests/bench/filing_cost.py --size 480x640 --photos 6
--turned: labels at any angle instead of boards that lie still.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import numpy as np
import torch

from refdiff.agent.inspector import Inspector
from refdiff.agent.request import prepare
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Pose, random_pose, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.registry import TOOLS
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

_PRODUCT, _FIRST_PART, _DAMAGE_PX = "board", 1000, 60


def measure(root: Path, size: tuple[int, int], photos: int, goldens: int, turned: bool) -> dict[str, Any]:
    """Figures for rendered boards or, turned, labels of `size` (H, W) px as JPEG, without the language model."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    for i in range(goldens):
        _write(root / "good" / f"{i:03}.jpg", i, size, turned)
    in_tools = _timed_tools()
    model = ModelSettings(cache=root / "cache", threads=1)
    found: dict[str, Any] = {"size": list(size), "photos": photos, "goldens": goldens, "turned": turned}
    found |= {"tiles": model.tiles, "engine": model.engine, "references": ToolsSettings().references}
    with Workspace.open(MemorySettings(home=root / "home", qdrant_url=None), model, ToolsSettings()) as workspace:
        enroll(workspace, _PRODUCT, [root / "good"])
        current_calibration(workspace, _PRODUCT)
        for way, unattended in (("inspect", False), ("line", True)):
            with Inspector(workspace, AgentSettings(llm="off"), unattended=unattended) as inspector:
                for kind in ("good", "bad"):
                    files = [root / way / f"{way}-{kind}-{i}.jpg" for i in range(photos + 1)]
                    for i, file in enumerate(files):
                        damage = [_damage(size)] if kind == "bad" else []
                        _write(file, _FIRST_PART + i, size, turned, damage, seed=100 * unattended)
                    _inspect(inspector, files[0])
                    before = _bytes(workspace)
                    in_tools.clear()
                    cpu, laps, verdicts = time.process_time(), [time.perf_counter()], Counter[str]()
                    for file in files[1:]:
                        verdicts[_inspect(inspector, file)] += 1
                        laps.append(time.perf_counter())
                    cpu = time.process_time() - cpu
                    grown = _bytes(workspace) - before
                    found[f"{way}, {kind}"] = {
                        "verdicts": dict(verdicts),
                        "photo_bytes": sum(f.stat().st_size for f in files[1:]) // photos,
                        "bytes": {k: v // photos for k, v in grown.most_common()},
                        "bytes_in_all": sum(grown.values()) // photos,
                        "ms_p50_p95": [round(float(q) * 1000) for q in np.quantile(np.diff(laps), [0.5, 0.95])],
                        "cpu_ms": round(cpu / photos * 1000, 1),
                        "cpu_ms_outside_of_tools": round((cpu - sum(in_tools.values())) / photos * 1000, 1),
                    }
    return found | {"load_average": round(os.getloadavg()[0], 1)}


def _damage(size: tuple[int, int]) -> DefectSpec:
    return DefectSpec("stain", size_px=_DAMAGE_PX, where=(size[1] // 2, size[0] // 2), contrast=1.0)


def _write(
    file: Path, part: int, size: tuple[int, int], turned: bool, damage: list[DefectSpec] | None = None, seed: int = 0
) -> None:
    pose = random_pose(np.random.default_rng(part), size=size) if turned else Pose()
    kind = "label" if turned else "circuit"
    image = render(kind, 1, part, size=size, noise_seed=part + seed, pose=pose, defects=damage or []).image
    file.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(file), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])


def _inspect(inspector: Inspector, photo: Path) -> str:
    request = prepare(
        inspector.workspace, photo.stem, product=_PRODUCT, photo=photo, judge="never", requested_by="bench"
    )
    return inspector.run(request).verdict.value


def _timed_tools() -> Counter[str]:
    """CPU time in s inside each tool, from now on."""
    spent: Counter[str] = Counter()

    def timed(name: str, run: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return run(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - began

        return called

    for tool in TOOLS:
        tool.func = timed(tool.name, tool.func)  # type: ignore[attr-defined]
    return spent


def _bytes(workspace: Workspace) -> Counter[str]:
    """Of the home, by store, with the files of reports by name; logs of databases are written back first."""
    with contextlib.closing(sqlite3.connect(workspace.stores.db.path)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sizes: Counter[str] = Counter()
    home = workspace.stores.settings.home
    for path in home.rglob("*"):
        if path.is_file():
            store = path.relative_to(home).parts[0]
            sizes[f"{store}/{path.name}" if store == "inspections" else store] += path.stat().st_size
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="480x640", help="height x width of the photos, px")
    parser.add_argument("--photos", type=int, default=6, help="of each kind and way")
    parser.add_argument("--goldens", type=int, default=22)
    parser.add_argument("--turned", action="store_true", help="labels at any angle")
    args = parser.parse_args()
    height, _, width = args.size.partition("x")
    with tempfile.TemporaryDirectory() as folder:
        size = int(height), int(width)
        print(json.dumps(measure(Path(folder), size, args.photos, args.goldens, args.turned), indent=2))


if __name__ == "__main__":
    main()
