"""From the anomaly map to regions: connected, one for each lobe, named by place and by the network's type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from refdiff.model.defect_types import DIFFERENCE_TYPES, UNKNOWN
from refdiff.model.difference.features import resize_to
from refdiff.model.images import Box, Mask, RgbImage, widen
from refdiff.tools.vision.lobes import lobes
from refdiff.tools.vision.registration import Matrix, scaling, warp_reference
from refdiff.tools.vision.shape import tight, union

MAX_REGIONS = 16
PART_OF_PEAK = 0.8  # of the map's peak, above which its place lies where no place is above the threshold
MAP_PX = 4096  # long side of the largest map; what is smoothed and grown on it costs the third power of the side
MIN_TYPE_CONFIDENCE = 0.5
# of a region's own peak: what is weaker is its halo, however low the threshold of very even goldens
MIN_RELATIVE_PEAK = 0.1


@dataclass(frozen=True)
class Region:
    """A lobe of the anomaly map above the threshold, or several, in query px. box: x0, y0, x1, y1, exclusive end.

    place: its name on a 3 x 3 grid of the image. peak: largest difference in it. mask: (y1 - y0, x1 - x0) bool.
    type: what the network takes it for, `unknown_anomaly` when it is not sure. type_confidence: 0..1 of that word.
    """

    id: str
    box: tuple[int, int, int, int]
    place: str
    area_px: int
    peak: float
    mask: NDArray[np.bool_]
    type: str = UNKNOWN
    type_confidence: float = 0.0


def map_size(size: tuple[int, ...]) -> tuple[int, int]:
    """(H, W) of the anomaly map of a photo of `size` (H, W, ...): the photo's own, or less for more than `MAP_PX`."""
    f = min(1.0, MAP_PX / max(size[:2]))
    return max(1, round(size[0] * f)), max(1, round(size[1] * f))


def on_map(reference: RgbImage, matrix: Matrix, size: tuple[int, ...]) -> RgbImage:
    """A reference at the `map_size` of a photo of `size` (H, W, ...), (h, w, 3) uint8. matrix: reference px -> photo px."""
    target, small = map_size(size), resize_to(reference, map_size(reference.shape))
    on_target = scaling(size, target) @ matrix @ scaling(small.shape, reference.shape)
    return warp_reference(small, on_target, target)[0]


def map_window(anomaly_map: NDArray, box: Box, size: tuple[int, ...]) -> NDArray:
    """The part of a map under a box (x0, y0, x1, y1 px) of its photo of `size` (H, W, ...), at the photo's pixels."""
    (h, w), (x0, y0, x1, y1) = anomaly_map.shape, box
    if (h, w) == size[:2]:
        return anomaly_map[y0:y1, x0:x1]
    fy, fx = h / size[0], w / size[1]
    part = anomaly_map[int(y0 * fy) : math.ceil(y1 * fy), int(x0 * fx) : math.ceil(x1 * fx)]
    how = cv2.INTER_LINEAR if part.dtype == np.float32 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(part, (x1 - x0, y1 - y0), interpolation=how))


