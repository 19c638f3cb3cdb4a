"""Rates of verdicts against the truth, with the textbook's intervals."""

from __future__ import annotations

import pytest

from refdiff.agent.report.schema import Verdict
from refdiff.agent.verdict.rates import Proportion, verdict_rates

P, F, R = Verdict.PASS, Verdict.FAIL, Verdict.REVIEW


@pytest.mark.parametrize(
    ("k", "n", "expected"), [(0, 20, (0.0, 0.1611)), (20, 20, (0.8389, 1.0)), (5, 50, (0.0435, 0.2136))]
)
def test_wilson_interval_matches_textbook_values(k: int, n: int, expected: tuple[float, float]) -> None:
    assert Proportion(k, n).interval == pytest.approx(expected, abs=2e-4)


def test_wilson_interval_of_no_trials_is_none() -> None:
    assert Proportion(0, 0).interval is None


@pytest.mark.parametrize(
    ("labels", "verdicts", "false_reject", "escape", "review", "f1"),
    [
        ([0, 0, 0, 0, 1, 1], [P, F, R, P, P, F], 0.25, 0.5, 1 / 6, 2 * 1 / (3 + 2)),
        ([0, 1], [P, R], 0.0, 0.0, 0.5, 1.0),
        ([0, 0], [P, F], 0.5, None, 0.0, None),
        ([1, 1], [F, P], None, 0.5, 0.0, 2 / 3),
        ([], [], None, None, None, None),
    ],
)
def test_verdict_rates_match_values_worked_out_by_hand(
    labels: list[int],
    verdicts: list[Verdict],
    false_reject: float | None,
    escape: float | None,
    review: float | None,
    f1: float | None,
) -> None:
    rates = verdict_rates([label == 1 for label in labels], verdicts)
    for value, expected in (
        (rates.false_reject.value, false_reject),
        (rates.escape.value, escape),
        (rates.review.value, review),
        (rates.f1, f1),
    ):
        assert value == (None if expected is None else pytest.approx(expected))
