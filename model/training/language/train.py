"""The recipe of the language model: projector first, then instruction tuning with LoRA, as LLaVA does it.

Stage 1 trains the projector (and the rows of the new tokens) on judged pairs with the language base frozen; stage 2 adds
LoRA to every linear layer of the base and mixes judged pairs with recorded conversations. Only assistant messages carry a
loss. Resumable: encoded pairs and checkpoints survive a crash, and the same command continues where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refdiff.model.difference.scorer import PACKAGED as DIFFERENCE
from refdiff.model.difference.scorer import read_network
from refdiff.model.errors import InputError
from refdiff.model.files import remove_leftovers, write_atomic
from refdiff.model.language.base_weights import fetch_wheel, read_base
from refdiff.model.language.build import assemble, write_tokenizer
from refdiff.model.language.folder import own_difference
from refdiff.model.language.processor import Processor
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.training.language.alignment import align_projector
from refdiff.model.training.language.checkpoint import (
    CHECKPOINT,
    TrainingState,
    read_checkpoint,
    restore_moments,
    save_checkpoint,
)
from refdiff.model.training.language.data import read_lines, read_tools, rows_of
from refdiff.model.training.language.examples import Example, TrainingData, schedule, training_data
from refdiff.model.training.language.recipe import LanguageRecipe
from refdiff.model.training.language.report import WEIGHTS_NAME, validate, write_report
from refdiff.model.training.language.student import Student, loss_of
from refdiff.model.training.pairs import Source
from refdiff.model.weights_file import read_weights

_CHECKPOINT_S = 120.0
_VALIDATED = 100  # held-out examples looked at along the way; all of them at the end would take minutes


def train_language(
    recipe: LanguageRecipe,
    sources: Sequence[Source],
    recordings: Path,
    out: Path,
    *,
    tools: Sequence[dict[str, Any]] | None = None,
    settings: ModelSettings | None = None,
    progress: Progress = silent,
) -> Path:
    """Train and write `out/language.safetensors`, `language.json`, `LANGUAGE_CARD.md`, `language_curves.png`, and beside
    them the difference network that it was trained with.

    recordings: folder of `refdiff train record`, whose `tools.json` holds the tools' schemas.
    Raises InputError, StorageError, UnavailableError (the language base).
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    settings = settings or ModelSettings()
    if settings.encoder is not None:
        raise InputError("the language model reads the packaged encoder's features; unset REFDIFF_ENCODER")
    start = own_difference(Path(recipe.start)) if recipe.start else None
    weights = settings.difference_weights or (start if start and start.is_file() else DIFFERENCE)
    difference_sha = read_network(weights)[2]
    if tools is None:
        tools = read_tools(recordings)
    recorded = hashlib.sha256(json.dumps(read_lines(recordings)).encode()).hexdigest()
    earlier, started_from = _earlier_weights(recipe.start)
    identity = json.dumps({k: v for k, v in asdict(recipe).items() if k not in ("workers", "start")} | started_from | {
        "difference": difference_sha, "recordings": recorded, "sources": {s.name: len(s.good) + len(s.bad) for s in sources},
    }, sort_keys=True)  # fmt: skip
    described = out / "recipe.json"
    if described.exists() and described.read_text() != identity:
        raise InputError(
            f"{out} holds a run of another recipe, other recordings, sources or difference weights; choose another --out "
            "or remove it"
        )
    described.write_text(identity)
    base = read_base(fetch_wheel(settings.cache))
    (out / "tokenizer").mkdir(exist_ok=True)
    write_tokenizer(base, out / "tokenizer")
    processor = Processor(out / "tokenizer")
    data = training_data(recipe, sources, recordings, out, processor, tools, weights, progress)
    model = assemble(base, None, weights)
    torch.manual_seed(recipe.seed)
    trained_on = sorted({r for e in (*data.readings, *data.talks) for r in e.rows})
    model.projector.fit_scales(rows_of(data.seen, trained_on))
    student = Student(model, recipe.rank)
    complete = _load_earlier(student, earlier, recipe.start)
    if not complete and not (out / CHECKPOINT).exists():
        align_projector(student, processor, recipe, data, progress)
    plan = schedule(recipe, data)
    state = _run(student, recipe, data, plan, out, progress)
    for suffix in (".safetensors", ".json"):  # the language model goes on seeing with it when inspections get another
        seeing = weights.with_suffix(suffix).read_bytes()
        write_atomic(own_difference(out / WEIGHTS_NAME).with_suffix(suffix), seeing, private=False)
    return write_report(student, recipe, data, state, out, difference_sha, started_from)


