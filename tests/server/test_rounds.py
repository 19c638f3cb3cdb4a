"""`Rounds`: the thread of webhook, delivery and updates."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from refdiff.server.rounds import Rounds

WAIT_S = 30.0


class Counting(Rounds):
    """Rounds that say when they begin. do: what each does, by its number from 1."""

    def __init__(self, do: Callable[[int], float | None] = lambda number: None, longest_s: float = WAIT_S) -> None:
        super().__init__("counting", longest_s)
        self._do, self._begun = do, threading.Condition()
        self.begun = 0
        self.errors: list[Exception] = []

    def _round(self) -> float | None:
        with self._begun:
            self.begun += 1
            self._begun.notify_all()
        return self._do(self.begun)

    def _broken(self, error: Exception) -> float:
        self.errors.append(error)
        return 0.0

    def reached(self, number: int) -> bool:
        with self._begun:
            return self._begun.wait_for(lambda: self.begun >= number, WAIT_S)


def test_round_follows_as_soon_as_somebody_wakes_the_thread_also_during_one() -> None:
    going, woken = threading.Event(), threading.Event()

    def do(number: int) -> None:
        if number == 1:
            going.set()
            assert woken.wait(WAIT_S)

    with Counting(do) as rounds:
        assert going.wait(WAIT_S)
        rounds.wake()  # what it is woken for may be what this round has passed already
        woken.set()
        began = time.monotonic()
        assert rounds.reached(2)
        rounds.wake()
        assert rounds.reached(3)
        assert time.monotonic() - began < 4.0  # not after the time in which nobody wakes it


def test_error_of_a_round_is_told_and_the_next_one_comes() -> None:
    wrong = OSError("nobody answers")

    def do(number: int) -> float | None:
        if number == 1:
            raise wrong
        return None

    with Counting(do) as rounds:
        assert rounds.reached(2)
    assert rounds.errors == [wrong]


def test_end_waits_for_a_round_but_no_longer_than_it_may_take() -> None:
    done, goes_on = threading.Event(), threading.Event()

    def short(number: int) -> None:
        time.sleep(0.3)
        done.set()

    with Counting(short) as rounds:
        assert rounds.reached(1)
    assert done.is_set()
    with Counting(lambda number: 3600.0) as pausing:
        assert pausing.reached(1)
        began = time.monotonic()
    with Counting(lambda number: float(goes_on.wait(WAIT_S)), longest_s=0.2) as rounds:
        assert rounds.reached(1)
    assert time.monotonic() - began < 10.0
    goes_on.set()
    assert rounds.begun == 1
