"""Random surfaces: two samples of one material are alike in kind and never in layout."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.model.synthesis.textures import random_material, sheet


@pytest.mark.parametrize("seed", range(20))
def test_samples_of_a_material_share_tone_but_not_pixels(seed: int) -> None:
    material = random_material(np.random.default_rng(seed), 96)
    a, b, again = (material(np.random.default_rng(s)) for s in (1, 2, 1))
    assert a.shape == (96, 96, 3)
    assert a.dtype == np.uint8
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    tone_a, tone_b = a.reshape(-1, 3).mean(0), b.reshape(-1, 3).mean(0)
    assert np.abs(tone_a - tone_b).max() < 45  # a material keeps its colour


def test_materials_differ_in_tone() -> None:
    shown = sheet(seed=3, materials=6, n=64)
    assert shown.shape == (3 * 64, 6 * 64, 3)
    means = [shown[:, i * 64 : (i + 1) * 64].mean((0, 1)) for i in range(6)]
    assert max(np.abs(a - b).max() for a in means for b in means) > 40
