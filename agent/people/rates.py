"""How often system and people disagree, from blind checks alone: false rejects, escapes, reviews and kappa.

Blind checks are a random sample of all inspections, so the rates are estimates for all parts. Dispositions are only
counted: people look at failed parts more often, and they know what the system said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from refdiff.agent.verdict.rates import Proportion, verdict_rates
from refdiff.memory.records.blind_checks import Answered
from refdiff.memory.stores import Stores
from refdiff.memory.timestamps import to_utc
from refdiff.model.errors import UnknownProductError

FEW = 30  # with fewer answers a rate says little: 10 % then has an interval of 3 to 26 %
_RESAMPLES = 2000
_TAIL = 0.025  # of a 95 % interval, on each side


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Rate(_Model):
    """A rate with its 95 % interval (Wilson; bootstrap for kappa)."""

    value: float | None = Field(description="None where n is 0 or the rate is undefined.")
    interval: tuple[float, float] | None = Field(
        description="None where n is 0; for kappa also where too few parts are bad, or disagreed about, to give one."
    )
    events: int | None
    n: int
    enough: bool = Field(description=f"n is at least {FEW} and there is an interval.")


class PeriodRates(_Model):
    period: str
    n_good: int
    n_bad: int
    false_reject: Rate = Field(description="Good parts with FAIL.")
    escape: Rate = Field(description="Bad parts with PASS.")
    review: Rate = Field(description="REVIEW of all parts.")
    kappa: Rate = Field(
        description="Cohen's, between good/bad of people and PASS/FAIL of the system; REVIEW is left out."
    )


class Rates(_Model):
    product: str | None
    since: str | None
    n_inspections: int
    n_drawn: int
    n_waiting: int
    overall: PeriodRates
    months: list[PeriodRates] = Field(description="The same by month of inspection (UTC), oldest first.")
    dispositions: dict[str, int] = Field(description="Decisions of people who knew the verdict: no rate, since biased.")
    notes: list[str]


def rates(stores: Stores, product: str | None = None, since: str | None = None, seed: int = 0) -> Rates:
    """Rates of a product (or all) over the inspections since a time (ISO 8601). seed: of kappa's bootstrap.

    Raises InputError if `since` is not a time, UnknownProductError.
    """
    if product is not None and stores.products.get(product) is None and not stores.blind_checks.count(product, None)[0]:
        known = ", ".join(p.name for p in stores.products.list()) or "none yet"
        raise UnknownProductError(f"no product {product!r}; products: {known}")
    moment = None if since is None else to_utc(since)
    answers = stores.blind_checks.answered(product, moment)
    filed, drawn, waiting = stores.blind_checks.count(product, moment)
    months = sorted({a.created_at[:7] for a in answers})
    overall = _period("all", answers, seed)
    return Rates(
        product=product,
        since=moment,
        n_inspections=filed,
        n_drawn=drawn,
        n_waiting=waiting,
        overall=overall,
        months=[_period(m, [a for a in answers if a.created_at.startswith(m)], seed) for m in months],
        dispositions=stores.dispositions.count(product, moment),
        notes=_notes(overall, answers, drawn),
    )


def _period(name: str, answers: Sequence[Answered], seed: int) -> PeriodRates:
    found = verdict_rates([a.judged == "bad" for a in answers], [a.verdict for a in answers])
    return PeriodRates(
        period=name,
        n_good=found.n_good,
        n_bad=found.n_bad,
        false_reject=_rate(found.false_reject),
        escape=_rate(found.escape),
        review=_rate(found.review),
        kappa=_kappa(answers, seed),
    )


def _rate(p: Proportion) -> Rate:
    return Rate(value=p.value, interval=p.interval, events=p.events, n=p.n, enough=p.n >= FEW)


def _kappa(answers: Sequence[Answered], seed: int) -> Rate:
    """Cohen, "A coefficient of agreement for nominal scales", 1960; percentile bootstrap over parts."""
    from sklearn.metrics import cohen_kappa_score  # takes a second to import, at every start of a server

    decided = [a for a in answers if a.verdict != "REVIEW"]
    people, system = [a.judged == "bad" for a in decided], [a.verdict == "FAIL" for a in decided]
    n = len(decided)
    if len({*people, *system}) < 2:  # both always said the same thing: chance agreement is 1, and kappa 0/0
        return Rate(value=None, interval=None, events=None, n=n, enough=n >= FEW)
    value = float(cohen_kappa_score(people, system))
    table = np.bincount(2 * np.array(people) + np.array(system), minlength=4)  # people good/bad x system PASS/FAIL
    drawn = _agreement(np.random.default_rng(seed).multinomial(n, table / n, size=_RESAMPLES).astype(float))
    undefined = np.isnan(drawn)
    low, high = np.quantile(drawn[~undefined], [_TAIL, 1 - _TAIL])
    # resamples without the few bad (or good) parts have no kappa, and full agreement says nothing about the spread
    if undefined.mean() > _TAIL or low == high:
        return Rate(value=value, interval=None, events=None, n=n, enough=False)
    return Rate(value=value, interval=(float(low), float(high)), events=None, n=n, enough=n >= FEW)


def _agreement(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4) counts -> (...) kappa, NaN where it is undefined."""
    cells = table.reshape(*table.shape[:-1], 2, 2)
    n = cells.sum((-1, -2))
    seen = np.trace(cells, axis1=-2, axis2=-1) / n.clip(1)
    chance = (cells.sum(-1) * cells.sum(-2)).sum(-1) / (n * n).clip(1)
    certain = (chance >= 1) | (n == 0)
    return np.where(certain, np.nan, (seen - chance) / np.where(certain, 1, 1 - chance))


def _notes(overall: PeriodRates, answers: Sequence[Answered], drawn: int) -> list[str]:
    notes = []
    for what, rate in (("good", overall.false_reject), ("bad", overall.escape)):
        if rate.n == 0:
            notes.append(f"no blind answers about {what} parts yet, so that rate is unknown")
        elif not rate.enough:
            notes.append(f"only {rate.n} blind answers about {what} parts: too few (of {FEW}); look at the interval")
    if overall.kappa.value is not None and overall.kappa.interval is None:
        notes.append(
            f"kappa has no interval: too few of the {overall.kappa.n} parts with PASS or FAIL are bad or disputed"
        )
    if drawn and len(answers) < 0.8 * drawn:
        notes.append(
            f"{drawn - len(answers)} of {drawn} drawn parts are not judged yet; if people skip the hard ones, "
            "these rates are too optimistic"
        )
    if len({a.share for a in answers}) > 1:
        notes.append("the share of blind checks changed during this period; times with a larger share weigh more")
    return notes
