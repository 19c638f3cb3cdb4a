"""The learned difference beside what peers do, on the same images, goldens and registrations.

python tests/bench/scorers.py --bench bench-data --sets SET ... --weights NAME=FILE ... --seeds 5

Rows: patch-kNN (Roth et al. 2022: stride 8 and 16 features, cosine distance to the nearest patch, mean of the largest 1 %)
against the nearest golden and against the whole bank; the training-free difference of this product; every network given.
Each seed draws other goldens from the good images, the rest are tested. Intervals are stratified bootstraps. FR and
escapes: at the threshold that the goldens themselves give, leave-one-out; "at bank's FR": escapes where as many good ones
fail as the full bank fails. Whole inspections: golden_draws.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from refdiff.agent.evaluation.layouts import load_masks, read_mvtec
from refdiff.agent.evaluation.metrics import PixelMetrics, auroc_interval, image_auroc, paired_auroc_difference
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.comparing import SCORED_PART, fuse, network_input
from refdiff.model.difference.features import Features
from refdiff.model.difference.patch_distance import anomaly_map, image_score, reached_cells
from refdiff.model.difference.scorer import DifferenceScorer, load_difference
from refdiff.model.errors import RefDiffError
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.settings import ModelSettings
from refdiff.tools.framing.photos import Grid, Query, alignment, own_grid, photo_on
from refdiff.tools.inspection.calibration import attained_alpha
from refdiff.tools.inspection.difference import OnPhoto, ReferenceViews, RegisteredGolden, comparison_grid
from refdiff.tools.inspection.retrieval import retrieve_reference
from refdiff.tools.workspace import Workspace

PEER, BANK, OURS = "patch-kNN, nearest", "patch-kNN, full bank", "training-free"


@dataclass
class _Scores:
    """scores: method -> of the test images, in the order of labels. goldens: method -> leave-one-out, of the goldens."""

    labels: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    goldens: dict[str, list[float]] = field(default_factory=dict)
    pixels: dict[str, PixelMetrics] = field(default_factory=dict)
    ms: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    """What one method says of one image: map, where it lies, its stride, score, ms if it was timed."""

    cells: np.ndarray
    grid: Grid
    stride: int
    score: float
    ms: float | None = None


def peer_cells(features: Features) -> Tensor:
    """(C, h, w) unit norm: stride 8 and 16 as peers concatenate them."""
    h, w = features.maps[8].shape[-2:]
    up = F.interpolate(features.maps[16][None], size=(h, w), mode="bilinear", align_corners=False)[0]
    return F.normalize(torch.cat([features.maps[8], up]), dim=0)


def peer_map(query: Tensor, references: Sequence[Tensor]) -> Tensor:
    flat = query.flatten(1).T
    best = torch.stack([(flat @ r.flatten(1)).amax(1) for r in references]).amax(0)
    return (1 - best).view(query.shape[1:])


def _full(row: _Row, size: tuple[int, int]) -> np.ndarray:
    fine = cv2.resize(row.cells.astype(np.float32), row.grid.size[::-1], interpolation=cv2.INTER_LINEAR)
    return OnPhoto(size, row.grid).to(cv2.GaussianBlur(fine, (0, 0), row.stride / 2), size)


class _ToolSession:
    """The goldens of one seed, and every method on one image against them."""

    def __init__(
        self,
        workspace: Workspace,
        chosen: Sequence[Path],
        models: dict[str, DifferenceScorer],
        options: argparse.Namespace,
    ) -> None:
        self._services, self._models, self._options = workspace, models, options
        self._draw = random.Random(len(chosen))
        self.peers: dict[str, Tensor] = {}  # golden id -> cells
        self.goldens: dict[Path, Golden] = {}
        for path in chosen:
            sha = workspace.stores.images.put(path.read_bytes())
            golden = Golden(make_golden_id("p", sha), "p", sha)
            features = workspace.golden_features(golden)
            workspace.bank.add(golden, features.global_vec, features.patches)
            self.peers[golden.golden_id] = peer_cells(features)
            self.goldens[path] = golden

    def peers_of(self, photo: Query, nearest: str, without: Sequence[str]) -> dict[str, _Row]:
        """patch-kNN. nearest: golden id. without: golden ids left out."""
        rows: dict[str, _Row] = {}
        query, grid = peer_cells(photo.features), own_grid(photo)
        started = time.perf_counter()
        cells = peer_map(query, [self.peers[nearest]])
        rows[PEER] = _Row(cells.numpy(), grid, 8, image_score(cells), _ms(started))
        cells = peer_map(query, [c for i, c in self.peers.items() if i not in without])
        rows[BANK] = _Row(cells.numpy(), grid, 8, image_score(cells))
        return rows

    def rows(self, path: Path, image: RgbImage, features: Features, without: Sequence[str] = ()) -> dict[str, _Row]:
        """without: golden ids left out."""
        workspace, options, photo = self._services, self._options, Query(image, str(path), features)
        hits = retrieve_reference(workspace, features, "p", options.references, without)
        if options.random_golden:
            others = [g for g in workspace.bank.list("p") if g.golden_id not in without]
            hits = [type(hits[0])(g, 0.0, 0.0) for g in self._draw.sample(others, options.references)]
        pairs = [(h.golden, alignment(workspace, photo, h.golden)) for h in hits]
        if options.no_alignment:
            pairs = [(g, replace(a, ok=False)) for g, a in pairs]
        size = (image.shape[0], image.shape[1])
        references = [RegisteredGolden(workspace, g, a, size) for g, a in pairs]
        grid = comparison_grid(photo, references)
        (seen,) = photo_on(workspace, photo, grid)
        views = [ReferenceViews(r, grid).view(seen) for r in references]
        rows = self.peers_of(photo, hits[0].golden.golden_id, without)
        started = time.perf_counter()
        own = anomaly_map(seen.maps, views)
        reached = torch.from_numpy(reached_cells(views, tuple(own.shape)))  # type: ignore[arg-type]
        own = own * reached
        free = _ms(started)
        rows[OURS] = _Row(own.numpy(), grid, 8, image_score(own, reached), free)
        started = time.perf_counter()
        looked = network_input(seen.picture.pixels, seen.maps, views)
        shared = _ms(started)
        keep = np.kron(reached.numpy(), np.ones((2, 2), bool))
        for name, model in self._models.items():
            started = time.perf_counter()
            learned = model.look(looked)
            fused = fuse(own.numpy(), learned.logits.numpy()) * keep
            score = image_score(torch.from_numpy(fused), torch.from_numpy(keep), SCORED_PART)
            rows[name] = _Row(fused, grid, 4, score, _ms(started) + shared + free)
            alone = F.softplus(learned.logits)
            rows[f"{name}, network alone"] = _Row(alone.numpy(), grid, 4, image_score(alone, part=SCORED_PART))
        return rows


def _ms(started: float) -> float:
    return (time.perf_counter() - started) * 1000


def run_seed(root: Path, seed: int, models: dict[str, DifferenceScorer], options: argparse.Namespace) -> _Scores:
    """One draw of goldens."""
    data = read_mvtec(root)
    draw = random.Random(seed)
    good = [*data.train, *(s.path for s in data.test if not s.defective)]
    bad = [s for s in data.test if s.defective]
    draw.shuffle(good)
    draw.shuffle(bad)
    goldens = min(options.goldens, len(good) // 2)
    chosen, rest = good[:goldens], good[goldens:]
    tests: list[tuple[Path, int, Any]] = [(p, 0, ()) for p in rest[: options.test]]
    tests += [(s.path, 1, s.masks) for s in bad[: options.test]]
    out = _Scores()
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-scorers-") as folder,
        Workspace.open(
            MemorySettings(home=Path(folder) / "home", qdrant_url=None), ModelSettings(cache=Path(folder) / "cache")
        ) as workspace,
    ):
        bench = _ToolSession(workspace, chosen, models, options)
        for path, golden in bench.goldens.items():
            image, features = workspace.golden_image(golden), workspace.golden_features(golden)
            for name, row in bench.rows(path, image, features, [golden.golden_id]).items():
                out.goldens.setdefault(name, []).append(row.score)
        for path, label, masks in tests:
            image = decode_image(path.read_bytes(), name=path.name)
            features = workspace.encoder.embed(image)
            mask = load_masks(masks, image.shape[:2])[0] if masks else None
            out.labels.append(label)
            for name, row in bench.rows(path, image, features).items():
                out.scores.setdefault(name, []).append(row.score)
                if row.ms is not None:
                    out.ms.setdefault(name, []).append(row.ms)
                if data.has_masks and (label == 0 or mask is not None):
                    full = _full(row, image.shape[:2])
                    out.pixels.setdefault(name, PixelMetrics()).add(full, mask)
    return out


def _rates(run: _Scores, method: str, alpha: float) -> tuple[int, int]:
    """(good images failed, defective images passed) at the conformal threshold of the goldens."""
    known = np.array(run.goldens[method])
    p = np.array([(1 + (known >= s).sum()) / (len(known) + 1) for s in run.scores[method]])
    # no rounding error of the sum may decide
    failed = p <= attained_alpha(alpha, len(known)) + 1e-9
    labels = np.array(run.labels)
    return int(failed[labels == 0].sum()), int((~failed[labels == 1]).sum())


def _escapes_at(run: _Scores, method: str, false_rejects: int) -> int:
    """Defective images that pass when the threshold is put where that many good ones fail."""
    labels, scores = np.array(run.labels), np.array(run.scores[method])
    good = np.sort(scores[labels == 0])[::-1]
    limit = good[min(false_rejects, len(good) - 1)]
    return int((scores[labels == 1] <= limit).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="folder of `make bench-data`")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--goldens", type=int, default=40, help="goldens, half of the good images at most")
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--test", type=int, default=80, help="good and defective images tested, at most")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alpha", type=float, default=0.05, help="false-reject rate asked for")
    parser.add_argument("--random-golden", action="store_true")
    parser.add_argument("--no-alignment", action="store_true")
    parser.add_argument("--out", type=Path, help="scores as JSON")
    options = parser.parse_args()
    if wrong := [w for w in options.weights if not all(w.partition("="))]:
        parser.error(f"--weights {wrong[0]}: expected NAME=FILE")
    try:
        _tables(options)
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


def _tables(options: argparse.Namespace) -> None:
    models = {n: load_difference(Path(f)) for n, _, f in (w.partition("=") for w in options.weights)}
    console = Console(width=160)
    record: dict[str, Any] = {}
    for name in options.sets:
        runs = [
            run_seed(options.bench / name, seed, models, options)
            for seed in track(range(options.seeds), description=name, console=Console(file=sys.stderr))
        ]
        table = Table(title=f"{name}: {options.seeds} seeds, {options.references} reference(s)")
        for column in (
            "",
            "image AUROC",
            "min..max",
            "pooled 95 %",
            "minus full bank",
            "px AUROC",
            "AUPRO",
            "FR",
            "escapes",
            "at bank's FR",
            "ms p50",
        ):
            table.add_column(column)
        for method in runs[0].scores:
            aurocs = [image_auroc(r.labels, r.scores[method]) or 0.0 for r in runs]
            low, high = np.mean([auroc_interval(r.labels, r.scores[method]) or (0, 0) for r in runs], 0)
            paired = [paired_auroc_difference(r.labels, r.scores[method], r.scores[BANK]) for r in runs]
            gain = float(np.mean([p.difference for p in paired if p]))
            bounds = np.mean([p.interval or (0, 0) for p in paired if p], 0)
            pixels = [r.pixels[method] for r in runs if method in r.pixels]
            px = f"{np.mean([p.auroc() or 0 for p in pixels]):.3f}" if pixels else ""
            pro = f"{np.mean([p.aupro() or 0 for p in pixels]):.3f}" if pixels else ""
            ms = f"{np.median(np.concatenate([r.ms[method] for r in runs])):.1f}" if method in runs[0].ms else ""
            spread = f"{min(aurocs):.3f}..{max(aurocs):.3f}"
            rates = np.sum([_rates(r, method, options.alpha) for r in runs], 0)
            n_good = sum(r.labels.count(0) for r in runs)
            n_bad = sum(r.labels.count(1) for r in runs)
            level = sum(_escapes_at(r, method, _rates(r, BANK, options.alpha)[0]) for r in runs)
            table.add_row(method, f"{np.mean(aurocs):.4f}", spread, f"{low:.3f}..{high:.3f}",
                          f"{gain:+.4f} ({bounds[0]:+.3f}..{bounds[1]:+.3f})", px, pro, f"{rates[0] / n_good:.3f}",
                          f"{rates[1] / n_bad:.3f}", f"{level / n_bad:.3f}", ms)  # fmt: skip
        console.print(table)
        record[name] = [vars(r) | {"pixels": None} for r in runs]
    if options.out:
        options.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
