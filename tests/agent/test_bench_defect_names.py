"""The benchmark of named findings: no defect that is named is tested."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from defect_names import Found, drawn, half_of


@pytest.mark.parametrize("seed", range(5))
def test_named_and_tested_findings_are_on_different_tiles(seed: int) -> None:
    """Kinds with 4 and 12 tiles of three photos each; one tile has both kinds."""
    vector = np.zeros(1, np.float32)
    tiles = [("crack", f"{i}") for i in range(4)] + [("break", f"{i}") for i in range(3, 15)]
    found = [Found(kind, tile, vector) for kind, tile in tiles for _ in range(3)]
    named, rest = drawn(found, 5, random.Random(seed))
    assert Counter(f.kind for f in named) == {"crack": 2, "break": 5}
    assert len({(f.kind, f.thing) for f in named}) == len(named)
    assert not {f.thing for f in named} & {f.thing for f in rest}
    assert {f.kind for f in rest} == {"crack", "break"}


def test_halves_share_no_tile() -> None:
    tiles = [str(i) for i in range(9)]
    assert not half_of(tiles, "choose") & half_of(tiles, "held")
    assert half_of(tiles, "choose") | half_of(tiles, "held") == set(tiles)
