"""Progress events of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentEvent:
    """Progress of a run, for display. done/total: progress of long work, 0 if not counted."""

    kind: str
    message: str
    done: int = 0
    total: int = 0
