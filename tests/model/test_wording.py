from __future__ import annotations

import pytest

from refdiff.model.wording import few


@pytest.mark.parametrize(
    ("n", "how", "said"),
    [
        (0, {}, ""),
        (1, {}, "a"),
        (3, {}, "a, b, c"),
        (4, {}, "a, b, c and 1 more"),
        (5, {"most": 2, "between": "; "}, "a; b and 3 more"),
    ],
)
def test_few_names_the_first_and_counts_the_others(n: int, how: dict[str, int | str], said: str) -> None:
    assert few(iter("abcde"[:n]), **how) == said  # type: ignore[arg-type]
