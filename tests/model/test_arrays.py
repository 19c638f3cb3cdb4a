"""What compares features gives the same on numpy arrays as on tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from refdiff.model.arrays import Array, is_plain, like, mean_cells, on_cells, without_gradients
from refdiff.model.difference.comparing import flat_input, network_input, pixel_input
from refdiff.model.difference.features import features_of
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.patch_distance import anomaly_map, reached_cells

H, W = 192, 160
CHANNELS = {4: 8, 8: 40, 16: 60, 32: 130}


def _maps(rng: np.random.Generator) -> dict[int, NDArray[np.float32]]:
    return {s: rng.standard_normal((c, H // s, W // s)).astype(np.float32) for s, c in CHANNELS.items()}


@pytest.fixture(scope="module")
def made() -> tuple[dict[int, Array], list[ReferenceView], NDArray[np.uint8]]:
    """A query and three references: one that ends within it, one that covers it, and one that did not register."""
    rng = np.random.default_rng(0)
    query = _maps(rng)
    others = [{s: 0.4 * x + query[s] for s, x in _maps(rng).items()} for _ in range(3)]
    valid, covered = np.ones((H // 8, W // 8), bool), np.ones((H, W), bool)
    part, shown = valid.copy(), covered.copy()
    part[:, 12:], shown[:, 96:] = False, False
    pictures = rng.integers(0, 256, (3, 3, H, W)).astype(np.uint8)
    views = [
        ReferenceView(others[0], part, True, pictures[0], shown, others[1]),
        ReferenceView(others[1], valid, True, pictures[1], covered),
        ReferenceView(others[2], part, registered=False),
    ]
    return query, views, pictures[2]


def _as_tensors(maps: dict[int, Array] | None) -> dict[int, Array] | None:
    return None if maps is None else {s: torch.from_numpy(x.copy()) for s, x in maps.items()}


def test_comparison_of_arrays_is_that_of_tensors(made: tuple) -> None:
    query, views, picture = made
    tensors = [ReferenceView(_as_tensors(v.maps) or {}, v.valid, v.registered, v.picture, v.covered, _as_tensors(v.own_maps))
               for v in views]  # fmt: skip
    found = []
    for maps, references in ((query, views), (_as_tensors(query) or {}, tensors)):
        seen = network_input(picture, maps, references)
        features = features_of(maps, (H, W), (H, W))
        found.append([*flat_input(seen.matched, seen.pixels), anomaly_map(maps, references),
                      reached_cells(references, (H // 8, W // 8)), features.global_vec, features.patches])  # fmt: skip
    plain, others = found
    assert all(map(is_plain, plain))
    assert not any(map(is_plain, others[:-3]))
    for one, other in zip(plain, others, strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(one, np.asarray(other), rtol=0, atol=5e-5)


@pytest.mark.parametrize(("h", "w"), [(6, 5), (12, 10), (3, 20)])
def test_interpolation_and_pooling_are_torchs(h: int, w: int) -> None:
    x = np.random.default_rng(1).standard_normal((7, h, w)).astype(np.float32)
    tensor = torch.from_numpy(x)
    np.testing.assert_allclose(on_cells(x, (24, 20)), on_cells(tensor, (24, 20)).numpy(), atol=1e-6)
    np.testing.assert_allclose(mean_cells(x, 4), mean_cells(tensor, 4).numpy(), atol=1e-6)


def test_arrays_of_one_kind_are_handed_on_as_they_are() -> None:
    x = np.zeros(3, np.float32)
    tensor = like(x, torch.zeros(1))
    assert isinstance(tensor, torch.Tensor)
    assert like(tensor, torch.zeros(1)) is tensor
    assert like(x, x) is x
    assert isinstance(like(tensor, x), np.ndarray)


def test_no_gradients_are_recorded() -> None:
    weight = torch.ones(1, requires_grad=True)
    assert not without_gradients(lambda: weight * 2)().requires_grad


def test_pixel_input_of_plain_arrays_is_float32() -> None:
    picture = np.zeros((1, 3, 32, 32), np.uint8)
    assert pixel_input(picture, picture, np.ones((1, 32, 32), bool)).dtype == np.float32
