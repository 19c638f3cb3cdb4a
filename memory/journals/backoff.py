"""How long to wait before something that a journal holds is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that grow by a factor with every failure in a row, up to a limit."""

    first_s: float
    longest_s: float
    factor: float = 2.0

    def wait_s(self, failures: int) -> float:
        """After that many failures in a row (1 or more)."""
        return min(self.longest_s, self.first_s * self.factor ** min(failures - 1, 64))
