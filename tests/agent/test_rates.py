"""Agreement rates of system and people: from blind answers only, with intervals, and notes when there are too few."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from refdiff.agent.people.rates import rates
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnknownProductError

Table = dict[tuple[str, str], int]  # (verdict, what a person says) -> parts


@pytest.fixture
def stores(tmp_path: Any) -> Iterator[Stores]:
    with Stores.open(MemorySettings(home=tmp_path / "home", qdrant_url=None)) as opened:
        yield opened


def fill(stores: Stores, table: Table, month: str = "2026-01", product: str = "board") -> None:
    number = count(len(stores.inspections.list(limit=1000)))
    for (verdict, judged), n in table.items():
        for i in (f"i{next(number)}" for _ in range(n)):
            stores.inspections.file(i, i, product, verdict, f"{month}-10", {}, blind_share=1.0)  # type: ignore[arg-type]
            stores.blind_checks.answer(i, judged, "bob")  # type: ignore[arg-type]


def test_rates_match_values_worked_out_by_hand(stores: Stores) -> None:
    fill(
        stores,
        {("PASS", "good"): 20, ("FAIL", "good"): 10, ("PASS", "bad"): 5, ("FAIL", "bad"): 15, ("REVIEW", "bad"): 10},
    )
    found = rates(stores).overall
    assert (found.n_good, found.n_bad) == (30, 30)
    assert (found.false_reject.value, found.false_reject.events, found.false_reject.n) == (pytest.approx(1 / 3), 10, 30)
    assert found.false_reject.interval == pytest.approx((0.1923, 0.5122), abs=1e-4)  # Wilson, by the textbook formula
    assert found.escape.value == pytest.approx(5 / 30)
    assert found.review.value == pytest.approx(10 / 60)
    # agreement 35/50, by chance .5: (.7 - .5) / .5
    assert found.kappa.value == pytest.approx(0.4)
    assert found.kappa.n == 50
    assert found.kappa.interval is not None
    low, high = found.kappa.interval
    assert 0.05 < low < 0.25
    assert 0.55 < high < 0.75
    assert rates(stores).overall == found  # the bootstrap is seeded
    assert rates(stores).notes == []


def test_dispositions_do_not_count_towards_the_rates(stores: Stores) -> None:
    for i in range(3):
        stores.inspections.file(f"x{i}", "1", "board", "FAIL", "2026-01-01", {})
        stores.dispositions.add(f"x{i}", "override", "bob", "dust")
    found = rates(stores)
    assert found.overall.false_reject.value is None
    assert found.dispositions == {"accept": 0, "override": 3}
    assert len(found.notes) == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, ["no blind answers about good", "no blind answers about bad"]),
        ({("PASS", "good"): 29}, ["only 29 blind answers about good", "no blind answers about bad"]),
        (
            {("PASS", "good"): 30, ("FAIL", "bad"): 1},
            ["only 1 blind answers about bad", "kappa has no interval: too few of the 31"],
        ),
        ({("PASS", "good"): 30, ("FAIL", "bad"): 30}, ["kappa has no interval: too few of the 60"]),
        ({("PASS", "good"): 30, ("FAIL", "bad"): 29, ("PASS", "bad"): 1}, []),
    ],
)
def test_rates_from_too_few_answers_carry_a_note(stores: Stores, table: Table, words: list[str]) -> None:
    fill(stores, table)
    found = rates(stores)
    assert [n[: len(w)] for n, w in zip(found.notes, words, strict=True)] == words
    assert found.overall.false_reject.enough == (found.overall.n_good >= 30)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        ({("PASS", "good"): 40}, None),  # nothing but good: chance agreement is 1
        ({("PASS", "good"): 5, ("FAIL", "bad"): 5}, 1.0),
        ({("FAIL", "good"): 5, ("PASS", "bad"): 5}, -1.0),
        ({("PASS", "good"): 5, ("FAIL", "good"): 5}, 0.0),
        ({("REVIEW", "good"): 5, ("REVIEW", "bad"): 5}, None),
    ],
)
def test_kappa_at_its_extremes_matches_known_values(stores: Stores, table: Table, kappa: float | None) -> None:
    fill(stores, table)
    value = rates(stores).overall.kappa.value
    assert value == (None if kappa is None else pytest.approx(kappa))


@pytest.mark.parametrize(
    ("table", "known"),
    [
        ({("PASS", "good"): 29, ("FAIL", "bad"): 1}, False),  # 36 % of the resamples have no bad part, the others agree
        ({("PASS", "good"): 200, ("FAIL", "bad"): 100}, False),  # all agree: every resample says 1
        # 5 % show none of the three
        ({("PASS", "good"): 97, ("FAIL", "good"): 1, ("FAIL", "bad"): 1, ("PASS", "bad"): 1}, False),
        ({("PASS", "good"): 27, ("FAIL", "bad"): 1, ("PASS", "bad"): 2}, False),  # 4 % have no bad part
        ({("PASS", "good"): 40, ("FAIL", "bad"): 8, ("PASS", "bad"): 2}, True),
    ],
)
def test_kappa_interval_is_given_only_where_resamples_define_it(stores: Stores, table: Table, known: bool) -> None:
    fill(stores, table)
    kappa = rates(stores).overall.kappa
    assert (kappa.interval is not None, kappa.enough) == (known, known)
    if kappa.interval is not None and kappa.value is not None:
        assert kappa.interval[0] < kappa.value < kappa.interval[1]


def test_rates_are_separate_by_product_and_month(stores: Stores) -> None:
    fill(stores, {("FAIL", "good"): 2}, "2026-01")
    fill(stores, {("PASS", "good"): 2}, "2026-02")
    fill(stores, {("PASS", "bad"): 1}, "2026-02", "lid")
    by_month = {m.period: m.false_reject.value for m in rates(stores, "board").months}
    assert by_month == {"2026-01": 1.0, "2026-02": 0.0}
    assert rates(stores, "board", since="2026-02-01").overall.false_reject.n == 2
    assert rates(stores, "lid").overall.escape.value == 1.0
    with pytest.raises(UnknownProductError, match="lib"):
        rates(stores, "lib")


def test_rates_note_how_many_blind_checks_are_waiting(stores: Stores) -> None:
    fill(stores, {("PASS", "good"): 30, ("FAIL", "bad"): 28, ("PASS", "bad"): 2})
    for i in range(30):
        stores.inspections.file(f"w{i}", "1", "board", "PASS", "2026-01-01", {"part_id": "1"}, blind_share=0.999999)
    found = rates(stores)
    assert (found.n_drawn, found.n_waiting) == (90, 30)
    assert "30 of 90 drawn parts are not judged" in found.notes[0]
