"""How long one inspection takes on this machine, and where the time goes, for banks of growing size; and one registered pair
with a cached golden, beside the bare encoder pass and patch-kNN.

python tests/bench/latency.py --goldens 50 --goldens 2000
python tests/bench/latency.py --retrieval 50 --retrieval 2000 --retrieval 20000
Rendered parts at 320 px, everything but the LLM; the golden bank is embedded, in a folder of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scorers import peer_cells, peer_map

from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.comparing import network_input
from refdiff.model.difference.patch_distance import anomaly_map
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.framing.photos import Query, frame_grid, photo_on
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import ReferenceViews, RegisteredGolden, SizedPhoto, score_difference
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

_DESIGN = 11
_RENDERED = 40  # distinct renderings; further goldens are these with other sensor noise


def _goldens(count: int) -> list[RgbImage]:
    base = [render("label", _DESIGN, i).image for i in range(min(count, _RENDERED))]
    rng = np.random.default_rng(0)
    images = []
    for i in range(count):
        noise = rng.normal(0, 3, base[0].shape) if i >= len(base) else 0
        images.append(np.clip(base[i % len(base)] + noise, 0, 255).astype(np.uint8))
    return images


def measure_latency(goldens: int, queries: int, references: int) -> dict[str, np.ndarray]:
    """ms of each stage and in all, one value per query, with `goldens` in the bank. Golden features are warm."""
    with tempfile.TemporaryDirectory(prefix="refdiff-latency-") as folder:
        home = Path(folder)
        memory = MemorySettings(home=home / "home", qdrant_url=None)
        with Workspace.open(memory, ModelSettings(cache=home / "cache", working_px=320)) as workspace:
            for image in track(_goldens(goldens), description=f"enrolling {goldens}", console=Console(stderr=True)):
                sha256 = workspace.stores.images.put(encode_png(image))
                features = workspace.encoder.embed(image)
                golden = Golden(make_golden_id("part", sha256), "part", sha256)
                workspace.bank.add(golden, features.global_vec, features.patches)
            photos = [render("label", _DESIGN, 1000 + i, noise_seed=i).image for i in range(queries)]
            laps: dict[str, list[float]] = {}
            for warm_up in (True, False):  # the first round reads golden features from disk
                for i, photo in enumerate(photos):
                    key = f"{i} {warm_up}"  # of its own, or the registration would come from the cache
                    timings = compare(workspace, photo, "part", query_key=key, references=references).timings_ms
                    if not warm_up:
                        for name, ms in (timings | {"in all": sum(timings.values())}).items():
                            laps.setdefault(name, []).append(ms)
    return {name: np.array(values) for name, values in laps.items()}


def measure_retrieval(goldens: int, queries: int, references: int) -> tuple[np.ndarray, float, float]:
    """Retrieval alone, in a bank of vectors that stand for goldens: those of the renderings with a little noise.

    Returns: ms of each query; ms to add one golden at the full bank (the mean of the last 100); size of the bank, MB.
    """
    with tempfile.TemporaryDirectory(prefix="refdiff-latency-") as folder:
        home = Path(folder)
        memory = MemorySettings(home=home / "home", qdrant_url=None)
        with Workspace.open(memory, ModelSettings(cache=home / "cache", working_px=320)) as workspace:
            base = [workspace.encoder.embed(image) for image in _goldens(_RENDERED)]
            rng = np.random.default_rng(0)
            adding = []
            for i in track(range(goldens), description=f"adding {goldens}", console=Console(stderr=True)):
                sha256 = hashlib.sha256(str(i).encode()).hexdigest()
                like = base[i % _RENDERED]
                vector = like.global_vec + rng.normal(0, 0.01, like.global_vec.shape).astype(np.float32)
                patches = like.patches + rng.normal(0, 0.01, like.patches.shape).astype(np.float32)
                begun = time.perf_counter()
                workspace.bank.add(
                    Golden(make_golden_id("part", sha256), "part", sha256),
                    vector / np.linalg.norm(vector),
                    patches / np.linalg.norm(patches, axis=1, keepdims=True),
                )
                adding.append((time.perf_counter() - begun) * 1000)
            took = []
            for i in range(-3, queries):
                asked = workspace.encoder.embed(render("label", _DESIGN, 1000 + i, noise_seed=i + 3).image)
                begun = time.perf_counter()
                found = workspace.bank.nearest("part", asked.global_vec, asked.patches, references)
                took.append((time.perf_counter() - begun) * 1000)
                assert len(found) == min(references, goldens)
            size = sum(p.stat().st_size for p in (home / "home").rglob("*") if p.is_file()) / 2**20
    return np.array(took[3:]), float(np.mean(adding[-100:])), size


def measure_pair(queries: int) -> dict[str, np.ndarray]:
    """ms of scoring photos that lie as their one golden does, whose features are cached; parts of it and the whole."""
    with tempfile.TemporaryDirectory(prefix="refdiff-latency-") as folder:
        home = Path(folder)
        memory = MemorySettings(home=home / "home", qdrant_url=None)
        with Workspace.open(memory, ModelSettings(cache=home / "cache", working_px=320)) as workspace:
            sha256 = workspace.stores.images.put(encode_png(render("label", _DESIGN, 0).image))
            golden = Golden(make_golden_id("part", sha256), "part", sha256)
            still = Alignment("identity", True, np.eye(3), 0.0, 1.0, 1.0, 0.0, 1.0, "fixed camera")
            peer = peer_cells(workspace.golden_features(golden))
            laps: dict[str, list[float]] = {}

            def lap(name: str, started: float) -> float:
                now = time.perf_counter()
                laps.setdefault(name, []).append((now - started) * 1000)
                return now

            for i in range(-5, queries):
                photo = render("label", _DESIGN, 1000 + i, noise_seed=i + 5).image
                if i == 0:
                    laps.clear()
                begun = time.perf_counter()
                features = workspace.encoder.embed(photo)
                at = lap("encoder pass", begun)
                registered = RegisteredGolden(workspace, golden, still, photo.shape[:2])
                query = Query(photo, str(i), features)
                grid = frame_grid(workspace, query, golden, still)
                (seen,) = photo_on(workspace, query, grid)
                views = [ReferenceViews(registered, grid).view(seen)]
                at = lap("golden from the cache", at)
                anomaly_map(features.maps, views)
                at = lap("patch distance", at)
                looked = network_input(seen.picture.pixels, seen.maps, views)
                at = lap("soft matching, pixels", at)
                workspace.difference.look(looked)
                lap("network", at)
                at = time.perf_counter()
                features = workspace.encoder.embed(photo)
                tiles = photo_on(workspace, Query(photo, str(i), features), grid)
                score_difference(photo, [SizedPhoto(grid, tiles)], [registered])
                at = lap("pair in all", at)
                peer_map(peer_cells(features), [peer])
                lap("patch-kNN without its encoder pass", at)
    return {name: np.array(values) for name, values in laps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=int, action="append", help="bank size; give it several times to compare")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--retrieval", type=int, action="append", help="only retrieval, in a bank of so many vectors")
    options = parser.parse_args()
    if options.retrieval:
        table = Table(
            "goldens", "query, ms p50 / p95", "add one, ms", "home, MB", title="retrieval alone, embedded bank"
        )
        for size in options.retrieval:
            ms, added, megabytes = measure_retrieval(size, options.queries, options.references)
            table.add_row(
                f"{size}",
                f"{np.percentile(ms, 50):.1f} / {np.percentile(ms, 95):.1f}",
                f"{added:.1f}",
                f"{megabytes:.0f}",
            )
        Console().print(table)
        return
    sizes = options.goldens or [50, 500]
    table = Table(title=f"ms per inspection, {options.references} reference(s), 320 px: p50 / p95")
    table.add_column("stage")
    results = []
    for size in sizes:
        table.add_column(f"{size} goldens", justify="right")
        results.append(measure_latency(size, options.queries, options.references))
    for stage in results[0]:
        cells = [f"{np.percentile(r[stage], 50):.1f} / {np.percentile(r[stage], 95):.1f}" for r in results]
        table.add_row(stage, *cells)
    Console().print(table)
    pair = Table("part", "p50 / p95", title="ms per registered pair, golden cached, 320 px")
    for name, values in measure_pair(options.queries).items():
        pair.add_row(name, f"{np.percentile(values, 50):.1f} / {np.percentile(values, 95):.1f}")
    Console().print(pair)


if __name__ == "__main__":
    main()
