"""Which name a finding takes: that of the named findings that it is nearest to, where it is near enough.

What is near enough is learned from the named findings themselves, by leaving one out: each is given a name by the others,
once with the others of its name and once without, as if nobody had named its kind yet. Pure numbers; knows neither stores
nor pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_EXAMPLES = 3  # parts with a finding of a name, from which it is given
_NEAREST = 3  # examples of a name whose mean distance counts

Distances = Mapping[str, Sequence[float]]  # of a finding to the examples of each name


@dataclass(frozen=True)
class Nearest:
    """The name whose examples a finding is nearest to. strangeness: >= 0, small where it is near that name and far from all
    others."""

    name: str
    strangeness: float


@dataclass(frozen=True)
class Rule:
    """Up to which strangeness a finding takes the name that it is nearest to, and what leaving one out showed there."""

    limit: float  # -1: no name is given
    precision: float  # 0..1, share of right names among those given, where half of the findings are of unnamed kinds
    coverage: float  # 0..1, share of the named findings that got a name

    def allows(self, found: Nearest, examples: int) -> bool:
        """examples: parts with a finding of that name."""
        return examples >= MIN_EXAMPLES and found.strangeness <= self.limit


NO_RULE = Rule(-1.0, 0.0, 0.0)


def nearest(distances: Distances) -> Nearest | None:
    """The name that a finding is nearest to; None where there are no examples."""
    names = [name for name, found in distances.items() if len(found)]
    if not names:
        return None
    means = np.array([[float(np.mean(sorted(distances[name])[:_NEAREST])) for name in names]])
    which, strangeness = _ranked(means)
    return Nearest(names[int(which[0])], float(strangeness[0]))


def learn(
    vectors: NDArray[np.float32], names: Sequence[str], precision: float, parts: Sequence[str] | None = None
) -> Rule:
    """The widest limit at which names are right in the share `precision` (0..1) of the findings that get one.

    vectors: (N, D) of the named findings; names: N. parts: N, of each the part, default different ones; findings of one
    part are left out together, for they may show one defect. A name that a finding gets while nobody has named its kind is
    wrong, so a name by itself is never given: nothing shows what it must not be given to. The limit is never wider than a
    right name among the named findings needs.
    """
    known, own = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    of = [str(i) for i in range(len(names))] if parts is None else parts
    part = np.unique(np.array(of, dtype=object).astype(str), return_inverse=True)[1]
    pairs = np.unique(np.stack([own, part], 1), axis=0) if len(own) else np.zeros((0, 2), np.intp)
    many = np.bincount(pairs[:, 0], minlength=len(known)) >= MIN_EXAMPLES
    if len(known) < 2 or not many.any():
        return NO_RULE
    means = _left_one_out(vectors.astype(np.float64), own, part, len(known))
    without = means.copy()
    without[np.arange(len(own)), own] = np.inf
    (which, strangeness), (other, odd) = _ranked(means), _ranked(without)
    given, wrong = many[own] & many[which], many[other]
    right = np.concatenate([which == own, np.zeros(len(own), bool)])[np.concatenate([given, wrong])]
    strange = np.concatenate([strangeness[given], odd[wrong]])
    order = np.argsort(strange, kind="stable")
    strange, right = strange[order], right[order]
    share = np.cumsum(right) / np.arange(1, len(right) + 1)
    last = np.append(strange[1:] > strange[:-1], True)  # what is equally strange is named together
    fits = np.flatnonzero(last & right & (share >= precision))
    if not len(fits):
        return NO_RULE
    limit, at = float(strange[fits[-1]]), int(fits[-1])
    named = given & (strangeness <= limit)
    return Rule(limit, float(share[at]), float(named.sum() / many[own].sum()))


def _left_one_out(
    vectors: NDArray[np.float64], own: NDArray[np.intp], part: NDArray[np.intp], names: int
) -> NDArray[np.float64]:
    """(N, names): mean distance of each finding to the nearest of each name in other parts; infinite without any."""
    squares = (vectors**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2.0 * vectors @ vectors.T, 0.0))
    apart[part[:, None] == part] = np.inf
    means = np.full((len(vectors), names), np.inf)
    for name in range(names):
        few = np.sort(apart[:, own == name], axis=1)[:, :_NEAREST]
        there = np.isfinite(few)
        total = np.where(there, few, 0.0).sum(1)
        means[:, name] = np.where(there.any(1), total / np.maximum(there.sum(1), 1), np.inf)
    return means


def _ranked(means: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The nearest name of each row of (N, names), and its strangeness; infinite for a row without any."""
    which = means.argmin(1)
    first = means[np.arange(len(means)), which]
    rest = means.copy()
    rest[np.arange(len(means)), which] = np.inf
    second = np.where(np.isfinite(rest.min(1)), rest.min(1), first)
    # near by itself, and nearer than the next name; either alone gave more wrong names
    with np.errstate(invalid="ignore"):
        return which, np.where(np.isfinite(first), first * first / np.maximum(second, 1e-9), np.inf)
