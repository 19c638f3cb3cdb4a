"""A pair of pictures as the language model sees it: plain numbers, the projector's input.

Reference first, then query, both on one pixel grid (registered by the caller) and squeezed to one square. Tokens of
a pair, in order: 16 of the reference, 16 of the query, then the difference: 1 global, 36 of a grid, 16 of the strongest
places (region tokens, strongest first). The encoder and the difference network are frozen, so these numbers can be computed
once per pair and stored. Knows nothing about language.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.comparing import pixel_input
from refdiff.model.difference.encoder import CHANNELS
from refdiff.model.difference.matching import N_DISTANCES, STRIDES, Matched, ReferenceView, match
from refdiff.model.difference.network import DifferenceNetwork, DifferenceOutput
from refdiff.model.language.configuration import DIFFERENCE_GRID, IMAGE_GRID, MAX_REGIONS

_WAVES = 4
_PLACE_DIM = 2 + 4 * _WAVES
_WINDOWS = (3, 7, 15, 31, 61)  # stride-4 cells: how far a strong place reaches
# grey cut-out of query and reference round a place: samples a side, stride-4 cells a side
_PATCH, _PATCH_CELLS = 12, 24
_FRACTIONS = (0.0005, 0.005, 0.03, 0.2)
_N_TYPES = len(DIFFERENCE_TYPES)
_N_DISTANCES = len(STRIDES) * N_DISTANCES
_SUPPRESSED = 9  # side of the neighbourhood, stride-4 cells, in which only the strongest place counts

IMAGE_DIM = CHANNELS[16] + CHANNELS[32]


def global_dim(width: int) -> int:
    return 2 * width + _N_TYPES + 2 + len(_FRACTIONS) + 3 * _N_DISTANCES


def grid_dim(width: int) -> int:
    return 2 * width + _N_TYPES + 3 + _N_DISTANCES + _PLACE_DIM


def region_dim(width: int) -> int:
    return (
        width
        + _N_TYPES
        + 2
        + len(_WINDOWS)
        + 3
        + _N_DISTANCES
        + CHANNELS[8]
        + 2 * CHANNELS[16]
        + 2 * _PATCH**2
        + _PLACE_DIM
    )


@dataclass(frozen=True)
class PairFeatures:
    """What is shown of B pairs: one row of numbers per token."""

    images: Tensor  # (B, 2, 16, IMAGE_DIM): reference, query
    whole: Tensor  # (B, 1, global_dim): the difference as a whole
    grid: Tensor  # (B, 36, grid_dim): the difference in each cell of a 6 x 6 grid
    regions: Tensor  # (B, 16, region_dim): the difference at the strongest places, strongest first

    @staticmethod
    def cat(items: list[PairFeatures]) -> PairFeatures:
        return PairFeatures(*(torch.cat([getattr(i, f.name) for i in items]) for f in fields(PairFeatures)))

    def as_dict(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@torch.no_grad()
def pair_features(encoder: nn.Module, difference: DifferenceNetwork, pairs: Tensor) -> PairFeatures:
    """pairs: (B, 2, 3, S, S) uint8 RGB, reference then query; S a multiple of 32. All in float32."""
    n, _two, _c, h, w = pairs.shape
    flat = pairs.flatten(0, 1).float().div(127.5).sub(1.0)
    maps: Mapping[int, Tensor] = encoder(flat.contiguous(memory_format=torch.channels_last))
    everywhere = torch.ones(h // 8, w // 8, dtype=torch.bool, device=pairs.device)
    found = [
        match(
            {s: m[2 * i + 1].contiguous() for s, m in maps.items()},
            [ReferenceView({s: m[2 * i].contiguous() for s, m in maps.items()}, everywhere)],
        )
        for i in range(n)
    ]
    matched = Matched.stack(found)
    covered = torch.ones(n, h, w, dtype=torch.bool, device=pairs.device)
    out = difference(matched, pixel_input(pairs[:, 1], pairs[:, 0], covered))
    return PairFeatures(
        _by_pair(_picture_cells(maps, IMAGE_GRID), n),
        _whole(out, matched)[:, None],
        _grid(out, matched),
        _regions(out, matched, difference, pairs),
    )


@torch.no_grad()
def reference_cells(encoder: nn.Module, references: Tensor) -> Tensor:
    """(N, 3, S, S) uint8 RGB -> (N, 16, IMAGE_DIM): what `images` of a pair says of its reference, which stands alone."""
    maps = encoder(references.float().div(127.5).sub(1.0).contiguous(memory_format=torch.channels_last))
    return _picture_cells(maps, IMAGE_GRID)


def _by_pair(x: Tensor, n: int) -> Tensor:
    """(2 n, ...) -> (n, 2, ...)"""
    return x.reshape(n, 2, *x.shape[1:])


def _picture_cells(maps: Mapping[int, Tensor], side: int) -> Tensor:
    """(N, side**2, IMAGE_DIM)"""
    return torch.cat([F.adaptive_avg_pool2d(maps[s], side) for s in (16, 32)], 1).flatten(2).transpose(1, 2)


def _distances(matched: Matched, pooled: int, how: str) -> Tensor:
    """(B, 12, pooled, pooled) of log distances, mean or max of each cell."""
    pool = F.adaptive_max_pool2d if how == "max" else F.adaptive_avg_pool2d
    return torch.cat([torch.as_tensor(pool(torch.log(matched.distances[s] + 0.02), pooled)) for s in STRIDES], 1)


def _whole(out: DifferenceOutput, matched: Matched) -> Tensor:
    logits = out.map_logits
    logs = [torch.log(matched.distances[s] + 0.02).flatten(2) for s in STRIDES]
    statistics = torch.cat([f for x in logs for f in (x.mean(2), x.std(2), x.amax(2))], 1)
    strongest = [logits.flatten(1).topk(max(1, int(logits[0].numel() * f)), 1).values.mean(1) for f in _FRACTIONS]
    heads = torch.stack([out.image_logits, out.global_logits, *strongest], 1)
    fused = torch.cat([out.fused.mean((2, 3)), out.fused.amax((2, 3))], 1)
    return torch.cat([fused, _types(out, 1).flatten(1), heads, statistics], 1)


def _types(out: DifferenceOutput, side: int) -> Tensor:
    """(B, T, side, side): the types of a cell's places, each weighted by how likely it is a defect."""
    weight = torch.sigmoid(out.map_logits) + 1e-4
    probability = F.softmax(out.type_logits, 1)
    return F.adaptive_avg_pool2d(probability * weight, side) / F.adaptive_avg_pool2d(weight, side)


