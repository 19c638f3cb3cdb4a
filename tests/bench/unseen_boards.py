"""How well boards that nothing was trained on are read, also from pairs made harder:

    python tests/bench/unseen_boards.py deeppcb --keep-out group50600 --out table.json

deeppcb: folder that holds deeppcb/PCBData. The board groups are left out two at a time (three trainings, or the first
--folds of them) and measured with the network that the others trained: --pairs of a group to train with, --measured to
measure, spread evenly over its list. The group of --keep-out is neither trained on nor measured; with --only it is what is
measured, with the networks of the folds, none of which saw it. --weights keeps the networks, for a measurement of other
code. The same options, seed and code give the same table. --before: the table of another run on the same pairs; the
differences are printed, with paired 95 % intervals (bootstrap over pairs).
"""

from __future__ import annotations

import json
import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from refdiff.agent.evaluation.metrics import Detection, detection_metrics
from refdiff.model.boards.deeppcb import LabelledBox
from refdiff.model.boards.network import load_boards
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.training.boards import BoardRecipe, train_boards
from refdiff.model.training.harder_boards import bent, dimmed, roughened, widened
from refdiff.model.training.pairs import Photo
from refdiff.model.training.sources import deeppcb_groups

_RESAMPLES, _COMPARED = 200, ("mean_ap", "f1", "precision")
SETTINGS = ("plain", "bent", "width", "rough", "dim", "all")
_FOLDS = (("group20085", "group44000"), ("group13000", "group77000"), ("group00041", "group92000"))


def harder(setting: str, photo: RgbImage, template: RgbImage, rng: np.random.Generator) -> tuple[RgbImage, RgbImage]:
    """Photo and template as a setting makes them."""
    for name, change in (("width", widened), ("rough", roughened), ("bent", bent)):
        if setting in (name, "all"):
            template = change(template, rng)
    return (dimmed(photo, rng) if setting in ("dim", "all") else photo), template


def spread(photos: Sequence[Photo], n: int) -> tuple[Photo, ...]:
    """At most n of the photos, evenly over their list."""
    return tuple(photos[i] for i in sorted({round(v) for v in np.linspace(0, len(photos) - 1, min(n, len(photos)))}))


def pair_of(photo: Photo) -> tuple[RgbImage, RgbImage]:
    assert photo.partner is not None
    query, template = (decode_image(p.read_bytes(), name=str(p)) for p in (photo.path, photo.partner))
    return query, template


def changed(
    before: dict[str, list[Detection]],
    after: dict[str, list[Detection]],
    truth: dict[str, list[LabelledBox]],
    seed: int,
) -> str:
    """Differences of mAP, F1 and precision with paired 95 % intervals."""
    if before.keys() != truth.keys():
        raise typer.BadParameter("--before holds other pairs; give both runs the same options")
    names, rng, drawn = sorted(truth), np.random.default_rng(seed), []
    for _ in range(_RESAMPLES):
        sample = {f"{i} {names[j]}": names[j] for i, j in enumerate(rng.integers(len(names), size=len(names)))}
        boxes = {k: truth[n] for k, n in sample.items()}
        then, now = (detection_metrics({k: f[n] for k, n in sample.items()}, boxes) for f in (before, after))
        drawn.append([(getattr(now, m) or 0) - (getattr(then, m) or 0) for m in _COMPARED])
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=0)
    return ", ".join(f"{m} {middle[i]:+.3f} ({low[i]:+.3f} to {high[i]:+.3f})" for i, m in enumerate(_COMPARED))


def main(
    data: Path,
    out: Annotated[Path, typer.Option()],
    keep_out: Annotated[str, typer.Option()] = "group50600",
    only: Annotated[bool, typer.Option(help="Measure the group kept out instead.")] = False,
    weights: Annotated[Path | None, typer.Option(help="Folder of trained folds, reused if there.")] = None,
    before: Annotated[Path | None, typer.Option(help="Table of an earlier run to compare with.")] = None,
    pairs: int = 100,
    measured: int = 40,
    folds: int = len(_FOLDS),
    epochs: int = 6,
    seed: int = 0,
) -> None:
    everything = deeppcb_groups(data)
    groups = {n: replace(s, bad=spread(s.bad, pairs)) for n, s in everything.items()}
    found: dict[str, dict[str, list[Detection]]] = defaultdict(dict)
    truth: dict[str, list[LabelledBox]] = {}
    seconds = []
    folder = weights or out.with_suffix(".weights")
    for left_out in _FOLDS[:folds]:
        path = folder / left_out[0] / "boards.safetensors"
        if not path.exists():
            recipe = BoardRecipe(epochs=epochs, seed=seed, left_out=(*left_out, keep_out))
            train_boards(recipe, groups, path.parent)
            print("trained without", *left_out, flush=True)
        model = load_boards(path)
        for photo in [p for g in ([keep_out] if only else left_out) for p in spread(everything[g].bad, measured)]:
            name = f"{left_out[0]} {photo.path.name}"
            truth[name] = [LabelledBox(*b) for b in photo.boxes]
            pair = pair_of(photo)
            for setting in SETTINGS:
                rng = np.random.default_rng([seed, zlib.crc32(f"{photo.path.name} {setting}".encode())])
                query, template = harder(setting, *pair, rng)
                started = time.process_time()
                boxes = model.detect(query, template)
                seconds.append(time.process_time() - started)
                found[setting][name] = [Detection(*b.box, confidence=b.confidence, type=b.type) for b in boxes]
    table = {}
    earlier = json.loads(before.read_text(encoding="utf-8")) if before else None
    print(f"{len(truth)} pairs, {1000 * float(np.median(seconds)):.1f} ms of CPU per image (median)")
    for setting in SETTINGS:
        m = detection_metrics(found[setting], truth)
        by_type = {
            kind: detection_metrics(
                {k: [d for d in v if d.type == kind] for k, v in found[setting].items()},
                {k: [b for b in v if b.type == kind] for k, v in truth.items()},
            ).precision
            for kind in m.ap
        }
        print(
            f"{setting:6} mAP {m.mean_ap:.3f} F1 {m.f1:.3f} precision {m.precision:.3f} recall {m.recall:.3f}; precision",
            *(f"{k} {v:.2f}" for k, v in by_type.items() if v is not None),
            flush=True,
        )
        if earlier:
            then = {k: [Detection(*d) for d in v] for k, v in earlier[setting]["found"].items()}
            print(f"       changed: {changed(then, found[setting], truth, seed)}", flush=True)
        table[setting] = {
            "mAP": m.mean_ap,
            "F1": m.f1,
            "precision": m.precision,
            "recall": m.recall,
            "by type": by_type,
            "found": {
                k: [(d.x0, d.y0, d.x1, d.y1, d.confidence, d.type) for d in v] for k, v in found[setting].items()
            },
        }
    out.write_text(json.dumps(table), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
