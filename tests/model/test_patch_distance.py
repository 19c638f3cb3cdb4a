"""Patch matching on made-up descriptors whose right answer is known."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.patch_distance import anomaly_map, image_score, reached_cells
from refdiff.model.difference.patch_distance import distance as patch_distance
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render

H, W = 20, 24
RADIUS = round(0.1 * W)  # cells that the matching window reaches


def noise(seed: int, h: int = H, w: int = W) -> Tensor:
    """(64, h, w) unit norm, every cell another direction."""
    return F.normalize(torch.randn(64, h, w, generator=torch.Generator().manual_seed(seed)), dim=0)


def maps(cells: Tensor) -> dict[int, Tensor]:
    """Encoder maps whose descriptors are these cells, with two channels of zeros."""
    return {8: cells, 16: torch.zeros(1, 2, 2), 32: torch.zeros(1, 1, 1)}


def view(
    cells: Tensor, *, registered: bool = True, valid: Tensor | None = None, own: Tensor | None = None
) -> ReferenceView:
    everywhere = torch.ones(cells.shape[-2:], dtype=torch.bool)
    own_maps = None if own is None else maps(own)
    return ReferenceView(maps(cells), everywhere if valid is None else valid, registered, own_maps=own_maps)


def distance(query: Tensor, reference: ReferenceView) -> Tensor:
    return patch_distance(FeatureMaps(maps(query)), reference)


def test_patch_distance_of_equal_images_is_zero() -> None:
    cells = noise(1)
    for registered in (True, False):
        assert distance(cells, view(cells, registered=registered)).abs().max() < 1e-5


def test_anomaly_map_is_independent_of_the_order_of_references() -> None:
    views = [view(noise(i), registered=i != 2) for i in range(1, 4)]
    found = [anomaly_map(maps(noise(0)), order) for order in permutations(views)]
    assert all(torch.equal(m, found[0]) for m in found)
    assert found[0].mean() > 0.2, "unrelated cells differ"


def test_anomaly_map_uses_the_best_reference_at_each_cell() -> None:
    query, other = noise(0), noise(1)
    half = other.clone()
    half[:, :, : W // 2] = query[:, :, : W // 2]
    rest = other.clone()
    rest[:, :, W // 2 :] = query[:, :, W // 2 :]
    one = anomaly_map(maps(query), [view(half)])
    assert one[:, : W // 2].max() < 1e-5
    assert one[:, W // 2 :].min() > 0.1
    assert anomaly_map(maps(query), [view(half), view(rest)]).max() < 1e-5


def test_patch_distance_forgives_shifts_inside_the_window_only() -> None:
    query = noise(3)
    near = distance(query, view(torch.roll(query, (RADIUS, -RADIUS), (1, 2))))
    far = distance(query, view(torch.roll(query, RADIUS + 1, 2)))
    inner = (slice(RADIUS, H - RADIUS), slice(RADIUS + 1, W - RADIUS - 1))
    assert near[inner].max() < 1e-5
    assert far[inner].min() > 0.1
    # its counterpart exists elsewhere, so it costs half of what something new costs
    new = distance(query, view(noise(4)))
    assert far[inner].mean() < 0.75 * new[inner].mean()


def test_missing_component_that_occurs_elsewhere_is_found_only_with_registration() -> None:
    background, component = noise(5)[:, :1, :1], noise(6)[:, :4, :4]
    good = background.expand(-1, H, W).clone()
    good[:, 8:12, 8:12] = component
    missing = background.expand(-1, H, W).clone()
    moved = torch.roll(good, 9, 2)
    for query in (missing, moved):
        assert distance(query, view(good, registered=False)).max() < 1e-5
    # the window sees background beside a component of 4 cells: only what was put elsewhere stands out
    assert distance(moved, view(good))[8:12, 17:21].min() > 0.1
    large = background.expand(-1, H, W).clone()
    large[:, 6:15, 6:15] = noise(6)[:, :9, :9]
    lost = distance(missing, view(large))
    assert lost[10, 10] > 0.1
    assert lost[0, 0] < 1e-5


def test_uncovered_cells_are_compared_with_the_unwarped_reference() -> None:
    query = noise(7)
    covered = torch.ones(H, W, dtype=torch.bool)
    covered[:, : W // 2] = False
    warped = query.clone()
    warped[:, :, : W // 2] = noise(8)[:, :, : W // 2]  # made-up pixels
    without = distance(query, view(warped, valid=covered))
    own = distance(query, view(warped, valid=covered, own=query))
    assert own.max() < 1e-5
    assert without[:, : W // 2 - RADIUS - 2].min() > 0.1
    assert without[:, W // 2 + 3 :].max() < 1e-5


def test_reached_cells_are_those_covered_by_any_reference() -> None:
    left = torch.zeros(H, W, dtype=torch.bool)
    left[:, : W // 2] = True
    assert reached_cells([view(noise(0), valid=left), view(noise(1), valid=~left)], (H, W)).float().mean() > 0.85
    only = reached_cells([view(noise(0), valid=left)], (H, W))
    assert not only[:, W // 2 :].any()
    assert only[:, : W // 2 - 1].all()
    assert reached_cells([view(noise(0), registered=False)], (H, W)).all()


def test_image_score_is_the_mean_of_the_largest_hundredth() -> None:
    cells = torch.zeros(20, 20)
    cells.flatten()[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert image_score(cells) == pytest.approx(2.5)
    keep = torch.ones(20, 20, dtype=torch.bool)
    keep[0, 3] = False
    assert image_score(cells, keep) == pytest.approx(2.0)  # 3 of the 399 that are left
    assert image_score(cells, torch.zeros_like(keep)) == 0.0
    assert image_score(torch.tensor([[5.0, 1.0]])) == 5.0


def test_descriptors_of_real_features_are_unit_norm_on_the_grid() -> None:
    cells = _features("weave", 1, (96, 128)).descriptors
    assert cells.shape == (12 * 16, 472)
    assert torch.allclose(cells.norm(dim=1), torch.ones(12 * 16), atol=1e-5)


def test_sketch_keeps_the_similarity_of_descriptors() -> None:
    maps = _features("label", 1, (256, 320))
    sketch, directions = maps.sketch
    assert len(sketch) < maps.descriptors.shape[1]
    assert torch.allclose(maps.descriptors @ directions, sketch.T, atol=1e-5)
    # few channels: nothing is left out
    small = FeatureMaps({8: noise(0), 16: noise(1, 2, 2)[:2], 32: noise(2, 2, 2)[:1]})
    assert torch.allclose(small.sketch[0].T @ small.sketch[0], small.descriptors @ small.descriptors.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["label", "circuit", "weave", "moulded"])
def test_search_in_a_sketch_finds_what_a_full_search_finds(kind: str) -> None:
    query, *others = (_features(kind, photo, (256, 320)) for photo in range(3))
    valid = torch.ones(query.grid, dtype=torch.bool)
    for registered in (True, False):
        views = [ReferenceView(o, valid, registered) for o in others]
        found, right = anomaly_map(query, views), torch.stack([_full(query, v) for v in views]).amin(0)
        assert (found > right - 1e-5).all(), "a counterpart that is closer than the closest"
        assert (found - right).mean() < 1e-3 * right.mean()
        assert image_score(found) == pytest.approx(image_score(right), rel=1e-3)


def _features(kind: str, photo: int, size: tuple[int, int]) -> FeatureMaps:
    encoder = Encoder(ModelSettings(working_px=max(size)))
    return encoder.embed(render(kind, 1, photo, size=size).image).maps


def _full(query: FeatureMaps, reference: ReferenceView) -> Tensor:
    """The distance by whole descriptors of all cells; the reference covers everything."""
    h, w = query.grid
    closeness = query.descriptors @ FeatureMaps.of(reference.maps).descriptors.T
    anywhere = closeness.amax(1)
    if not reference.registered:
        return (1 - anywhere).view(h, w).clamp_min(0)
    y, x = (v.flatten() for v in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    radius = round(0.1 * max(h, w))
    inside = ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)
    nearby = closeness.masked_fill(~inside, -2).amax(1)
    return (1 - (nearby + anywhere) / 2).view(h, w).clamp_min(0)
