"""Work in a thread of its own, round after round: sending what waits, asking for what is new."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

_IDLE_S = 5.0  # until the next round, if nobody wakes the thread


class Rounds(ABC):
    """Use as a context manager; the thread ends with it, after the round that it is in."""

    def __init__(self, name: str, longest_s: float) -> None:
        """longest_s: how long its end waits for a round."""
        self._longest_s = longest_s
        self._awake, self._stopping = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _round(self) -> float | None:
        """Do what there is to do; seconds until the next round, or None: as soon as somebody wakes the thread."""

    @abstractmethod
    def _broken(self, error: Exception) -> float:
        """Say that a round ended with that error; seconds until the next one."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._awake.set()
        self._thread.join(self._longest_s)

    def wake(self) -> None:
        """Say that there is something to do."""
        self._awake.set()

    def _wait_until(self, done: Callable[[], bool], seconds: float) -> None:
        """Let it work until that is so, at most so many seconds."""
        deadline = time.monotonic() + seconds
        self.wake()
        while self._thread.is_alive() and time.monotonic() < deadline and not done():
            time.sleep(0.02)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._awake.clear()
            try:
                pause_s = self._round()
            except Exception as e:  # the next round may be better
                pause_s = self._broken(e)
            if pause_s is None:
                self._awake.wait(_IDLE_S)
            else:
                self._stopping.wait(pause_s)
