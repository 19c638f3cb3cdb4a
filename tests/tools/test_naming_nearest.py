"""Which name a finding takes: near enough, by leaving one out."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.tools.naming.nearest import MIN_EXAMPLES, NO_RULE, Nearest, Rule, learn, nearest

CENTRES = {"chip": (0.0, 0.0), "ball": (10.0, 0.0), "void": (0.0, 10.0)}


def cloud(counts: dict[str, int], spread: float = 1.0, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    rows = [rng.normal(CENTRES[name], spread, 2) for name, n in counts.items() for _ in range(n)]
    return np.array(rows, np.float32), [name for name, n in counts.items() for _ in range(n)]


def to(point: tuple[float, float], vectors: np.ndarray, names: list[str]) -> Nearest:
    apart = np.linalg.norm(vectors - np.array(point), axis=1)
    found = nearest({n: [float(d) for d, m in zip(apart, names, strict=True) if m == n] for n in names})
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("distances", "found"),
    [
        ({}, None), ({"chip": []}, None),
        ({"chip": [3.0, 1.0, 2.0, 9.0]}, ("chip", 2.0)),  # alone: the mean of the three nearest
        ({"chip": [2.0], "ball": [4.0, 4.0]}, ("chip", 1.0)),  # half as far as the next name
        ({"chip": [4.0], "ball": [4.0, 2.0, 3.0]}, ("ball", 2.25)),
    ],
)  # fmt: skip
def test_nearest_name_and_how_strange_a_finding_is_to_it(
    distances: dict[str, list[float]], found: tuple[str, float] | None
) -> None:
    assert nearest(distances) == (None if found is None else Nearest(*found))


@pytest.mark.parametrize("n", [3, 5, 20])
def test_clear_names_are_given_and_what_is_like_none_of_them_gets_none(n: int) -> None:
    vectors, names = cloud(dict.fromkeys(CENTRES, n))
    rule = learn(vectors, names, 0.9)
    assert rule.precision >= 0.9
    assert rule.coverage > 0.6
    for name, centre in CENTRES.items():
        found = to(centre, vectors, names)
        assert found.name == name
        assert rule.allows(found, n)
    for elsewhere in ((10.0, 10.0), (5.0, 0.0), (30.0, 30.0), (-12.0, -12.0)):
        assert not rule.allows(to(elsewhere, vectors, names), n)


def test_findings_of_one_part_count_once() -> None:
    vectors, names = cloud(dict.fromkeys(CENTRES, 6))
    each = [f"part {i}" for i in range(len(names))]
    assert learn(vectors, names, 0.9, each) == learn(vectors, names, 0.9)
    for parts in (["one part"] * len(names), [f"part {i % 2}" for i in range(len(names))]):
        assert learn(vectors, names, 0.9, parts) == NO_RULE
    # the same finding three times: each must not vouch for the others
    twins, of = np.repeat(vectors, 3, 0), np.repeat(np.array(each), 3)
    thrice = learn(twins, [n for n in names for _ in range(3)], 0.9, list(of))
    assert thrice.coverage <= learn(vectors, names, 0.9).coverage


def test_name_by_itself_is_not_given() -> None:
    vectors, names = cloud({"chip": 6})
    assert learn(vectors, names, 0.9) == NO_RULE  # nothing shows what it must not be given to
    vectors, names = cloud({"chip": 6, "ball": 1})
    assert learn(vectors, names, 0.9).allows(to(CENTRES["chip"], vectors, names), 6)


@pytest.mark.parametrize(("apart", "given"), [(10.0, True), (0.5, False)])
def test_kind_that_nobody_has_named_counts_as_an_error(apart: float, given: bool) -> None:
    """Two pairs of alike names: each name is told from its twin by a hair, but would be given to that, were it unnamed."""
    centres = {"a": (0.0, 0.0), "b": (0.0, apart), "c": (50.0, 0.0), "d": (50.0, apart)}
    rng = np.random.default_rng(0)
    vectors = np.array([rng.normal(c, 0.1, 2) for c in centres.values() for _ in range(5)], np.float32)
    names = [name for name in centres for _ in range(5)]
    rule = learn(vectors, names, 0.9)
    found = to((0.0, 0.0), vectors, names)
    assert (found.name, rule.allows(found, 5)) == ("a", given)


def test_names_that_look_the_same_are_not_given() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    rule = learn(vectors, ["chip", "ball"] * 20, 0.9)
    assert rule.coverage < 0.3


@pytest.mark.parametrize(
    ("counts", "given"), [({}, False), ({"chip": 2, "ball": 2}, False), ({"chip": 3, "ball": 2}, True)]
)
def test_names_are_given_from_three_examples(counts: dict[str, int], given: bool) -> None:
    vectors, names = cloud(counts, 0.1)
    rule = learn(vectors.reshape(len(names), 2), names, 0.9)
    assert (rule != NO_RULE) == given
    if given:
        assert rule.allows(to(CENTRES["chip"], vectors, names), 3)
        assert not rule.allows(to(CENTRES["ball"], vectors, names), 2)


def test_more_precision_names_fewer() -> None:
    vectors, names = cloud(dict.fromkeys(CENTRES, 30), spread=4.0)
    rules = [learn(vectors, names, precision) for precision in (0.5, 0.7, 0.9)]
    coverage = [rule.coverage for rule in rules]
    assert coverage == sorted(coverage, reverse=True)
    assert coverage[0] > coverage[-1]
    assert all(rule.precision >= asked for rule, asked in zip(rules, (0.5, 0.7, 0.9), strict=True))


def test_limit_allows_what_is_at_it() -> None:
    assert Rule(2.0, 1.0, 1.0).allows(Nearest("chip", 2.0), MIN_EXAMPLES)
    assert not Rule(2.0, 1.0, 1.0).allows(Nearest("chip", 2.1), MIN_EXAMPLES)
