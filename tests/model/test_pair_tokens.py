"""The tokens of an image pair for the language model: shapes, order, and dependence on the difference."""

from __future__ import annotations

import pytest
import torch

from refdiff.model.difference.encoder import EfficientNetLite0
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.errors import InputError
from refdiff.model.language.configuration import (
    DIFFERENCE_TOKENS,
    IMAGE_TOKENS,
    MAX_REGIONS,
    PAIR_TOKENS,
    RefDiffConfig,
)
from refdiff.model.language.network import PairProjector
from refdiff.model.language.pair_tokens import IMAGE_DIM, PairFeatures, global_dim, grid_dim, pair_features, region_dim
from refdiff.model.language.processor import pair_pixels
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.model.training.language.data import seeing_half

Seeing = tuple[EfficientNetLite0, DifferenceNetwork]


@pytest.fixture(scope="module")
def seeing() -> Seeing:
    encoder, difference, _ = seeing_half()
    assert isinstance(encoder, EfficientNetLite0)
    return encoder, difference


@pytest.fixture(scope="module")
def pairs() -> torch.Tensor:
    """(2, 2, 3, 320, 320): a good pair, and one with a component missing."""
    golden = render("circuit", 5, 1, noise_seed=1).image
    good = render("circuit", 5, 2, noise_seed=2).image
    bad = render("circuit", 5, 2, noise_seed=2, defects=[DefectSpec("missing_component", contrast=1.0, seed=1)]).image
    return torch.stack([pair_pixels(golden, i, 320) for i in (good, bad)])


@pytest.fixture(scope="module")
def seen(seeing: Seeing, pairs: torch.Tensor) -> PairFeatures:
    return pair_features(*seeing, pairs)


def test_pair_features_have_their_shapes(seen: PairFeatures) -> None:
    assert PAIR_TOKENS == 2 * IMAGE_TOKENS + DIFFERENCE_TOKENS == 85
    assert seen.images.shape == (2, 2, 16, IMAGE_DIM)
    assert seen.whole.shape == (2, 1, global_dim(64))
    assert seen.grid.shape == (2, 36, grid_dim(64))
    assert seen.regions.shape == (2, MAX_REGIONS, region_dim(64))
    assert all(v.isfinite().all() for v in seen.as_dict().values())


def test_pair_features_are_the_same_alone_and_in_a_batch(
    seeing: Seeing, pairs: torch.Tensor, seen: PairFeatures
) -> None:
    alone = pair_features(*seeing, pairs[1:])
    for name, value in alone.as_dict().items():
        assert torch.allclose(value[0], getattr(seen, name)[1], atol=2e-3), name


def test_swapped_pair_has_other_region_features(seeing: Seeing, pairs: torch.Tensor, seen: PairFeatures) -> None:
    swapped = pair_features(*seeing, pairs.flip(1))
    assert torch.allclose(swapped.images[:, 0], seen.images[:, 1], atol=1e-4)
    assert not torch.allclose(swapped.regions, seen.regions, atol=0.1)


def test_region_tokens_start_with_the_strongest_defect(seen: PairFeatures) -> None:
    """The strongest place of the broken part is far more likely a defect than that of the good one."""
    at = 64 + 26  # fused, types, then the logit
    assert seen.regions[1, 0, at] > seen.regions[0, 0, at] + 2
    strengths = seen.regions[:, :, at]
    assert (strengths[:, :-1] >= strengths[:, 1:] - 1e-4).all()  # strongest first


def test_projector_makes_one_token_per_feature(seen: PairFeatures) -> None:
    torch.manual_seed(0)
    projector = PairProjector(64, 48)
    projector.fit_scales(seen)
    tokens = projector(seen)
    assert tokens.shape == (2, PAIR_TOKENS, 48)
    assert torch.allclose(tokens.square().mean(-1).sqrt(), projector.gain.expand(2, PAIR_TOKENS), atol=1e-3)


@pytest.mark.parametrize("part", ["whole", "grid", "regions"])
def test_projected_tokens_depend_on_each_part_of_the_difference(seen: PairFeatures, part: str) -> None:
    torch.manual_seed(0)
    projector = PairProjector(64, 48).eval()
    other = PairFeatures(**(seen.as_dict() | {part: getattr(seen, part) + 1}))
    assert not torch.allclose(projector(seen), projector(other))


def test_configuration_without_difference_tokens_is_refused() -> None:
    assert RefDiffConfig(image_only=False).to_dict().get("image_only") is None  # folders built earlier say so
    with pytest.raises(InputError, match="no longer supported"):
        RefDiffConfig(image_only=True)
