"""How often verdicts and the truth about the parts disagree: false rejects, escapes, reviews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refdiff.agent.report.schema import Verdict

LEVEL = 0.95


@dataclass(frozen=True)
class Proportion:
    events: int
    n: int

    @property
    def value(self) -> float | None:
        """events / n; None for n = 0."""
        return self.events / self.n if self.n else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson score interval (low, high) at 95 %; None for n = 0."""
        if not self.n:
            return None
        from scipy.stats import binomtest  # takes half a second to import, at every start of a server

        interval = binomtest(self.events, self.n).proportion_ci(LEVEL, method="wilson")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class VerdictRates:
    false_reject: Proportion  # FAIL of the good parts
    escape: Proportion  # PASS of the bad parts
    review: Proportion  # REVIEW of all parts
    f1: float | None  # of "not PASS" as a detector of bad parts; None without bad parts

    @property
    def n_good(self) -> int:
        return self.false_reject.n

    @property
    def n_bad(self) -> int:
        return self.escape.n


def verdict_rates(bad: Sequence[bool], verdicts: Sequence[str]) -> VerdictRates:
    """bad: the truth about each part. verdicts: PASS, FAIL or REVIEW of each. Raises ValueError if they differ in number."""
    good_verdicts, bad_verdicts = (
        [v for b, v in zip(bad, verdicts, strict=True) if bool(b) is wanted] for wanted in (False, True)
    )
    n_bad, escapes = len(bad_verdicts), bad_verdicts.count(Verdict.PASS)
    alarms = sum(v != Verdict.PASS for v in verdicts)
    return VerdictRates(
        false_reject=Proportion(good_verdicts.count(Verdict.FAIL), len(good_verdicts)),
        escape=Proportion(escapes, n_bad),
        review=Proportion(list(verdicts).count(Verdict.REVIEW), len(verdicts)),
        f1=2 * (n_bad - escapes) / (alarms + n_bad) if n_bad else None,
    )
