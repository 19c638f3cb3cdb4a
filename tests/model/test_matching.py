"""Feature matching: existing content is found, missing content is not, and the order of references does not matter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from refdiff.model.difference.matching import RADIUS, STRIDES, Matched, ReferenceView, composite_reference, match

CHANNELS = {4: 6, 8: 8, 16: 10, 32: 12}
H, W = 128, 96


def _maps(seed: int) -> dict[int, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {s: torch.randn(c, H // s, W // s, generator=g) for s, c in CHANNELS.items()}


def _reference(maps: dict[int, Tensor], registered: bool = True, covered: int | None = None) -> ReferenceView:
    valid = torch.ones(H // 8, W // 8, dtype=torch.bool)
    if covered is not None:
        valid[:, covered:] = False
    return ReferenceView(maps, valid, registered)


def test_query_matched_with_itself_has_zero_distance() -> None:
    maps = _maps(0)
    found = match(maps, [_reference(maps)])
    for s in STRIDES:
        assert found.query[s].shape == found.reference[s].shape == (1, CHANNELS[s], H // s, W // s)
        assert found.distances[s].shape == (1, 3, H // s, W // s)
        assert float(found.distances[s].max()) < 1e-5
        assert float((found.reference[s] - found.query[s]).abs().mean()) < 0.05


def test_moved_reference_matches_inside_the_window_only() -> None:
    maps = _maps(1)
    near = {s: torch.roll(m, 16 // s if s <= 16 else 0, dims=2) for s, m in maps.items()}
    far = {s: torch.roll(m, 48 // s, dims=2) for s, m in maps.items()}
    inside, outside = (match(maps, [_reference(m)]).distances[8][0] for m in (near, far))
    assert 16 // 8 <= RADIUS[8] < 48 // 8
    assert float(inside[0, 4:-4, 4:-4].max()) < 1e-5
    assert float(outside[0].mean()) > 0.2  # nearest in the window
    assert float(outside[2].max()) < 1e-5  # nearest anywhere
    unregistered = match(maps, [_reference(far, registered=False)]).distances[8][0]
    assert float(unregistered[0].max()) < 1e-5


def test_matching_is_independent_of_reference_order_and_improves_with_each() -> None:
    query, a, b = _maps(2), _maps(3), _maps(4)
    one, other = match(query, [_reference(a), _reference(b)]), match(query, [_reference(b), _reference(a)])
    alone = match(query, [_reference(a)])
    for s in STRIDES:
        assert torch.allclose(one.reference[s], other.reference[s], atol=1e-5)
        assert torch.allclose(one.distances[s], other.distances[s], atol=1e-5)
    for s in (8, 16, 32):  # stride 4 follows the match of stride 8, which may be another one then
        assert (one.distances[s][:, 0] <= alone.distances[s][:, 0] + 1e-5).all()
        assert (one.distances[s][:, 0] < alone.distances[s][:, 0] - 1e-3).float().mean() > 0.2


def test_uncovered_cells_are_matched_with_the_whole_reference() -> None:
    query = _maps(5)
    found = match(query, [_reference(query, covered=2)])
    for s in STRIDES:
        assert torch.isfinite(found.distances[s]).all()
        assert torch.isfinite(found.reference[s]).all()
    assert float(found.distances[8][0, 0, :, :2].max()) < 1e-5


def test_unregistered_reference_of_another_size_is_matched() -> None:
    query = _maps(6)
    g = torch.Generator().manual_seed(7)
    other = {s: torch.randn(c, 64 // s, 160 // s, generator=g) for s, c in CHANNELS.items()}
    found = match(query, [ReferenceView(other, torch.ones(8, 20, dtype=torch.bool), False), _reference(query)])
    assert float(found.distances[8][0, 2].max()) < 1e-5


def test_matching_without_references_is_an_error() -> None:
    with pytest.raises(ValueError, match="no reference"):
        match(_maps(0), [])


def test_stacked_matches_form_a_batch() -> None:
    items = [match(_maps(i), [_reference(_maps(i + 10))]) for i in range(3)]
    batch = Matched.stack(items)
    assert batch.query[8].shape == (3, CHANNELS[8], H // 8, W // 8)
    assert torch.equal(batch.distances[4][1], items[1].distances[4][0])


def test_composite_reference_takes_the_better_reference_at_each_place() -> None:
    query = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    a, b = query.clone(), query.clone()
    a[:, :16], b[:, 16:] = 0, 0
    for pair in (torch.stack([a, b]), torch.stack([b, a])):
        best = composite_reference(query, pair)
        assert torch.equal(best[:, 24:], query[:, 24:])
        assert torch.equal(best[:, :8], query[:, :8])


def test_composite_reference_is_the_least_unlike_in_nine_by_nine_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    for highest in (2, 256):  # many alike, and none
        query, *references = torch.randint(0, highest, (5, 3, 32, 40), generator=generator).to(torch.uint8)
        references[0][:] = 255  # the most unlike that there can be
        unlike = (torch.stack(references).double() - query).abs().sum(1, keepdim=True)
        nearby = torch.nn.functional.avg_pool2d(unlike, 9, 1, 4, divisor_override=1)[:, 0]
        expected = torch.stack(references).gather(0, nearby.argmin(0)[None, None].expand(1, 3, -1, -1))[0]
        assert torch.equal(composite_reference(query, torch.stack(references)), expected)
