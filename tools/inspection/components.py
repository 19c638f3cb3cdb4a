"""What is counted: kinds of parts of which every golden sample shows the same number, found without labels.

The cells of all golden samples are clustered by what the encoder sees there. Connected cells of some clusters are instances
of a candidate; it is a component if every golden sample has as many of them. That needs no registration, so parts that lie
loosely are counted too. A golden sample that deviates alone shows how often counting is wrong: see `learn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.rows.calibrations import Component
from refdiff.model.difference.features import Features
from refdiff.model.images import Box

VERSION = "1"  # part of every calibration key: raise when counts change
STRIDE = 16  # of the encoder's map: coarser ones blur small parts, finer ones see edges rather than parts
_FINER = 4  # a cell of the map is looked at as so many, squared
_CLUSTERS = (12, 24)
_CELLS = 20_000  # of all golden samples that are clustered
_LEAST = 2  # a single one, such as the ground, is not counted

Look = NDArray[np.float32]  # (h, w, C) cells of unit norm
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Instance:
    """Connected cells of a component. box: px of the photo. number: of components that it is by its area, 1 or more."""

    box: Box
    number: int


@dataclass(frozen=True)
class Count:
    """How many of a component a photo shows. number: of the component, 1, 2, ..."""

    number: int
    expected: int
    instances: list[Instance]
    name: str | None = None  # what people call it

    @property
    def found(self) -> int:
        return sum(i.number for i in self.instances)

    @property
    def wrong_by(self) -> int:
        return abs(self.found - self.expected)

    def __str__(self) -> str:
        return said_count(self.number, self.found, self.expected, self.name)


def said_count(number: int, found: int, expected: int, name: str | None = None) -> str:
    """`component 2: 5 of 6`, `component 2: 7 instead of 6`, with a name `clip: 5 of 6`."""
    return f"{name or f'component {number}'}: {found} {'instead of' if found > expected else 'of'} {expected}"


@dataclass(frozen=True)
class Learned:
    """The components of a product, the most distinct first; and by how many each golden sample, in their
    order, deviates from those that the others alone would give."""

    components: list[Component]
    wrong_by: list[int]


def look_of(features: Features) -> Look:
    """What components are told apart by."""
    cells = np.asarray(features.maps[STRIDE]).transpose(1, 2, 0)
    return np.asarray(cells / np.maximum(np.linalg.norm(cells, axis=2, keepdims=True), 1e-12), np.float32)


def learn(looks: Sequence[Look], ignored: Sequence[Mask | None]) -> Learned:
    """Find the components of golden samples, each of another part. ignored: (H, W) of any size, what does not count.

    What is chosen from many candidates fits those that it was chosen by, so each golden sample is held against the
    components that the others choose. Clusters and areas are of all, so how often good parts deviate is measured that way,
    not guaranteed.
    """
    cells = _sample(looks)
    made = [c for k in _CLUSTERS if len(cells) > k for c in _candidates(looks, ignored, cells, k)]
    n = len(looks)
    wrong_by = [0] * n

    @cache
    def overlap(a: int, b: int) -> bool:
        one, other = made[a].within, made[b].within
        return bool((one & other).sum() > min(one.sum(), other.sum()) / 2)

    for left_out in range(n):
        others = [i for i in range(n) if i != left_out]
        for one in _chosen(made, others, overlap):
            wrong_by[left_out] += abs(int(one.counts[left_out] - one.counts[others[0]]))
    return Learned([one.component(int(one.counts[0])) for one in _chosen(made, range(n), overlap)], wrong_by)


def count(components: Sequence[Component], look: Look, ignored: Mask | None, size: tuple[int, int]) -> list[Count]:
    """Count the components of a photo of `size` (H, W) px. look, ignored: as for `learn`."""
    clusters: dict[int, NDArray[np.intp]] = {}
    found = []
    for number, one in enumerate(components, start=1):
        centres = one.centres
        key = hash(centres.tobytes())
        if key not in clusters:
            clusters[key] = _nearest(look, centres, ignored)
        mask = np.isin(clusters[key], one.members)
        per_cell = size[1] / mask.shape[1], size[0] / mask.shape[0]
        instances = []
        for x, y, w, h, area in _instances(mask):
            if times := _whole(area / one.area):
                box = (x * per_cell[0], y * per_cell[1], (x + w) * per_cell[0], (y + h) * per_cell[1])
                x0, y0, x1, y1 = (round(float(v)) for v in box)
                instances.append(Instance((x0, y0, x1, y1), int(times)))
        found.append(Count(number, one.count, instances))
    return found


# ---- pieces ----


@dataclass(frozen=True)
class _Candidate:
    """counts, clear: of each golden sample; clear: how far an area is from a whole number there, 0..0.5."""

    centres: NDArray[np.float32]  # (K, C)
    members: list[int]
    area: float
    counts: NDArray[np.intp]
    clear: NDArray[np.float64]
    within: Mask  # (all cells of all golden samples,): the boxes of its instances

    def component(self, count: int) -> Component:
        return Component(self.centres, self.members, self.area, count)


def _sample(looks: Sequence[Look]) -> Look:
    """(n, C): cells of the finer grid, as many of each golden sample."""
    rng, each = np.random.default_rng(0), max(1, _CELLS // len(looks))
    chosen = []
    for look in looks:
        h, w = look.shape[0] * _FINER, look.shape[1] * _FINER
        some = rng.choice(h * w, min(each, h * w), replace=False)
        planes = [cv2.resize(plane, (w, h)).ravel()[some] for plane in np.moveaxis(look, 2, 0).copy()]
        chosen.append(np.stack(planes, 1))
    return np.concatenate(chosen)


def _candidates(looks: Sequence[Look], ignored: Sequence[Mask | None], cells: Look, k: int) -> Iterator[_Candidate]:
    """Clusters of cells, and what they merge to, that most golden samples show in one number and away from the edge."""
    # only calibration learns; what counts needs none of them
    from scipy.cluster.hierarchy import linkage
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # sums of several threads differ in their last bits, and with them what is a component
    with threadpool_limits(1):
        made = KMeans(k, n_init=2, random_state=0, max_iter=50).fit(cells)
    centres = made.cluster_centers_.astype(np.float32)
    clusters = [_nearest(x, centres, ig) for x, ig in zip(looks, ignored, strict=True)]
    merged = [frozenset([i]) for i in range(k)]
    for a, b, *_ in linkage(centres, "ward")[:-1]:
        merged.append(merged[int(a)] | merged[int(b)])
    for members in merged:
        masks = [np.isin(c, list(members)) for c in clusters]
        found = [_instances(m) for m in masks]
        stats = np.concatenate(found)
        at_edge = np.concatenate([_at_edge(f, m) for f, m in zip(found, masks, strict=True)])
        areas = stats[:, 4]
        if not len(areas) or areas[at_edge].sum() > areas.sum() / 2:
            continue
        order = np.sort(areas)
        area = float(order[np.searchsorted(order.cumsum(), areas.sum() / 2)])
        counts = np.array([int(_whole(f[:, 4] / area).sum()) for f in found])
        if (counts != np.median(counts)).sum() > 1 or np.median(counts) < _LEAST:
            continue  # none, whichever golden sample is left out
        clear = np.array([np.abs(f[:, 4] / area - _whole(f[:, 4] / area)).max(initial=0) for f in found])
        yield _Candidate(
            centres,
            sorted(members),
            area,
            counts,
            clear,
            np.concatenate([_boxes(f, m) for f, m in zip(found, masks, strict=True)]),
        )


def _chosen(made: Sequence[_Candidate], golden: Sequence[int], overlap: Callable[[int, int], bool]) -> list[_Candidate]:
    """Those that all of these golden samples (by number) show in one number.

    Of those whose boxes overlap, as those of a part and of its rim do, the one whose areas are nearest to whole numbers.
    """
    at = list(golden)
    stable = [i for i, c in enumerate(made) if (c.counts[at] == c.counts[at[0]]).all()]
    found: list[int] = []
    for one in sorted(stable, key=lambda i: float(made[i].clear[at].max())):
        if not any(overlap(one, other) for other in found):
            found.append(one)
    return [made[i] for i in found]


def _nearest(look: Look, centres: NDArray[np.float32], ignored: Mask | None) -> NDArray[np.intp]:
    """The cluster of each cell of a finer grid; -1 where nothing counts."""
    # how near a cell is to a centre is linear in the cell, up to what is the same for all centres
    nearness = 2 * look @ centres.T - (centres**2).sum(1)
    size = look.shape[1] * _FINER, look.shape[0] * _FINER
    fine = np.stack([cv2.resize(plane, size) for plane in np.moveaxis(nearness, 2, 0).copy()])
    nearest = fine.argmax(0)
    if ignored is not None and ignored.any():
        nearest[cv2.resize(ignored.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5] = -1
    return nearest


def _instances(mask: Mask) -> NDArray[np.int32]:
    """(n, 5): x, y, width, height and area of what is connected, cells."""
    return np.asarray(cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)[2][1:], np.int32)


def _boxes(stats: NDArray[np.int32], mask: Mask) -> Mask:
    """(cells,): those in the box of an instance."""
    within = np.zeros_like(mask)
    for x, y, w, h, _ in stats:
        within[y : y + h, x : x + w] = True
    return within.ravel()


def _at_edge(stats: NDArray[np.int32], mask: Mask) -> Mask:
    x, y, w, h = stats[:, :4].T
    return np.asarray((x == 0) | (y == 0) | (x + w == mask.shape[1]) | (y + h == mask.shape[0]))


def _whole(ratio: Any) -> Any:
    """The nearest whole number."""
    return np.floor(np.asarray(ratio) + 0.5).astype(int)
