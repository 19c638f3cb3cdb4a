"""Events of a run, for whoever shows its progress."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentEvent:
    """Something worth showing while a run works. done/total: progress of long work, 0 if not counted."""

    kind: str
    message: str
    done: int = 0
    total: int = 0
