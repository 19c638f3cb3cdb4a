"""The recipe of the board network: DeepPCB pairs with boxes -> trained weights and their card. A few minutes on a CPU."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from refdiff.model.boards.network import (
    CROP_PX,
    BoardNetwork,
    Box,
    contrast_pair,
    crop,
    overlap,
    propose,
    to_network,
    topology_of,
    view_of,
)
from refdiff.model.defect_types import BOARD_TYPES
from refdiff.model.errors import InputError
from refdiff.model.images import decode_image
from refdiff.model.number_format import autocast
from refdiff.model.progress import Progress, silent
from refdiff.model.training.harder_boards import bent, roughened, widened
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.weights_file import write_weights

_SHIFT_PX = 12  # training crops move by as much
_STORED_PX = CROP_PX + 2 * _SHIFT_PX
_SMALLEST_PX = 64  # side of a training crop that is zoomed in most
# what a defect is called when copper and board change places: a cut becomes a bridge, a hole an island
_DUAL = {
    "open": "short",
    "short": "open",
    "mousebite": "spur",
    "spur": "mousebite",
    "copper": "pin-hole",
    "pin-hole": "copper",
}
_EXCHANGED = torch.tensor([0, *(1 + BOARD_TYPES.index(_DUAL[t]) for t in BOARD_TYPES)])
_MOST_HARMLESS = 40  # places of one pair that are no defect; rough edges have hundreds, all alike
_EXTRA = 2  # proposals made up for every true box, so none is learned from its lucky proposals alone


@dataclass(frozen=True)
class BoardRecipe:
    """How long and how fast the board network trains."""

    epochs: int = 6  # passes over the crops
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0
    most: int = 100  # pairs of one group, spread evenly over it: more of one board teach little of others
    harder: float = 0.5  # share of the pairs whose template is bent, widened or roughened
    left_out: tuple[str, ...] = ()  # board groups (by name suffix) not trained on


@dataclass(frozen=True)
class _Crops:
    """N crops to train on."""

    pairs: Tensor  # (N, 2, 104, 104) uint8
    topology: Tensor  # (N, 2, 6): as they are, and with copper and board exchanged
    kind: Tensor  # (N,), 0 = no defect
    box: Tensor  # (N, 4) px of the crop relative to its centre


def train_boards(recipe: BoardRecipe, groups: Mapping[str, Source], out: Path, *, progress: Progress = silent) -> Path:
    """Train on board groups (name -> pairs) and write `out/boards.safetensors` and `boards.json`.

    Raises InputError: nothing is left to train on, too few places to learn from, a template of another size.
    """
    started = time.monotonic()
    used = {n: s for n, s in groups.items() if n not in recipe.left_out}
    used = {n: replace(s, bad=_spread(s.bad, recipe.most)) for n, s in used.items()}
    photos = [p for s in used.values() for p in s.bad]
    if not photos:
        raise InputError("no board group is left to train on")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    crops = _collect(photos, recipe.harder, rng, lambda d: progress("crops", d, len(photos)))
    net = BoardNetwork()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    per_epoch = len(crops.kind) // recipe.batch
    if not per_epoch:
        raise InputError(
            f"only {len(crops.kind)} places to learn from, {recipe.batch} or more are needed; give more pairs"
        )
    total, step = per_epoch * recipe.epochs, 0
    for _ in range(recipe.epochs):
        order = torch.from_numpy(rng.permutation(len(crops.kind)))
        for i in range(per_epoch):
            rows = order[i * recipe.batch : (i + 1) * recipe.batch]
            pair, topology, kind, box = _augmented(crops, rows, rng)
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / 50)
                group["lr"] = recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / total)))
            with autocast():
                logits, corrections = net(pair, topology)
            found = kind > 0
            loss = F.cross_entropy(logits.float(), kind, label_smoothing=0.02)
            if found.any():
                loss = loss + 2 * F.smooth_l1_loss(corrections.float()[found], box[found], beta=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            progress("training", step, total, f"loss {float(loss.detach()):.3f}")
    path = out / "boards.safetensors"
    about = {
        "recipe": asdict(recipe),
        "sources": [{"name": n, "pairs": len(s.bad), "licence": s.licence} for n, s in used.items()],
        "crops": len(crops.kind),
        "parameters": sum(p.numel() for p in net.parameters()),
        "training_minutes": round((time.monotonic() - started) / 60, 1),
    }
    card = write_weights(path, "boards", net.state_dict(), about)
    (out / "BOARDS_CARD.md").write_text(_card(card), encoding="utf-8")
    return path


def _card(about: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {s['name']} | {s['pairs']} | {s['licence']} |" for s in about["sources"])
    return f"""# RefDiff board network

Research use only, because of the data below. Used by `refdiff evaluate` on data in the DeepPCB layout.

- {about["parameters"]:,} parameters, {about["crops"]:,} crops, trained {about["training_minutes"]} min on a CPU
- sha256 `{about["sha256"]}`, commit `{about["commit"]}`, {about["created_at"]}
- recipe: `{json.dumps(about["recipe"])}`

