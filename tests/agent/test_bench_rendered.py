"""Rendered products are data sets that `evaluate` reads, and the same seed draws the same images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from bench_rendered import PRODUCTS, draw

from refdiff.agent.evaluation.layouts import read_mvtec
from refdiff.model.errors import InputError


@pytest.mark.parametrize("name", ["rotated_moulded", "components_bottle", "variants_label"])
def test_rendered_product_is_reproducible_and_has_masks(name: str, tmp_path: Path) -> None:
    product = next(p for p in PRODUCTS if p.name == name)
    digests = []
    for folder in ("a", "b"):
        draw(product, tmp_path / folder, seed=3, good=6, bad=4, size=96)
        files = sorted((tmp_path / folder).rglob("*.png"))
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]
    data = read_mvtec(tmp_path / "a" / name)
    assert len(data.train) == 3
    assert sum(not s.defective for s in data.test) == 3
    assert [len(s.masks) == 1 for s in data.test if s.defective] == [True] * 4


def test_folder_not_made_by_bench_rendered_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / PRODUCTS[0].name).mkdir()
    with pytest.raises(InputError, match="not made by this"):
        draw(PRODUCTS[0], tmp_path, seed=0, good=4, bad=1, size=64)
