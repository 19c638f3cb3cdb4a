"""The learned difference beside what peers do, on the same images, goldens and registrations.

python -m refdiff.agent.evaluation.scorers --bench bench-data --weights NAME=FILE ... --seeds 5

Rows: patch-kNN (Roth et al. 2022: stride 8 and 16 features, cosine distance to the nearest patch, mean of the largest 1 %)
against the nearest golden and against the whole bank; the training-free difference of this product; every network given.
Each seed draws other goldens from the held-out good images, the rest are tested. Intervals are stratified bootstraps.
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

from refdiff.agent.evaluation.layouts import load_mask, read_mvtec
from refdiff.agent.evaluation.metrics import PixelMetrics, auroc_interval, image_auroc, paired_auroc_difference
from refdiff.memory.golden_bank import Golden, make_golden_id
from refdiff.memory.settings import MemorySettings
from refdiff.model import difference
from refdiff.model.encoder import Features
from refdiff.model.images import decode_image
from refdiff.model.learned_difference import DifferenceModel, load_difference
from refdiff.model.settings import ModelSettings
from refdiff.tools.align import align_cached
from refdiff.tools.retrieve_reference import retrieve_reference
from refdiff.tools.score_difference import fused_map, see
from refdiff.tools.services import Services

PEER, BANK, OURS = "patch-kNN, nearest", "patch-kNN, full bank", "training-free"


@dataclass
class _Scores:
    labels: list[int] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)
    pixels: dict[str, PixelMetrics] = field(default_factory=dict)
    ms: dict[str, list[float]] = field(default_factory=dict)


def _peer_cells(features: Features) -> Tensor:
    """(C, h, w) unit norm: stride 8 and 16 as peers concatenate them."""
    h, w = features.maps[8].shape[-2:]
    up = F.interpolate(features.maps[16][None], size=(h, w), mode="bilinear", align_corners=False)[0]
    return F.normalize(torch.cat([features.maps[8], up]), dim=0)


def _peer_map(query: Tensor, references: Sequence[Tensor]) -> Tensor:
    flat = query.flatten(1).T
    best = torch.stack([(flat @ r.flatten(1)).amax(1) for r in references]).amax(0)
    return (1 - best).view(query.shape[1:])


def _full(cells: np.ndarray, size: tuple[int, int], stride: int, work: tuple[int, int]) -> np.ndarray:
    full = cv2.resize(cells.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(full, (0, 0), stride / 2 * max(size) / max(work))


def run_seed(
    root: Path, goldens: int, seed: int, models: dict[str, DifferenceModel], options: argparse.Namespace
) -> _Scores:
    """One draw of goldens."""
    data = read_mvtec(root)
    draw = random.Random(seed)
    good = [*data.train, *(s.path for s in data.test if not s.defective)]
    bad = [s for s in data.test if s.defective]
    draw.shuffle(good)
    draw.shuffle(bad)
    chosen, rest = good[:goldens], good[goldens:]
    tests: list[tuple[Path, int, Any]] = [(p, 0, None) for p in rest[: options.test]]
    tests += [(s.path, 1, s.mask) for s in bad[: options.test]]
    out = _Scores()
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-scorers-") as folder,
        Services.open(
            MemorySettings(home=Path(folder) / "home", qdrant_url=None), ModelSettings(cache=Path(folder) / "cache")
        ) as services,
    ):
        bank = []
        for path in chosen:
            sha = services.stores.images.put(path.read_bytes())
            golden = Golden(make_golden_id("p", sha), "p", sha)
            features = services.golden_features(golden)
            services.bank.add(golden, features.global_vec, features.patches)
            bank.append(features)
        peers = [_peer_cells(f) for f in bank]
        for path, label, mask_path in tests:
            image = decode_image(path.read_bytes(), name=path.name)
            features = services.encoder.embed(image)
            hits = retrieve_reference(services, features, "p", options.references, (), ())
            if options.random_golden:
                hits = [type(hits[0])(g, 0.0, 0.0) for g in draw.sample(services.bank.list("p"), options.references)]
            pairs = [(h.golden, align_cached(services, image, str(path), h.golden)) for h in hits]
            if options.no_alignment:
                pairs = [(g, replace(a, ok=False)) for g, a in pairs]
            seen = see(services, image, features, pairs)
            mask = load_mask(mask_path, image.shape[:2])[0] if mask_path else None
            rows: dict[str, tuple[np.ndarray, float, int]] = {}
            query = _peer_cells(features)
            started = time.perf_counter()
            cells = _peer_map(query, [_peer_cells(services.golden_features(hits[0].golden))])
            rows[PEER] = (cells.numpy(), difference.image_score(cells), 8)
            out.ms.setdefault(PEER, []).append((time.perf_counter() - started) * 1000)
            cells = _peer_map(query, peers)
            rows[BANK] = (cells.numpy(), difference.image_score(cells), 8)
            started = time.perf_counter()
            own = difference.anomaly_map(difference.descriptors(features), seen.patches)
            reached = difference.judged(seen.patches, tuple(own.shape))  # type: ignore[arg-type]
            own = own * reached
            rows[OURS] = (own.numpy(), difference.image_score(own, reached), 8)
            out.ms.setdefault(OURS, []).append((time.perf_counter() - started) * 1000)
            for name, model in models.items():
                started = time.perf_counter()
                fused, learned = fused_map(seen, model)
                keep = np.kron(reached.numpy(), np.ones((2, 2), bool))
                fused *= keep
                score = difference.image_score(torch.from_numpy(fused), torch.from_numpy(keep), 0.005)
                out.ms.setdefault(name, []).append((time.perf_counter() - started) * 1000)
                rows[name] = (fused, score, 4)
                alone = F.softplus(learned.logits)
                rows[f"{name}, network alone"] = (alone.numpy(), difference.image_score(alone, part=0.005), 4)
                rows[f"{name}, image head"] = (alone.numpy(), learned.image_logit, 4)
            out.labels.append(label)
            for name, (cells_, score, stride) in rows.items():
                out.scores.setdefault(name, []).append(score)
                if data.has_masks and (label == 0 or mask is not None):
                    full = _full(cells_, image.shape[:2], stride, features.work_size)
                    out.pixels.setdefault(name, PixelMetrics()).add(full, mask)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="folder of `make bench-data`")
    parser.add_argument("--sets", nargs="+", required=True)
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--goldens", type=int, default=40)
    parser.add_argument("--references", type=int, default=1)
    parser.add_argument("--test", type=int, default=80, help="good and defective images tested, at most")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--random-golden", action="store_true")
    parser.add_argument("--no-alignment", action="store_true")
    parser.add_argument("--out", type=Path, help="scores as JSON")
    options = parser.parse_args()
    models = {n: load_difference(Path(f)) for n, _, f in (w.partition("=") for w in options.weights)}
    console = Console(width=160)
    record: dict[str, Any] = {}
    for name in options.sets:
        runs = [
            run_seed(options.bench / name, min(options.goldens, 20 if name == "aliens" else 40), seed, models, options)
            for seed in track(range(options.seeds), description=name, console=Console(file=sys.stderr))
        ]
        table = Table(title=f"{name}: {options.seeds} seeds, {options.references} reference(s)")
        for column in (
            "",
            "image AUROC",
            "min..max",
            "pooled 95 %",
            "minus full bank",
            "pixel AUROC",
            "AUPRO",
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
            table.add_row(method, f"{np.mean(aurocs):.4f}", spread, f"{low:.3f}..{high:.3f}",
                          f"{gain:+.4f} ({bounds[0]:+.3f}..{bounds[1]:+.3f})", px, pro, ms)  # fmt: skip
        console.print(table)
        record[name] = [{"labels": r.labels, "scores": r.scores} for r in runs]
    if options.out:
        options.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