| board group | pairs | licence |
|---|---|---|
{rows}
"""


def _collect(
    photos: Sequence[Photo], harder: float, rng: np.random.Generator, progress: Callable[[int], None]
) -> _Crops:
    pairs: list[NDArray[np.uint8]] = []
    topology: list[NDArray[np.float32]] = []
    kinds: list[int] = []
    boxes: list[Box] = []
    for done, photo in enumerate(photos):
        assert photo.partner is not None
        query, reference = (decode_image(p.read_bytes(), name=str(p)) for p in (photo.path, photo.partner))
        if query.shape != reference.shape:
            raise InputError(
                f"{photo.path}: {query.shape[:2]} px, its template {reference.shape[:2]}; they must be equal"
            )
        if rng.random() < harder:
            for change in (widened, roughened, bent):
                if rng.random() < 0.5:
                    reference = change(reference, rng)
        pair = contrast_pair(query, reference)
        proposals = propose(pair) + [_made_up(b[:4], rng) for b in photo.boxes for _ in range(_EXTRA)]
        harmless = 0
        for proposal in (proposals[i] for i in rng.permutation(len(proposals))):
            truth = _truth_of(proposal, photo)
            if truth is None:
                continue
            kind, box = truth
            harmless += kind == 0
            if kind == 0 and harmless > _MOST_HARMLESS:
                continue
            x, y, scale = view_of(proposal)
            stored = crop(pair, (x, y, scale), _STORED_PX)
            pairs.append(stored)
            inner = stored[:, _SHIFT_PX:-_SHIFT_PX, _SHIFT_PX:-_SHIFT_PX]
            topology.append(np.stack([topology_of(inner), topology_of(255 - inner)]))
            kinds.append(kind)
            boxes.append(((box[0] - x) / scale, (box[1] - y) / scale, (box[2] - x) / scale, (box[3] - y) / scale))
        progress(done + 1)
    if not pairs:
        raise InputError("photos and templates differ nowhere; there is nothing to learn from")
    return _Crops(
        torch.from_numpy(np.stack(pairs)),
        torch.from_numpy(np.stack(topology)),
        torch.tensor(kinds),
        torch.tensor(boxes, dtype=torch.float32),
    )


def _spread(photos: tuple[Photo, ...], most: int) -> tuple[Photo, ...]:
    """At most so many of the photos, evenly over their list."""
    return photos if len(photos) <= most else tuple(photos[i * len(photos) // most] for i in range(most))


def _made_up(box: tuple[int, int, int, int], rng: np.random.Generator) -> Box:
    """What a proposal for a true box might be: smaller, and not quite in the middle."""
    w, h = box[2] - box[0], box[3] - box[1]
    cx, cy = (box[0] + box[2]) / 2 + rng.normal(0, 0.12) * w, (box[1] + box[3]) / 2 + rng.normal(0, 0.12) * h
    half_w, half_h = w * rng.uniform(0.1, 0.45), h * rng.uniform(0.1, 0.45)
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def _truth_of(proposal: Box, photo: Photo) -> tuple[int, Box] | None:
    """(kind, box) that a proposal stands for, kind 0 for nothing; None where that is not clear."""
    cx, cy = (proposal[0] + proposal[2]) / 2, (proposal[1] + proposal[3]) / 2
    area = (proposal[2] - proposal[0]) * (proposal[3] - proposal[1])
    inside = [b for b in photo.boxes if b[0] <= cx <= b[2] and b[1] <= cy <= b[3]]
    touching = [b for b in photo.boxes if overlap(proposal, b[:4]) > 0]
    best = max(inside or touching, key=lambda b: overlap(proposal, b[:4]), default=None)
    if best is None:
        return 0, proposal
    w = min(proposal[2], best[2]) - max(proposal[0], best[0])
    h = min(proposal[3], best[3]) - max(proposal[1], best[1])
    if inside or overlap(proposal, best[:4]) > 0.15 or w * h > 0.7 * area:
        return 1 + BOARD_TYPES.index(best[4]), best[:4]
    return (0, proposal) if w * h < 0.3 * area else None


def _augmented(crops: _Crops, rows: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A batch, zoomed, shifted, mirrored, turned, or with copper and board exchanged; boxes become corrections."""
    pair, kind, box = crops.pairs[rows], crops.kind[rows], crops.box[rows]
    side = int(rng.integers(_SMALLEST_PX, _STORED_PX + 1)) if rng.random() < 0.7 else CROP_PX
    room = (_STORED_PX - side) // 2
    dx, dy = (int(v) for v in rng.integers(-min(room, _SHIFT_PX), min(room, _SHIFT_PX) + 1, 2))
    x, y = room + dx, room + dy
    pair = pair[..., y : y + side, x : x + side]
    box = (box - torch.tensor([dx, dy, dx, dy], dtype=torch.float32)) * (CROP_PX / side)
    if side != CROP_PX:
        resized = F.interpolate(pair.float(), (CROP_PX, CROP_PX), mode="bilinear", align_corners=False, antialias=True)
        pair = resized.round().to(torch.uint8)
    if rng.random() < 0.5:
        pair = pair.flip(-1)
        box = torch.stack([-box[:, 2], box[:, 1], -box[:, 0], box[:, 3]], 1)
    if rng.random() < 0.5:
        pair = pair.flip(-2)
        box = torch.stack([box[:, 0], -box[:, 3], box[:, 2], -box[:, 1]], 1)
    if rng.random() < 0.5:
        pair = pair.transpose(-1, -2)
        box = box[:, [1, 0, 3, 2]]
    exchanged = rng.random() < 0.3
    if exchanged:
        pair, kind = 255 - pair, _EXCHANGED[kind]
    topology = crops.topology[rows, int(exchanged)]
    half = CROP_PX / 2
    correction = torch.stack([(box[:, 0] + box[:, 2]) / 2, (box[:, 1] + box[:, 3]) / 2, box[:, 2] - box[:, 0],
                              box[:, 3] - box[:, 1]], 1) / half  # fmt: skip
    return to_network(pair), topology, kind, correction
