"""The recipe of the difference network: pool of pairs -> trained weights, validation curves, model card.

Resumable: pool shards and checkpoints survive a crash, and the same command continues where it stopped. What is kept is the
exponential moving average of the weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from refdiff.model.difference.comparing import pixel_input
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.matching import STRIDES
from refdiff.model.difference.network import DifferenceConfig, DifferenceNetwork, DifferenceOutput
from refdiff.model.difference.scorer import read_network
from refdiff.model.errors import InputError
from refdiff.model.files import remove_leftovers
from refdiff.model.number_format import autocast
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.training.pairs import NO_TYPE, Source
from refdiff.model.training.pool import (
    SHARD,
    Batch,
    PoolPlan,
    batches,
    build_pool,
    count_batches,
    read_shard,
    registered_pairs,
    source_names,
)
from refdiff.model.weights_file import need_space, save_tensors, write_weights

_EMA = 0.998
_VALIDATION = 0.06  # part of the shards
_CHECKPOINT_S = 60.0
_KEPT = 0.5  # share of the weights that training went on from in what is kept: it forgets less (Wortsman et al., 2022)


@dataclass(frozen=True)
class DifferenceRecipe:
    """How the difference network is trained."""

    pairs: int = 15000  # size of the pool
    epochs: float = 4  # passes over the pool
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 1e-2
    width: int = 64  # channels of the fused maps
    seed: int = 0
    workers: int = 2  # processes that make pairs
    left_out: tuple[str, ...] = ()  # sources (by name prefix) that are in the pool but not trained on
    real_defects: bool = True  # use photos of real defects too
    encoder: str | None = None  # folder of a transformers backbone, None = the packaged one
    start: str | None = None  # weights to go on from, on registered pairs; None: from nothing, on drawn pairs


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    curves: list[dict[str, float]] = field(default_factory=list)


def losses(out: DifferenceOutput, batch: Batch) -> dict[str, Tensor]:
    """The weighted parts of the loss; their sum is minimised."""
    logits = out.map_logits[:, 0]  # (B, h, w)
    known = batch.known[:, None, None] * ~batch.unsure  # (B, h, w)
    plain = F.binary_cross_entropy_with_logits(logits, batch.mask, reduction="none")
    p = torch.sigmoid(logits)
    focal = plain * torch.where(batch.mask > 0, 4.0 * (1 - p), p) ** 1.0
    parts = {"map": 4 * (focal * known).sum() / known.sum().clamp_min(1)}
    overlap = (p * batch.mask * known).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / ((p * known).sum((1, 2)) + (batch.mask * known).sum((1, 2)) + 1)
    parts["dice"] = 0.5 * (dice * batch.known).sum() / batch.known.sum().clamp_min(1)
    # the strongest false places of every pair, and the strongest place of a pair of which only the label is known
    outside = torch.where((batch.mask > 0) | batch.unsure, torch.full_like(logits, -30.0), logits).flatten(1)
    worst = outside.topk(max(1, outside.shape[1] // 200), 1).values
    parts["worst"] = 0.3 * (F.softplus(worst).mean(1) * batch.known).sum() / batch.known.sum().clamp_min(1)
    weak = (1 - batch.known) * batch.label
    strongest = logits.flatten(1).topk(max(1, logits[0].numel() // 200), 1).values.mean(1)
    parts["weak"] = 0.3 * (F.softplus(-strongest) * weak).sum() / weak.sum().clamp_min(1)
    parts["image"] = F.binary_cross_entropy_with_logits(out.image_logits, batch.label)
    typed = (batch.types != NO_TYPE) & (batch.mask > 0)
    if typed.any():
        chosen = out.type_logits.permute(0, 2, 3, 1)[typed]  # (n, T)
        # a large defect must not outvote the small ones
        size = typed.sum((1, 2)).clamp_min(1)[:, None, None].expand_as(typed)[typed].float()
        ce = F.cross_entropy(chosen, batch.types[typed], reduction="none")
        parts["type"] = 0.2 * (ce / size).sum() / (1 / size).sum()
    certain = batch.structural >= 0
    if certain.any():
        parts["global"] = 0.3 * F.binary_cross_entropy_with_logits(
            out.global_logits[certain], batch.structural[certain]
        )
    return parts


def forward(net: DifferenceNetwork, batch: Batch) -> DifferenceOutput:
    """In the number format of this CPU where that is safe, else float32."""
    pixels = pixel_input(batch.query, batch.reference, batch.covered)
    with autocast():
        out = net(batch.matched, pixels)
    return DifferenceOutput(*(getattr(out, n).float() for n in out.__dataclass_fields__))


def channel_scales(shards: Sequence[Path]) -> dict[int, Tensor]:
    """Standard deviation of every encoder channel over some shards."""
    total: dict[int, list[Tensor]] = {s: [] for s in STRIDES}
    for path in shards[:8]:
        batch = read_shard(path, range(0, SHARD, 4))
        for s in STRIDES:
            total[s].append(batch.matched.query[s].transpose(0, 1).flatten(1))
    return {s: torch.cat(v, 1).std(1).clamp_min(1e-3) for s, v in total.items()}


@torch.inference_mode()
def validate(
    net: DifferenceNetwork, shards: Sequence[Path], names: Sequence[str], keep: Sequence[int]
) -> dict[str, float]:
    """Image AUROC over all and per source, pixel average precision, type accuracy, loss."""
    net.eval()
    labels, scores, sources, pixel_p, pixel_y, right, typed, loss = [], [], [], [], [], 0, 0, []
    for path in shards:
        batch = read_shard(path)
        out = forward(net, batch)
        mine = torch.isin(batch.source, torch.tensor(list(keep)))
        labels += batch.label[mine].tolist()
        scores += out.image_logits[mine].tolist()
        sources += batch.source[mine].tolist()
        known = (batch.known > 0) & mine
        pixel_p.append(out.map_logits[known, 0, ::2, ::2].flatten())
        pixel_y.append(batch.mask[known][:, ::2, ::2].flatten())
        where = (batch.types != NO_TYPE) & (batch.mask > 0) & mine[:, None, None]
        right += int((out.type_logits.argmax(1)[where] == batch.types[where]).sum())
        typed += int(where.sum())
        loss.append(float(sum(losses(out, batch).values())))
    net.train()
    found = {
        "loss": float(np.mean(loss)),
        "image_auroc": _auroc(labels, scores),
        "pixel_ap": _average_precision(torch.cat(pixel_y).numpy() > 0, torch.cat(pixel_p).numpy()),
        "type_accuracy": right / max(1, typed),
    }
    for i in sorted(set(sources)):
        at = [j for j, s in enumerate(sources) if s == i]
        auroc = _auroc([labels[j] for j in at], [scores[j] for j in at])
        if not math.isnan(auroc):
            found[f"image_auroc/{names[i]}"] = auroc
    return found


def _average_precision(marked: NDArray[np.bool_], scores: NDArray[np.float32]) -> float:
    from sklearn.metrics import average_precision_score  # as in _auroc

    return float(average_precision_score(marked, scores))


def _auroc(labels: Sequence[float], scores: Sequence[float]) -> float:
    from sklearn.metrics import roc_auc_score  # takes a second to import: servers fit networks and need none

    return float(roc_auc_score(labels, scores)) if 0 < sum(labels) < len(labels) else math.nan


def train_difference(
    recipe: DifferenceRecipe,
    sources: Sequence[Source],
    out: Path,
    *,
    pool: Path | None = None,
    progress: Progress = silent,
) -> Path:
    """Train and write `out/difference.safetensors`, `difference.json`, `MODEL_CARD.md`, `curves.png`.

    pool: folder of an existing or shared pool, default `out/pool`; with `recipe.start` that of `refdiff train pairs`. Raises
    InputError (a pool of other photos, weights of another encoder), StorageError (the disk is full).
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    pool = pool or out / "pool"
    # opened here first: a folder without a backbone must not leave a pool behind
    encoder = Encoder(ModelSettings(encoder=Path(recipe.encoder) if recipe.encoder else None))
    names = source_names(sources)
    if recipe.start:
        if recipe.encoder:
            raise InputError("registered pairs are of the packaged encoder; leave out --encoder, or draw pairs instead")
        shards = registered_pairs(pool, sources)
    else:
        plan = PoolPlan(recipe.seed, tuple(sources), recipe.encoder, encoder.digest, encoder.channels)
        shards = _drawn(plan, pool, recipe, progress)
    keep = [i for i, n in enumerate(names) if not any(n.startswith(p) for p in recipe.left_out)]
    n_val = max(1, round(_VALIDATION * len(shards)))
    val, train = shards[:n_val], shards[n_val:] or shards
    torch.manual_seed(recipe.seed)
    net = _network_to_train(recipe, train, encoder.digest)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}], lr=recipe.lr
    )
    per_epoch = count_batches(train, recipe.batch, keep, recipe.real_defects)
    if not per_epoch:
        raise InputError(f"{pool}: no pairs are left to train on; leave out fewer sources")
    total = max(1, round(per_epoch * recipe.epochs))
    identity = _identity(recipe, pool)
    state = _restore(out, net, average, optimizer, identity)
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    while state.step < total:
        epoch, skip = divmod(state.step, per_epoch)
        order = batches(train, recipe.batch, np.random.default_rng([recipe.seed, epoch]), keep,
                        real=recipe.real_defects, skip=skip)  # fmt: skip
        for batch in order:
            warm = min(1.0, (state.step + 1) / 100)
            lr = recipe.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * state.step / total)))
            for group in optimizer.param_groups:
                group["lr"] = lr
            parts = losses(forward(net, batch), batch)
            loss = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            state.step += 1
            average_into(average, net, min(_EMA, state.step / (state.step + 10)))
            state.seconds = time.monotonic() - started
            progress("training", state.step, total, f"loss {float(loss.detach()):.3f}")
            if time.monotonic() - saved > _CHECKPOINT_S:
                _checkpoint(out, net, average, optimizer, state, identity)
                saved = time.monotonic()
            if state.step >= total:
                break
        state.curves.append({"step": state.step} | validate(_with(net, average), val, names, keep))
        _checkpoint(out, net, average, optimizer, state, identity)
        curve = state.curves[-1]
        progress(
            "training", state.step, total, f"val image {curve['image_auroc']:.3f} pixel AP {curve['pixel_ap']:.3f}"
        )
    if recipe.start:
        average_into(average, read_network(Path(recipe.start))[0], 1 - _KEPT)
    final = _with(net, average)
    return _finish(recipe, sources, final, state, validate(final, val, names, keep), out, encoder.digest)