def place_name(box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    """Where the centre of a box lies on a 3 x 3 grid of an image of `size` (H, W): "upper left", "centre", ..."""
    row = min(2, int((box[1] + box[3]) / 2 / size[0] * 3))
    column = min(2, int((box[0] + box[2]) / 2 / size[1] * 3))
    names = (("upper left", "upper middle", "upper right"), ("middle left", "centre", "middle right"),
             ("lower left", "lower middle", "lower right"))  # fmt: skip
    return names[row][column]


def _type_of(
    types: NDArray[np.float32], mask: NDArray[np.bool_], box: tuple[int, ...], size: tuple[int, int]
) -> tuple[str, float]:
    """The word for a region and how sure the network is of it."""
    whole = np.zeros(size, np.float32)
    whole[box[1] : box[3], box[0] : box[2]] = mask
    weight = cv2.resize(whole, (types.shape[2], types.shape[1]), interpolation=cv2.INTER_AREA)
    share = (types * weight).sum((1, 2)) / max(float(weight.sum()), 1e-9)
    best = int(share.argmax())
    sure = float(share[best])
    return (DIFFERENCE_TYPES[best], sure) if sure >= MIN_TYPE_CONFIDENCE else (UNKNOWN, sure)


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold: float,
    types: NDArray[np.float32] | None = None,
    size: tuple[int, ...] | None = None,
    cell: float | None = None,
) -> list[Region]:
    """Regions above `threshold`, strongest first, at most 16. types, cell: as in `Difference`; types name the regions.

    size: (H, W, ...) of the photo, if it is larger than its map. cell: default that of a map of one tile.
    The strongest of what is connected, pieces less than a cell apart included; each by its lobes, strongest first, where
    fewer than 16 regions result. So 16 regions say that there may be more. Specks that the map's resolution cannot vouch
    for are left out.
    """
    h, w = anomaly_map.shape
    above = anomaly_map > threshold
    if not above.any():
        return []
    side = _joining(h, w, cell)
    joined = cv2.dilate(above.astype(np.uint8), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    _, labels = cv2.connectedComponents(joined)
    smallest = max(4.0, (side / 2) ** 2)

    def without_halo(mask: Mask, heat: NDArray[np.float32]) -> tuple[float, Mask]:
        """The peak under a mask, and what is not merely its halo; empty for a speck."""
        peak = float(heat[mask].max())
        mask = mask & (heat > MIN_RELATIVE_PEAK * peak)
        return peak, mask if mask.sum() >= smallest else np.zeros_like(mask)

    connected = []
    for index, at in enumerate(ndimage.find_objects(labels), start=1):
        y, x = at
        peak, mask = without_halo((labels[at] == index) & above[at], anomaly_map[at])
        if mask.any():
            connected.append((peak, *tight(mask, (x.start, y.start)), index, (x.start, y.start, x.stop, y.stop)))
    connected.sort(key=lambda c: -c[0])
    connected = connected[:MAX_REGIONS]
    places = MAX_REGIONS - 1 - len(connected)  # for lobes: no region is left out for those of another
    found = []
    for peak, box, mask, index, around in connected:
        parts = []
        if places > 0:
            # with what surrounds it: a line is lower on either side
            x0, y0, x1, y1 = widen(around, max(around[2] - around[0], around[3] - around[1]), 1, (h, w))
            at = np.s_[y0:y1, x0:x1]
            heat = anomaly_map[at]
            split = lobes(heat, labels[at] == index, above[at], smallest, MIN_RELATIVE_PEAK, side, places + 1)
            cut = [without_halo(lobe, heat) for lobe in split] if len(split) > 1 else []
            parts = [(top, *tight(lobe, (x0, y0))) for top, lobe in cut if lobe.any()]
        found += parts if len(parts) > 1 else [(peak, box, mask)]
        places -= max(0, len(parts) - 1)
    found.sort(key=lambda f: -f[0])
    regions = []
    for i, (peak, box, mask) in enumerate(found, start=1):
        kind, sure = (UNKNOWN, 0.0) if types is None else _type_of(types, mask, box, (h, w))
        place = place_name(box, (h, w))
        if size is not None and size[:2] != (h, w):
            box, mask = _scaled(box, mask, size[0] / h, size[1] / w)
        regions.append(Region(f"r{i}", box, place, int(mask.sum()), peak, mask, kind, sure))
    return regions


def highest_without(anomaly_map: NDArray[np.float32], found: Mask, cell: float | None = None) -> float:
    """The highest value of a map (h, w) outside of what was `found` (H, W of the photo) and what is joined with it; 0 where
    that is so much lower that it may be its halo. cell: as of `find_regions`. However small a place is."""
    h, w = anomaly_map.shape
    there = cv2.resize(found.astype(np.uint8), (w, h), interpolation=cv2.INTER_AREA)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * _joining(h, w, cell) + 1,) * 2)
    rest = float(np.where(cv2.dilate(there, ellipse) > 0, 0.0, anomaly_map).max())
    return rest if rest > MIN_RELATIVE_PEAK * float(anomaly_map.max()) else 0.0


def _joining(h: int, w: int, cell: float | None) -> int:
    """px of a map of that size: pieces less than this apart are one."""
    return max(3, round(max(h, w) / 40 if cell is None else cell))


def merged(regions: Sequence[Region], types: NDArray[np.float32], size: tuple[int, ...]) -> Region:
    """Regions of a photo of `size` (H, W, ...) as one, with the id of the first. types: as in `Difference`."""
    if len(regions) == 1:
        return regions[0]
    box, mask = union([(r.box, r.mask) for r in regions])
    small = map_size(size)
    at, seen = (box, mask) if small == size[:2] else _scaled(box, mask, small[0] / size[0], small[1] / size[1])
    kind, sure = _type_of(types, seen, at, small)
    area, peak = int(mask.sum()), max(r.peak for r in regions)
    return Region(regions[0].id, box, place_name(box, (size[0], size[1])), area, peak, mask, kind, sure)


def _scaled(box: Box, mask: Mask, fy: float, fx: float) -> tuple[Box, Mask]:
    """A box and its mask, in px of the map, in px of the photo; or the other way round."""
    x0, y0 = int(box[0] * fx), int(box[1] * fy)
    x1, y1 = max(x0 + 1, round(box[2] * fx)), max(y0 + 1, round(box[3] * fy))
    scaled = cv2.resize(mask.astype(np.uint8), (x1 - x0, y1 - y0), interpolation=cv2.INTER_NEAREST)
    return (x0, y0, x1, y1), scaled > 0
