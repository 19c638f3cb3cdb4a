"""Defects of bare boards, as boxes of six types: where photo and reference differ, a small network reads a crop of both.

Proposals are places where the binarised pictures differ by more than an edge's wobble; the network tells each from harmless
(misregistration, noise) and corrects its box, at the picture's own resolution. Its type is what the change does to the
conductors; the network names it only where that is ambiguous. Knows nothing about goldens, registration or files of truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from refdiff.model.boards.registration import fitted
from refdiff.model.defect_types import BOARD_TYPES
from refdiff.model.errors import StorageError
from refdiff.model.images import RgbImage
from refdiff.model.weights_file import WEIGHTS, read_weights

PACKAGED = WEIGHTS / "boards.safetensors"
CROP_PX = 80  # side of a crop; large proposals are shrunk into it
_FITS_PX = 52  # longest side of a proposal that is read at full resolution
_OPENINGS = ((3, 5), (2, 5))  # side of the opening, side of the closing between pieces
TOPOLOGY = 6  # numbers that `topology_of` gives
_STROKES_PX = 5  # changes nearer to each other than that part and join together
_SIZEABLE_PX = 40  # smaller pieces of copper or board are crumbs of a mark's edge
_WOBBLE_PX = 10  # fewer px of board do not make an edge that a change reaches
_FAINT = 0.25  # a photo with less of the reference's contrast shows only copper, or only board
_DARK_AND_BRIGHT = (0.001, 0.999)  # quantiles of grey; some pictures hold less than a hundredth of copper
_STEEP = 2.0  # contrast about the middle grey; noise of copper and board is cut off
_SAME = 0.7  # proposals that overlap by more are one
_KEEP = 0.02  # detections less likely than this are not reported
_OVERLAP = 0.35  # of two detections of one type that overlap by more, the surer one is kept
_OVERLAP_OTHERS = 0.65  # the same of two types, which may be two defects side by side
_WITHIN = 0.8  # a detection that lies by more of it in a larger one of its type, or round a smaller, is a piece of it
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoardDefect:
    """A defect that was found on a board."""

    box: tuple[int, int, int, int]  # x0, y0, x1, y1 px of the photo, exclusive end
    confidence: float  # 0..1 that there is a defect
    type: str  # one of BOARD_TYPES


class BoardNetwork(nn.Module):
    """(B, 2, 80, 80) float in -1..1, photo and reference, and (B, 6) `topology_of` them -> (B, 7) logits (none, then
    BOARD_TYPES) and (B, 4) corrections of the box."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()

        def layer(cin: int, cout: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)
            )

        self.body = nn.Sequential(
            layer(3, width // 2, 1), layer(width // 2, width, 2), layer(width, 2 * width, 2), layer(2 * width, 4 * width, 2),
            layer(4 * width, 4 * width, 1), layer(4 * width, 4 * width, 2),
        )  # fmt: skip
        side = CROP_PX // 16
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * width * side**2, 96), nn.ReLU(inplace=True), nn.Dropout(0.3)
        )
        self.kind = nn.Sequential(
            nn.Linear(96 + TOPOLOGY, 48), nn.ReLU(inplace=True), nn.Linear(48, 1 + len(BOARD_TYPES))
        )
        self.box = nn.Linear(96, 4)

    def forward(self, pair: Tensor, topology: Tensor) -> tuple[Tensor, Tensor]:
        x = self.hidden(self.body(torch.cat([pair, pair[:, :1] - pair[:, 1:]], 1)))
        return self.kind(torch.cat([x, topology], 1)), self.box(x)


def contrast_pair(query: RgbImage, reference: RgbImage) -> NDArray[np.uint8]:
    """(2, H, W) uint8: photo and reference, copper 0 and board 255, whatever the light of each; between are edges only.

    The reference is brought onto the photo where it lies a few pixels off, also where its conductors are wider or narrower.
    """
    pair = np.stack([cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in (query, reference)]).astype(np.float32)
    low, high = np.quantile(pair[:, ::2, ::2], _DARK_AND_BRIGHT, axis=(1, 2))
    if high[0] - low[0] < _FAINT * (high[1] - low[1]):  # copper or board is missing from the photo
        low[0], high[0] = low[1], high[1]
    middle, spread = ((low + high) / 2)[:, None, None], np.maximum(high - low, 1.0)[:, None, None]
    out = np.clip((pair - middle) * (255 * _STEEP / spread) + 127.5, 0, 255).astype(np.uint8)
    out[1] = fitted(out[1], out[0])
    return out


