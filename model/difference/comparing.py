"""How one query is compared with its references, whatever runs the network: what it sees, and what follows of its answer.

Runs on numpy arrays as well as on tensors. Knows nothing about goldens, registration or calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.model.arrays import Array, library_of, like, without_gradients
from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.matching import STRIDES, Matched, ReferenceView, composite_reference, match

MAP_STRIDE = 4  # of the anomaly map, working px
SCORED_PART = 0.002  # the image score is the mean of this part of the cells, the highest
SHARED_POWER = 0.5  # how much the logits of the shared network count in `fuse`
# networks fitted to a product know what varies in it, so they count for more; chosen on rendered labels and solar cells
FITTED_POWER = 1.0
_MIN_WEIGHT = 0.02  # keeps part of the distance where the network sees nothing


@dataclass(frozen=True)
class NetworkDifference:
    """What the network makes of every place."""

    logits: Array  # (h4, w4) float32, > 0 = more likely defect than not
    types: Array  # (T, h4, w4) probabilities of DIFFERENCE_TYPES


@dataclass(frozen=True)
class NetworkInput:
    """What a network sees of one query and its references; the same for all networks."""

    matched: Matched
    pixels: Array  # (1, 8, H, W), see `pixel_input`


class Comparing(Protocol):
    """What compares a query with its references."""

    power: float  # how much its logits count in `fuse`

    @property
    def sha256(self) -> str:
        """Names it in calibrations and reports."""
        ...

    def compare(self, picture: Array, maps: dict[int, Array], references: Sequence[ReferenceView]) -> NetworkDifference:
        """See `network_input`."""
        ...


class Network(Protocol):
    """A trained network."""

    @property
    def sha256(self) -> str:
        """Of its weights."""
        ...

    def look(self, seen: NetworkInput) -> NetworkDifference:
        """What it makes of a query and its references."""
        ...


@without_gradients
def network_input(picture: Array, maps: dict[int, Array], references: Sequence[ReferenceView]) -> NetworkInput:
    """picture: (3, H, W) uint8 query at working size; maps: its encoder maps, stride -> (C, H/s, W/s)."""
    reference, covered = (like(x, maps[STRIDES[0]]) for x in reference_picture(picture, references))
    query = like(picture, maps[STRIDES[0]])
    return NetworkInput(match(maps, references), pixel_input(query[None], reference[None], covered[None]))


def flat_input(matched: Matched, pixels: Array) -> list[Array]:
    """All arrays in the order in which a network takes them: query, reference and distances stride by stride, pixels."""
    parts: tuple[Mapping[int, Array], ...] = (matched.query, matched.reference, matched.distances)
    return [*(part[s] for part in parts for s in STRIDES), pixels]


def reference_picture(picture: Array, references: Sequence[ReferenceView]) -> tuple[Array, Array]:
    """Of the registered references what fits a query (3, H, W) best, place by place: (3, H, W) uint8; and (H, W) bool, where
    all of them reach. The query itself, reached nowhere, where none is registered. Arrays of the kind of `picture`."""
    pictures = [like(r.picture, picture) for r in references if r.picture is not None]
    reaches = [like(r.covered, picture) for r in references if r.covered is not None]
    if len(pictures) == 1:
        return pictures[0], reaches[0]
    if pictures:
        library = library_of(picture)
        return composite_reference(picture, library.stack(pictures)), library.stack(reaches).all(0)
    return picture, like(np.zeros(tuple(picture.shape[-2:]), bool), picture)


def pixel_input(query: Array, reference: Array, covered: Array) -> Array:
    """(B, 8, H, W) float32 for the network: both pictures, their difference with a pixel of tolerance, and what is covered.

    query, reference: (B, 3, H, W) uint8 RGB on one pixel grid; covered: (B, H, W) bool, False where the reference does not
    reach (everywhere if it could not be registered).
    """
    library = library_of(query)
    b, _, h, w = query.shape
    out = library.empty((b, 8, h, w), dtype=library.float32)
    out[:, 0:3], out[:, 3:6], out[:, 7] = query, reference, covered
    out[:, 0:6] *= 1 / 127.5
    out[:, 0:6] -= 1
    if not covered.all():
        out[:, 3:6] = library.where(covered[:, None], out[:, 3:6], out[:, 0:3])
    grey_q, grey_r = out[:, 0:3].mean(1), out[:, 3:6].mean(1)
    # how far the query leaves the range of the reference's neighbourhood
    above, below = grey_q - _highest(grey_r), _highest(-grey_r) + grey_q
    out[:, 6] = above.clip(0) - (-below).clip(0)
    return out


def _highest(x: Array) -> Array:
    """The maximum of the 3 x 3 neighbourhood of (B, H, W); faster than pooling on CPUs."""
    library = library_of(x)
    tall = library.concat([x[:, :1], x, x[:, -1:]], 1)
    tall = library.maximum(library.maximum(tall[:, :-2], tall[:, 1:-1]), tall[:, 2:])
    wide = library.concat([tall[:, :, :1], tall, tall[:, :, -1:]], 2)
    return library.maximum(library.maximum(wide[:, :, :-2], wide[:, :, 1:-1]), wide[:, :, 2:])


class DistanceOnly:
    """No trained network, as with an encoder that none was trained on: the distance to the nearest patch decides alone."""

    power = 0.0
    sha256 = "none"

    def compare(self, picture: Array, maps: dict[int, Array], references: Sequence[ReferenceView]) -> NetworkDifference:
        """Nothing at every place: no logits, and no type."""
        h, w = picture.shape[-2] // MAP_STRIDE, picture.shape[-1] // MAP_STRIDE
        return NetworkDifference(np.zeros((h, w), np.float32), np.zeros((len(DIFFERENCE_TYPES), h, w), np.float32))


class FittedScorer:
    """The mean of networks that were fitted to one product."""

    power = FITTED_POWER

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self.sha256 = networks[0].sha256

    def compare(self, picture: Array, maps: dict[int, Array], references: Sequence[ReferenceView]) -> NetworkDifference:
        """`network_input`, then what they make of it on average."""
        seen = network_input(picture, maps, references)
        found = [network.look(seen) for network in self._networks]
        library = library_of(found[0].logits)
        logits = library.stack([f.logits for f in found]).mean(0)
        return NetworkDifference(logits, library.stack([f.types for f in found]).mean(0))


def fuse(patches: NDArray[np.float32], logits: NDArray[np.float32], power: float = SHARED_POWER) -> NDArray[np.float32]:
    """(h4, w4) float32 >= 0: the distance to the nearest patch (h8, w8), weighted by what the network makes of the place.

    The distance alone takes every natural variation for a defect, the network alone overlooks what it was not trained on;
    their product (of powers) was better than either on products that neither had seen.
    """
    fine = cv2.resize(patches, logits.shape[::-1], interpolation=cv2.INTER_CUBIC)
    weight = (np.logaddexp(0, logits) + _MIN_WEIGHT) ** power
    return np.asarray(weight * np.maximum(fine, 1e-3), np.float32)