def _earlier_weights(start: str | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of the weights to start from, and what the card says of them. Raises StorageError."""
    if start is None:
        return {}, {}
    tensors, about, digest = read_weights(Path(start), "language")
    before = about.get("tokens", 0) + about.get("started_from", {}).get("tokens", 0)
    return tensors, {"started_from": {"sha256": digest, "tokens": before}}


def _load_earlier(student: Student, earlier: dict[str, Tensor], start: str | None) -> bool:
    """Give the student the earlier weights, with the scales of their training; False if some of its parts are new.

    Raises InputError: weights of another rank or kind.
    """
    own = {k: v.shape for k, v in student.trained().items()}
    new = {k for k in own if k not in earlier and k.startswith("projector.")}
    if earlier and {k: v.shape for k, v in earlier.items()} != {k: v for k, v in own.items() if k not in new}:
        raise InputError(f"{start}: weights of another rank or kind; leave out --start to begin anew")
    student.load(earlier)
    return not new


def _parameter_groups(student: Student, recipe: LanguageRecipe, stage: int) -> list[dict[str, Any]]:
    lora = [p for layer in student.lora.values() for p in (layer.A, layer.B)]
    for p in lora:
        p.requires_grad_(stage == 2)
    seeing = [{"params": [*student.projector.parameters(), student.rows], "lr": recipe.projector_lr / stage}]
    return seeing + ([{"params": lora, "lr": recipe.lora_lr}] if stage == 2 else [])


def _run(student: Student, recipe: LanguageRecipe, data: TrainingData, plan: list[tuple[int, list[Example]]], out: Path,
         progress: Progress) -> TrainingState:  # fmt: skip
    """Train on what is left of the plan, from the last checkpoint if there is one."""
    state, moments = read_checkpoint(student, out)
    stage = 0
    lengths = {s: sum(1 for p in plan if p[0] == s) for s in (1, 2)}
    optimizer: torch.optim.Optimizer | None = None
    started, saved = time.monotonic() - state.seconds, time.monotonic()
    recent: list[float] = []
    while state.step < len(plan):
        now, batch = plan[state.step]
        if now != stage:
            stage = now
            optimizer = torch.optim.AdamW(
                _parameter_groups(student, recipe, stage), betas=(0.9, 0.98), weight_decay=0.01
            )
            rates = [g["lr"] for g in optimizer.param_groups]
            if moments:
                restore_moments(optimizer, moments)
                moments = {}
        assert optimizer is not None
        done = state.step - (lengths[1] if stage == 2 else 0)
        shape = min(1.0, (done + 1) / 50) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done / lengths[stage])))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * shape
        loss, _ = loss_of(student, batch, data.seen)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        state.step += 1
        state.tokens += sum(len(e.ids) for e in batch)
        state.seconds = time.monotonic() - started
        recent = [*recent[-49:], float(loss.detach())]
        speed = state.tokens / state.seconds
        progress("training", state.step, len(plan), f"stage {stage}, loss {np.mean(recent):.3f}, {speed:.0f} tokens/s")
        if state.step % max(50, len(plan) // 5) == 0 or state.step == len(plan):
            some = data.val[:: max(1, len(data.val) // _VALIDATED)]
            state.curves.append({"step": state.step, "tokens": state.tokens, "loss": float(np.mean(recent))}
                                | validate(student, some, data.seen))  # fmt: skip
            progress(
                "validation", state.step, len(plan), json.dumps({k: round(v, 3) for k, v in state.curves[-1].items()})
            )
        if time.monotonic() - saved > _CHECKPOINT_S or state.step == len(plan):
            save_checkpoint(student, optimizer, state, out)
            saved = time.monotonic()
    return state