def _grid(out: DifferenceOutput, matched: Matched) -> Tensor:
    side = DIFFERENCE_GRID
    logits = out.map_logits
    parts = [
        F.adaptive_avg_pool2d(out.fused, side), F.adaptive_max_pool2d(out.fused, side), _types(out, side),
        F.adaptive_max_pool2d(logits, side), F.adaptive_avg_pool2d(logits, side),
        F.adaptive_avg_pool2d(torch.sigmoid(logits), side), _distances(matched, side, "max"),
    ]  # fmt: skip
    cells = torch.cat([torch.as_tensor(p) for p in parts], 1).flatten(2).transpose(1, 2)  # (B, 36, D)
    at = (torch.arange(side, device=cells.device) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    place = _place(torch.stack([x.flatten(), y.flatten()], 1))
    return torch.cat([cells, place.expand(len(cells), -1, -1)], 2)


def _place(xy: Tensor) -> Tensor:
    """(..., 2) in 0..1 -> (..., _PLACE_DIM): the numbers and their waves."""
    angles = xy[..., None] * (2.0 ** torch.arange(_WAVES, device=xy.device)) * math.pi  # (..., 2, W)
    return torch.cat([xy, angles.sin().flatten(-2), angles.cos().flatten(-2)], -1)


def _regions(out: DifferenceOutput, matched: Matched, difference: DifferenceNetwork, pairs: Tensor) -> Tensor:
    """(B, 16, R) of the strongest places, strongest first."""
    logits = out.map_logits  # (B, 1, h, w)
    h, w = logits.shape[-2:]
    peaks = logits.masked_fill(logits < F.max_pool2d(logits, _SUPPRESSED, 1, _SUPPRESSED // 2), -torch.inf)
    at = peaks.flatten(1).topk(MAX_REGIONS, 1).indices  # (B, 16) flat index
    # (B, 16, 2) in 0..1
    xy = torch.stack([(at % w + 0.5) / w, (torch.div(at, w, rounding_mode="floor") + 0.5) / h], -1)

    def take(x: Tensor) -> Tensor:
        """(B, C, any, any) -> (B, 16, C) at the places."""
        picked = F.grid_sample(x, xy[:, :, None] * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)
        return picked[..., 0].transpose(1, 2)

    p = torch.sigmoid(logits)
    y, x = torch.meshgrid(
        torch.linspace(0, 1, h, device=p.device), torch.linspace(0, 1, w, device=p.device), indexing="ij"
    )
    weighted = p * torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])[None]  # (B, 6, h, w)
    local = take(F.avg_pool2d(weighted, 31, 1, 15)) + 1e-8  # (B, 16, 6)
    mx, my = local[..., 1] / local[..., 0], local[..., 2] / local[..., 0]
    spread = torch.stack(
        [local[..., 3] / local[..., 0] - mx * mx, local[..., 4] / local[..., 0] - my * my,
         local[..., 5] / local[..., 0] - mx * my], -1,
    )  # fmt: skip
    reach = [take(F.avg_pool2d(p, k, 1, k // 2)) for k in _WINDOWS]
    weight = p + 1e-4
    typed = F.avg_pool2d(F.softmax(out.type_logits, 1) * weight, 5, 1, 2) / F.avg_pool2d(weight, 5, 1, 2)
    apart = {
        s: (matched.query[s] - matched.reference[s]) / difference.get_buffer(f"scale_{s}")[None, :, None, None]
        for s in (8, 16)
    }
    parts = [
        take(out.fused), take(typed), take(logits), take(p), *reach, spread * 100,
        *(take(torch.log(matched.distances[s] + 0.02)) for s in STRIDES),
        take(apart[8]), take(apart[16]), take(matched.query[16] / difference.get_buffer("scale_16")[None, :, None, None]),
        _patches(pairs, xy, (h, w)), _place(xy),
    ]  # fmt: skip
    return torch.cat(parts, -1)


def _patches(pairs: Tensor, xy: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 16, 288): grey query and reference round every place, minus the reference's mean."""
    grey = pairs.float().mean(2) / 127.5 - 1  # (B, 2, H, W)
    shrunk = F.avg_pool2d(grey, 2)
    step = torch.linspace(-0.5, 0.5, _PATCH, device=xy.device) * _PATCH_CELLS
    dy, dx = torch.meshgrid(step / size[0], step / size[1], indexing="ij")
    places = xy[:, :, None] + torch.stack([dx.flatten(), dy.flatten()], -1)  # (B, 16, 144, 2)
    cut = F.grid_sample(shrunk, places * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)
    cut = cut - cut[:, :1].mean(3, keepdim=True)
    return cut.permute(0, 2, 1, 3).flatten(2)