def _drawn(plan: PoolPlan, pool: Path, recipe: DifferenceRecipe, progress: Progress) -> list[Path]:
    """The shards of drawn pairs, made where they are missing."""
    described = pool / "pool.json"
    wanted = plan.described
    started_already = described.exists() and any(pool.glob("*.safetensors"))
    found = json.loads(described.read_text()) if started_already else wanted
    if found != wanted:
        raise InputError(f"{pool} holds pairs of other photos, seed or encoder; choose another --out or remove it")
    return build_pool(plan, pool, recipe.pairs, recipe.workers, lambda d, t: progress("pairs", d, t))


def _network_to_train(recipe: DifferenceRecipe, shards: Sequence[Path], encoder: str) -> DifferenceNetwork:
    """A new one, or that of the weights to go on from, whose batch statistics stay."""
    if recipe.start:
        net, trained_on, _ = read_network(Path(recipe.start))
        if trained_on != encoder:
            raise InputError(f"{recipe.start}: trained on another encoder; give its folder with --encoder")
        return net.requires_grad_(True)
    scales = channel_scales(shards)
    net = DifferenceNetwork(DifferenceConfig({s: len(scale) for s, scale in scales.items()}, width=recipe.width))
    for s, scale in scales.items():
        net.get_buffer(f"scale_{s}").copy_(scale)
    return net


