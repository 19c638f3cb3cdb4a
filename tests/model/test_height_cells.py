"""Vectors of measured values: nearer the nearer the values are, and blind to what was not measured alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from refdiff.memory.golden_bank.similarity import max_sim
from refdiff.model.height.cells import cell_vectors
from refdiff.model.images import F32


def relief(studs: int, size: tuple[int, int] = (120, 160)) -> F32:
    """A sloping surface with so many studs."""
    ys, xs = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    mm = 0.02 * xs + 0.01 * ys
    for i in range(studs):
        mm[20 + 25 * i : 32 + 25 * i, 40 + 20 * i : 55 + 20 * i] += 2
    return np.asarray(mm, np.float32)


@pytest.mark.parametrize(("global_dim", "patch_dim"), [(640, 112), (768, 384)])
def test_vectors_are_the_nearer_the_nearer_the_values_are(global_dim: int, patch_dim: int) -> None:
    rng = np.random.default_rng(1)
    noise = [cv2.GaussianBlur(rng.normal(0, 0.1, (120, 160)), (0, 0), 1).astype(np.float32) for _ in range(2)]
    made = [cell_vectors(relief(n) + noise[min(i, 1)], 20.0, global_dim, patch_dim) for i, n in enumerate((2, 2, 3, 0))]
    for whole, parts in made:
        assert whole.shape == (global_dim,)
        assert parts.shape[1] == patch_dim
        assert np.linalg.norm(whole) == pytest.approx(1, abs=1e-5)
        assert np.linalg.norm(parts, axis=1) == pytest.approx(1, abs=1e-5)
    by_parts = max_sim(made[0][1], [parts for _, parts in made[1:]])
    by_whole = [float(made[0][0] @ whole) for whole, _ in made[1:]]
    assert by_parts[0] > by_parts[1] > by_parts[2]
    assert by_whole[0] > by_whole[1] > by_whole[2]


def test_vectors_are_the_farther_the_higher_a_stud_is_up_to_all_that_is_shown() -> None:
    """Also where its height is a quarter, or half, of what is shown: an angle that goes round would find it like none."""
    span, plain = 20.0, relief(0) - 10
    _, ours = cell_vectors(plain, span, 640, 112)
    whole, by_parts, by_block, by_whole = cell_vectors(plain, span, 640, 112)[0], [], [], []
    for height in np.linspace(0, span, 17):
        mm = plain.copy()
        mm[20:60, 40:90] += height
        theirs, parts = cell_vectors(mm, span, 640, 112)
        by_parts.append(float(max_sim(ours, [parts])[0]))
        by_block.append(float((ours * parts).sum(1).mean()))
        by_whole.append(float(whole @ theirs))
    assert (np.diff(by_whole) < 0).all(), by_whole
    assert (np.diff(by_block) < 0).all(), by_block
    # by its parts, one so different is like others by chance, and never again like itself
    assert (np.diff(by_parts[:5]) < 0).all(), by_parts
    assert max(by_parts[5:]) < by_parts[4], by_parts


def test_blocks_without_measurements_are_left_out() -> None:
    mm = relief(2)
    mm[:, :80] = np.nan
    _, parts = cell_vectors(mm, 20.0, 640, 112)
    assert 0 < len(parts) <= 0.6 * len(cell_vectors(relief(2), 20.0, 640, 112)[1])
    nothing = np.full((120, 160), np.nan, np.float32)
    whole, parts = cell_vectors(nothing, 20.0, 640, 112)
    assert np.isfinite(whole).all()
    assert len(parts) == 1
    assert np.isfinite(parts).all()
