"""What a training run of the language model is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LanguageRecipe:
    """Three stages: alignment of the projector, the projector behind the frozen base, LoRA on pairs and conversations."""

    pairs: int = 4800  # judged pairs to draw
    align_epochs: int = 6  # passes over the pairs without the language base, see `align_projector`
    projector_epochs: float = 0.25  # passes of stage 1 over the pairs
    pair_epochs: float = 1.0  # passes of stage 2 over the pairs
    talk_epochs: float = 0.5  # passes of stage 2 over the conversations
    tokens: int = 2048  # of a batch, padding included
    projector_lr: float = 1e-3
    lora_lr: float = 4e-4
    rank: int = 16  # of LoRA
    seed: int = 0
    workers: int = 2  # processes that make pairs
    left_out: tuple[str, ...] = ()  # sources (name prefix) that neither pairs nor conversations may be of
    start: str | None = None  # language weights to continue from, of the same rank
