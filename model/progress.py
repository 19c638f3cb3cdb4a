"""Progress of long work: one signature for training, building and downloading."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called repeatedly during the work, from the thread that does it."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """what: the stage, e.g. "training". done of total: its steps; total is 0 if unknown. note: e.g. the loss."""


def silent(what: str, done: int, total: int, note: str = "") -> None:
    """Ignore progress."""