def average_into(average: dict[str, Tensor], net: DifferenceNetwork, decay: float) -> None:
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:
                average[name].copy_(value)


def _with(net: DifferenceNetwork, average: dict[str, Tensor]) -> DifferenceNetwork:
    other = DifferenceNetwork(net.config)
    other.load_state_dict(average)
    return other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _identity(recipe: DifferenceRecipe, pool: Path) -> str:
    """What must not change when a run resumes; more processes or a machine of another size may."""
    of_pool = json.loads((pool / "pool.json").read_text(encoding="utf-8"))
    return json.dumps({k: v for k, v in asdict(recipe).items() if k != "workers"} | {"pool": of_pool}, sort_keys=True)


def _checkpoint(
    out: Path,
    net: DifferenceNetwork,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    state: _State,
    identity: str,
) -> None:
    tensors = {f"net.{k}": v.contiguous() for k, v in net.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in average.items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v).contiguous() for k, v in values.items()}
    need_space(out, sum(t.numel() * t.element_size() for t in tensors.values()), "a checkpoint takes")
    metadata = {"state": json.dumps(asdict(state)), "recipe": identity}
    save_tensors(tensors, out / "checkpoint.safetensors", metadata)


def _restore(
    out: Path,
    net: DifferenceNetwork,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: str,
) -> _State:
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return _State()
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        if file.metadata().get("recipe") != identity:
            raise InputError(
                f"{path} is of other options or photos; use the same ones, or choose another --out to train anew"
            )
        state = _State(**json.loads(file.metadata()["state"]))
    tensors = load_file(path)
    net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    for k in average:
        average[k].copy_(tensors[f"average.{k}"])
    saved: dict[int, dict[str, Tensor]] = {}
    for k, v in tensors.items():
        if k.startswith("optimizer."):
            _, i, name = k.split(".", 2)
            saved.setdefault(int(i), {})[name] = v
    optimizer.load_state_dict(optimizer.state_dict() | {"state": saved})
    return state