def propose(pair: NDArray[np.uint8]) -> list[Box]:
    """Boxes of what differs between the two pictures (2, H, W), larger openings first."""
    changed = ((pair[0] > 127) != (pair[1] > 127)).astype(np.uint8)
    found: list[Box] = []
    for opening, join in _OPENINGS:
        opened = cv2.morphologyEx(changed, cv2.MORPH_OPEN, np.ones((opening, opening), np.uint8))
        joined = cv2.dilate(opened, np.ones((join, join), np.uint8))
        for x, y, w, h, _ in cv2.connectedComponentsWithStats(joined)[2][1:]:
            box = (float(x), float(y), float(x + w), float(y + h))
            if all(overlap(box, other) < _SAME for other in found):
                found.append(box)
    return found


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    both = w * h
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def view_of(box: Sequence[float]) -> tuple[float, float, float]:
    """Centre x, y and px of the picture per px of the crop that shows a proposal."""
    longest = max(box[2] - box[0], box[3] - box[1])
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, max(1.0, longest / _FITS_PX)


def crop(pair: NDArray[np.uint8], view: tuple[float, float, float], side: int = CROP_PX) -> NDArray[np.uint8]:
    """(2, side, side) uint8 round a view's centre; beyond the picture its border is repeated."""
    x, y, scale = view
    matrix = np.array([[scale, 0, x - scale * (side - 1) / 2], [0, scale, y - scale * (side - 1) / 2]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack([cv2.warpAffine(p, matrix, (side, side), flags=how, borderMode=cv2.BORDER_REPLICATE) for p in pair])


def topology_of(pair: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(6,) float32 of a crop (2, h, w), what the types are defined by: is the largest change in the middle lost or gained
    copper (dark), does what is lost reach the bare board, into how many pieces does it cut, how many does what is gained
    join, and how large is it."""
    now, before = (pair < 128).astype(np.uint8)
    out = np.zeros(TOPOLOGY, np.float32)
    found = _change(now, before)
    if found is None:
        return out
    change, lost = found
    ring = cv2.dilate(change.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    _, conductors = cv2.connectedComponents(now if lost else before)
    touched = len(set(np.unique(conductors[ring]).tolist()) - {0})
    out[0 if lost else 1] = 1
    out[2] = lost and bool((before[ring] == 0).any())
    out[3 if lost else 4] = min(touched, 3) / 3
    out[5] = np.log1p(float(change.sum())) / 6
    return out


def type_of(pair: NDArray[np.uint8]) -> str | None:
    """What the types say of the largest change in the middle of a crop (2, h, w); None where nothing changed.

    Lost copper that does not reach the bare board is a pin-hole; where it does, it is open if it parts a piece of copper or
    joins two of board (a cut into a hole does), else a mouse bite. Copper gained is the same with the two exchanged. However
    the mark is drawn: a network would learn the strokes of the boards that it was trained on.
    """
    now, before = (pair < 128).astype(np.uint8)
    found = _change(now, before, _STROKES_PX)
    if found is None:
        return None
    change, lost = found
    if not lost:  # the same question of the board
        now, before = 1 - now, 1 - before
    _, gaps = cv2.connectedComponents(1 - now, connectivity=4)
    joined = np.isin(gaps, np.setdiff1d(gaps[change], 0))
    ring = cv2.dilate(change.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if int((joined & (before == 0)).sum()) < _WOBBLE_PX:
        kind = 2
    else:
        smaller = max(_smaller_part(now, before, ring), _smaller_part(1 - before, 1 - now, ring))
        kind = 0 if smaller >= _SIZEABLE_PX else 1
    return (("open", "mousebite", "pin-hole") if lost else ("short", "spur", "copper"))[kind]


def _change(now: NDArray[np.uint8], before: NDArray[np.uint8], near: int = 1) -> tuple[NDArray[np.bool_], bool] | None:
    """Where the largest change of copper in the middle is, strokes less than `near` px apart taken as one; is it a loss."""
    h, w = now.shape
    y, x = np.mgrid[0:h, 0:w]
    middle = np.exp(-(((y - h / 2) / h) ** 2 + ((x - w / 2) / w) ** 2) * 12)
    best, change = 0.0, None
    for lost, there in ((True, before & ~now & 1), (False, now & ~before & 1)):
        opened = cv2.morphologyEx(there, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
        n, labels = cv2.connectedComponents(cv2.dilate(opened, np.ones((near, near), np.uint8)))
        labels = labels * opened
        weights = np.bincount(labels.ravel(), weights=middle.ravel(), minlength=n)
        weights[0] = 0
        if weights.max() > best:
            best, change = float(weights.max()), (labels == weights.argmax(), lost)
    return change


def _smaller_part(parts: NDArray[np.uint8], wholes: NDArray[np.uint8], ring: NDArray[np.bool_]) -> int:
    """Of pieces that a change touches and that lie in one whole, px of the second largest; 0 where no whole has two."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(parts, connectivity=4)
    _, owners = cv2.connectedComponents(wholes, connectivity=4)
    areas: dict[int, list[int]] = {}
    for piece in set(np.unique(labels[ring]).tolist()) - {0}:
        shares = np.bincount(owners[labels == piece])
        shares[0] = 0  # edges that wobble
        areas.setdefault(int(shares.argmax()), []).append(int(stats[piece, cv2.CC_STAT_AREA]))
    areas.pop(0, None)
    return max((sorted(found)[-2] for found in areas.values() if len(found) > 1), default=0)


def to_network(crops: Tensor) -> Tensor:
    """uint8 -> float in -1..1."""
    return crops.float().div(127.5).sub(1)


def corrected(correction: Sequence[float], view: tuple[float, float, float]) -> Box:
    """The box that the network means: offsets of centre and sides, in half crops."""
    x, y, scale = view
    unit = scale * CROP_PX / 2
    cx, cy = x + correction[0] * unit, y + correction[1] * unit
    w, h = max(2.0, correction[2] * unit), max(2.0, correction[3] * unit)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


class BoardModel:
    """Loaded weights, ready to look at a registered pair."""

    def __init__(self, net: BoardNetwork, sha256: str) -> None:
        self.sha256 = sha256
        self._net = net.eval()

    @torch.inference_mode()
    def detect(self, query: RgbImage, reference: RgbImage) -> list[BoardDefect]:
        """Defects of a photo (H, W, 3) uint8 beside its reference, which lies within 12 px of it; surest first."""
        pair = contrast_pair(query, reference)
        views = [view_of(box) for box in propose(pair)]
        if not views:
            return []
        crops = torch.from_numpy(np.stack([crop(pair, view) for view in views]))
        topology = torch.from_numpy(np.stack([topology_of(c) for c in crops.numpy()]))
        logits, corrections = self._net(to_network(crops), topology)
        shares = torch.softmax(logits, 1)
        sure = 1 - shares[:, 0]
        h, w = pair.shape[1:]
        kept: list[BoardDefect] = []
        for i in sure.argsort(descending=True).tolist():
            if sure[i] < _KEEP:
                break
            box = corrected(corrections[i].tolist(), views[i])
            kind = type_of(crops[i].numpy()) or BOARD_TYPES[int(shares[i, 1:].argmax())]
            if any(one_defect(box, kind, other) for other in kept):
                continue
            x0, y0, x1, y1 = (round(v) for v in box)
            x0, y0, x1, y1 = max(0, x0), max(0, y0), min(w, x1), min(h, y1)
            if x1 > x0 and y1 > y0:
                kept.append(BoardDefect((x0, y0, x1, y1), float(sure[i]), kind))
        return kept


def one_defect(box: Box, kind: str, other: BoardDefect) -> bool:
    """Whether a box of a type tells the same defect as one that is found already."""
    if kind != other.type:
        return overlap(box, other.box) > _OVERLAP_OTHERS
    w, h = min(box[2], other.box[2]) - max(box[0], other.box[0]), min(box[3], other.box[3]) - max(box[1], other.box[1])
    smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other.box))
    return overlap(box, other.box) > _OVERLAP or (min(w, h) > 0 and w * h > _WITHIN * smaller)


@lru_cache(maxsize=2)
def load_boards(path: Path = PACKAGED) -> BoardModel:
    """Weights beside their card, whose sha256 must fit. Raises StorageError."""
    tensors, _, digest = read_weights(path, "boards")
    net = BoardNetwork()
    try:
        net.load_state_dict(tensors)
    except RuntimeError as e:
        raise StorageError(f"{path}: its card does not describe what is in it; retrain") from e
    return BoardModel(net, digest)
