"""Checkpoints of a run: weights, the optimizer's moments and how far it is, so an interrupted run resumes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from refdiff.model.training.language.student import Student
from refdiff.model.weights_file import need_space, save_tensors

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class TrainingState:
    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)


def read_checkpoint(student: Student, out: Path) -> tuple[TrainingState, dict[str, Tensor]]:
    """How far the run in `out` is, its weights given to the student, and the optimizer's moments; nothing if it is new."""
    if not (out / CHECKPOINT).exists():
        return TrainingState(), {}
    with safe_open(out / CHECKPOINT, "pt") as file:
        state = TrainingState(**json.loads(file.metadata()["state"]))
    tensors = load_file(out / CHECKPOINT)
    student.load({k: v for k, v in tensors.items() if not k.startswith("moment.")})
    return state, {k: v for k, v in tensors.items() if k.startswith("moment.")}


def save_checkpoint(student: Student, optimizer: torch.optim.Optimizer, state: TrainingState, out: Path) -> None:
    tensors = {k: v.contiguous() for k, v in student.trained().items()}
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for i, p in enumerate(parameters):
        tensors |= {f"moment.{i}.{k}": v.contiguous() for k, v in optimizer.state[p].items()}
    need_space(out, sum(t.numel() * t.element_size() for t in tensors.values()), "a checkpoint takes")
    save_tensors(tensors, out / CHECKPOINT, {"state": json.dumps(asdict(state))})


def restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Put the moments of a checkpoint back, if it was made in the stage of this optimizer."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    if len(moments) != 3 * len(parameters):
        return
    for i, p in enumerate(parameters):
        optimizer.state[p] = {k: moments[f"moment.{i}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