def _finish(
    recipe: DifferenceRecipe,
    sources: Sequence[Source],
    net: DifferenceNetwork,
    state: _State,
    validation: dict[str, float],
    out: Path,
    encoder: str,
) -> Path:
    path = out / "difference.safetensors"
    used = [s for s in sources if not any(s.name.startswith(p) for p in recipe.left_out)]
    about = {
        "config": asdict(net.config),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "start" and not (recipe.start and k == "pairs")},
        "sources": [{"name": s.name, "good": len(s.good), "defective": len(s.bad), "licence": s.licence} for s in used],
        "validation": validation,
        "encoder": encoder,
        "started_from": _digest(recipe.start),
        "parameters": sum(p.numel() for p in net.parameters()),
        "training_minutes": round(state.seconds / 60, 1),
    }
    about = write_weights(path, "difference", net.state_dict(), about)
    (out / "MODEL_CARD.md").write_text(_card(about))
    _plot(state.curves, out / "curves.png")
    return path


def _digest(start: str | None) -> str | None:
    return read_network(Path(start))[2] if start else None


def _card(about: dict[str, Any]) -> str:
    rows = "\n".join(f"| {s['name']} | {s['good']} | {s['defective']} | {s['licence']} |" for s in about["sources"])
    start = f"\n- goes on from `{about['started_from']}`, on registered pairs" if about["started_from"] else ""
    metrics = "\n".join(f"| {k} | {v:.4g} |" for k, v in about["validation"].items()) or "| not measured | |"
    return f"""# RefDiff difference network

Research use only, because of the data below.

- {about["parameters"]:,} parameters, trained {about["training_minutes"]} min on a CPU
- sha256 `{about["sha256"]}`, commit `{about["commit"]}`, {about["created_at"]}
- recipe: `{json.dumps(about["recipe"])}`{start}

Besides rendered parts and synthetic defects (`model/synthesis/`):

| data | good | defective | licence |
|---|---|---|---|
{rows}

Validation pairs (drawn as the training pairs are, other seeds; no measure of unseen products):

| metric | value |
|---|---|
{metrics}
"""


def _plot(curves: Sequence[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    steps = [c["step"] for c in curves]
    for name in ("image_auroc", "pixel_ap", "type_accuracy"):
        axes[0].plot(steps, [c[name] for c in curves], marker="o", label=name.replace("_", " "))
    axes[1].plot(steps, [c["loss"] for c in curves], marker="o", color="black", label="validation loss")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
