"""Waits between retries."""

from __future__ import annotations

import pytest

from refdiff.memory.journals.backoff import Backoff


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff(0.5, 60.0), [0.5, 1, 2, 4]),
        (Backoff(1.0, 60.0, factor=4.0), [1, 4, 16, 60, 60]),
        (Backoff(2, 2), [2, 2]),
    ],
)
def test_backoff_waits_grow_up_to_the_limit(backoff: Backoff, waits: list[float]) -> None:
    assert [backoff.wait_s(n) for n in range(1, len(waits) + 1)] == waits


def test_backoff_after_a_million_failures_waits_for_the_limit() -> None:
    assert Backoff(0.5, 60.0).wait_s(1_000_000) == 60
