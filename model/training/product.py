"""A difference network for one product: the shared one, trained further on the product's own good samples.

What varies in good parts of the product is learned from pairs of them as they are, under other light; what a defect looks
like on it, from the same pairs with a synthetic defect, and from parts with defects that people confirmed. Knows nothing
about goldens, registration or calibration.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refdiff.model.difference.comparing import reference_picture
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import ReferenceView, match
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.model.synthesis.photo_pairs import foreground_of, nuisance
from refdiff.model.training.difference import average_into, forward, losses
from refdiff.model.training.pairs import NO_TYPE, Draft, spoil
from refdiff.model.training.pool import batch_of, network_row, target_row

_GOOD = 0.2  # part of the pairs that stay without a defect
_OTHER_LIGHT = 0.7  # part of the pairs whose query is under other light
_FOREIGN = 0.4  # part of the defects that are cut from another sample
_CONFIRMED = 4  # one of so many pairs, at most, is of a confirmed defect, ...
_TIMES = 8  # ... and no defect is in more than so many
_DECAY = 0.97  # of the average of the weights that is kept


@dataclass(frozen=True)
class ProductRecipe:
    """How a network is fitted to a product."""

    pairs: int = 256
    passes: int = 4
    batch: int = 16
    lr: float = 5e-4
    weight_decay: float = 1e-2
    seed: int = 0

    @property
    def steps(self) -> int:
        return self.passes * (self.pairs // self.batch)

    def described(self) -> dict[str, float]:
        """What two networks of the same samples must share to be the same."""
        return asdict(self)


@dataclass(frozen=True)
class Example:
    """A good sample (or a tile of it) as the network sees it beside its references."""

    picture: RgbImage  # (H, W, 3) uint8, sides multiples of 32
    references: Sequence[ReferenceView]


@dataclass(frozen=True)
class Confirmed:
    """A part with a defect that a person confirmed (or a tile of it).

    The person has said neither what kind it is, nor that the rest is good: a second defect may have been missed.
    """

    example: Example
    mask: NDArray[np.bool_]  # (H, W): the defect


@dataclass(frozen=True)
class Spoiled:
    """A sample under other light, with defects or none."""

    picture: RgbImage  # (H, W, 3) uint8
    mask: NDArray[np.bool_]  # (H, W): the defects
    types: NDArray[np.uint8]  # (H, W) index of DIFFERENCE_TYPES, 255 = none
    structural: bool | None  # a component is wrong; None: unknown
    rest_known: bool = True  # outside of the mask it is good


def spoiled(picture: RgbImage, others: Sequence[RgbImage], rng: np.random.Generator, good: float = _GOOD) -> Spoiled:
    """others: further samples, what foreign matter is cut from. good: probability that it has no defect."""
    size = picture.shape[:2]
    draft = Draft(picture, [], np.zeros(size, bool), np.full(size, NO_TYPE, np.uint8), False)
    if rng.random() >= good:
        donor = others[int(rng.integers(len(others)))] if rng.random() < _FOREIGN else None
        spoil(draft, rng, donor, foreground_of(picture))
    assert draft.mask is not None
    return Spoiled(_other_light(draft.query, rng), draft.mask, draft.types, bool(draft.structural))


def _other_light(picture: RgbImage, rng: np.random.Generator) -> RgbImage:
    query = nuisance(picture, rng, float(rng.uniform(0, 0.5))) if rng.random() < _OTHER_LIGHT else picture
    return np.ascontiguousarray(query)


def confirmed_turn(i: int, defects: int) -> tuple[int, int] | None:
    """Which of so many confirmed defects pair i is of, and how many pairs were of it before; None: of a good sample."""
    turn = i // _CONFIRMED
    if i % _CONFIRMED < _CONFIRMED - 1 or turn >= _TIMES * defects:
        return None
    return turn % defects, turn // defects


def fit_network(
    net: DifferenceNetwork,
    examples: Sequence[Example],
    encode: Callable[[RgbImage], FeatureMaps],
    recipe: ProductRecipe,
    progress: Progress = silent,
    defects: Sequence[Sequence[Confirmed]] = (),
) -> DifferenceNetwork:
    """Train `net` (in eval mode: its batch statistics stay) on pairs of the examples; returns it.

    defects: the tiles of each, which take turns. They are in a quarter of the pairs at most.
    encode: the maps of a picture at its own size. The same recipe and examples give the same pairs.
    """
    rng = np.random.default_rng(recipe.seed)
    by_size: dict[tuple[int, ...], list[dict[str, Tensor]]] = defaultdict(list)
    pictures = [e.picture for e in examples]
    for i in range(recipe.pairs):
        if (turn := confirmed_turn(i, len(defects))) is None:
            example = examples[i % len(examples)]
            made = spoiled(example.picture, pictures, rng)
        else:
            which, before = turn
            tile = defects[which][before % len(defects[which])]
            example, mask = tile.example, tile.mask
            untyped = np.full(mask.shape, NO_TYPE, np.uint8)
            made = Spoiled(_other_light(example.picture, rng), mask, untyped, None, rest_known=False)
        by_size[example.picture.shape].append(_row(example, made, encode))
        progress("synthetic pairs", i + 1, recipe.pairs)
    order = [rows for rows in by_size.values() for _ in range(max(1, len(rows) // recipe.batch))]
    trained = [p.requires_grad_(True) for p in net.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    average = {k: v.detach().clone() for k, v in net.state_dict().items()}
    total = recipe.passes * len(order)
    for step in range(1, total + 1):
        rows = order[int(rng.integers(len(order)))]
        chosen = [rows[i] for i in rng.permutation(len(rows))[: recipe.batch]]
        batch = batch_of({k: torch.stack([row[k] for row in chosen]) for k in chosen[0]})
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(1.0, step / 10) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / total)))
        loss = torch.stack(list(losses(forward(net, batch), batch).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        average_into(average, net, min(_DECAY, step / (step + 10)))
        progress("training", step, total)
    net.load_state_dict(average)
    for p in trained:
        p.requires_grad_(False)
    return net


def _row(example: Example, made: Spoiled, encode: Callable[[RgbImage], FeatureMaps]) -> dict[str, Tensor]:
    picture = torch.from_numpy(made.picture).permute(2, 0, 1).contiguous()
    reference, covered = reference_picture(picture, example.references)
    row = network_row(match(encode(made.picture), example.references), picture, reference, covered)
    label = torch.zeros((), dtype=torch.uint8)  # of the source; there is one
    truth = target_row(bool(made.mask.any()), made.mask, made.types, made.structural)
    unsure = torch.zeros_like(truth["mask"]) if made.rest_known else 1 - truth["mask"]
    return row | truth | {"source": label, "unsure": unsure}
