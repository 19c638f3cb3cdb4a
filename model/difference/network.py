"""The trained half of the difference: from matched features and registered pixels to anomaly map, types and image score.

Coarse to fine: at every stride the query's features, the signed and absolute residual to the matched reference and the
matching distances are fused with what the coarser stride found (a feature pyramid, Lin et al. 2017); at the finest stride
the registered pixels themselves join. Heads: anomaly logits at stride 4, a type per stride-4 cell, a global difference
(components missing, added, wrong or misplaced; fill level; variant) and the image score. Pure torch, batched, image size
free. Knows nothing about encoders, goldens, calibration or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.matching import N_DISTANCES, STRIDES, Matched
from refdiff.model.errors import StorageError

_FRACTIONS = (0.0005, 0.005, 0.03)  # parts of the strongest cells that the image score looks at
_STATISTICS = 3  # mean, spread and maximum of each distance, per stride
_LOW = 0.02  # distances are typically 0.02 .. 0.5: their logarithm is what varies evenly


@dataclass(frozen=True)
class DifferenceConfig:
    """Sizes of the network, as its card says them."""

    channels: Mapping[int, int]  # stride -> channels of the encoder's map
    width: int = 64  # channels of the fused maps (half at stride 4)

    @staticmethod
    def from_card(card: Mapping[str, Any]) -> DifferenceConfig:
        """The `config` of a card, also of earlier ones, which name parts that could be left out for comparisons.

        Raises StorageError for weights without such a part; KeyError, TypeError, ValueError for an invalid configuration.
        """
        for part in ("pixels", "global_head"):
            if not card.get(part, True):
                raise StorageError(f"a difference network without {part} is no longer supported; retrain its weights")
        return DifferenceConfig({int(s): int(c) for s, c in card["channels"].items()}, int(card["width"]))


@dataclass(frozen=True)
class DifferenceOutput:
    """What the network says of B pairs."""

    map_logits: Tensor  # (B, 1, H/4, W/4), > 0: more likely defect than not
    type_logits: Tensor  # (B, T, H/4, W/4) of DIFFERENCE_TYPES
    global_logits: Tensor  # (B,): a component or level is wrong
    image_logits: Tensor  # (B,): the part is defective
    fused: Tensor  # (B, width, H/16, W/16): what a language model may look at


def _conv(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.a(x))


class DifferenceNetwork(nn.Module):
    """Matched features (and pixels) of B pairs of one size -> DifferenceOutput."""

    def __init__(self, config: DifferenceConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        widths = {4: width // 2, 8: width, 16: width, 32: width}
        # standard deviation of every encoder channel over training images, so no channel dominates by its units
        for s in STRIDES:
            self.register_buffer(f"scale_{s}", torch.ones(config.channels[s]))
        self.squeeze = nn.ModuleDict({str(s): _conv(3 * config.channels[s], widths[s], 1) for s in STRIDES})
        n_scalars = 2 * N_DISTANCES + 1  # logarithms, contrast within the image, and the local peak
        self.context = nn.Sequential(
            nn.Linear(len(STRIDES) * N_DISTANCES * _STATISTICS + 1, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.fuse = nn.ModuleDict()
        self.refine = nn.ModuleDict()
        carried = width
        for s in (32, 16, 8, 4):
            extra = width // 2 if s == 4 else 0  # the pixels
            self.fuse[str(s)] = _conv(widths[s] + n_scalars + carried + extra, widths[s])
            self.refine[str(s)] = _Residual(widths[s])
            carried = widths[s]
        self.pixels = nn.Sequential(_conv(8, 16, 3, 2), _conv(16, width // 2, 3, 2), _conv(width // 2, width // 2))
        self.map_head = nn.Conv2d(widths[4], 1, 1)
        self.type_head = nn.Conv2d(widths[4] + widths[8], len(DIFFERENCE_TYPES), 1)
        pooled = 4 * width
        self.global_head = nn.Sequential(nn.Linear(pooled, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 1))
        self.image_head = nn.Linear(len(_FRACTIONS) + 2 * len(STRIDES) + 1, 1)
        nn.init.constant_(self.map_head.bias, -3.0)  # type: ignore[arg-type]

    def forward(self, matched: Matched, pixels: Tensor) -> DifferenceOutput:
        """pixels: (B, 8, H, W) from `comparing.pixel_input`."""
        logs = {s: torch.log(matched.distances[s] + _LOW) for s in STRIDES}
        context = self.context(self._statistics(logs, pixels))  # (B, width)
        x = context[:, :, None, None].expand(-1, -1, *logs[32].shape[-2:])
        fused = {}
        for s in (32, 16, 8, 4):
            parts = [self.squeeze[str(s)](self._residual(matched, s)), self._scalars(logs[s])]
            if x.shape[-2:] != logs[s].shape[-2:]:
                x = F.interpolate(x, size=logs[s].shape[-2:], mode="bilinear", align_corners=False)
            parts.append(x)
            if s == 4:
                parts.append(self.pixels(pixels))
            x = self.refine[str(s)](self.fuse[str(s)](torch.cat(parts, 1)))
            fused[s] = x
        map_logits = self.map_head(fused[4])
        upper = F.interpolate(fused[8], size=fused[4].shape[-2:], mode="bilinear", align_corners=False)
        type_logits = self.type_head(torch.cat([fused[4], upper], 1))
        pooled = torch.cat([f(fused[s]) for s in (16, 32) for f in (_mean, _peak)], 1)  # (B, 4 * width)
        global_logits = self.global_head(pooled)[:, 0]
        scores = [_strongest(map_logits, f) for f in _FRACTIONS]
        scores += [_strongest(logs[s][:, [i]], 0.01) for s in STRIDES for i in (0, 2)]
        scores.append(global_logits)
        image_logits = self.image_head(torch.stack(scores, 1))[:, 0]
        return DifferenceOutput(map_logits, type_logits, global_logits, image_logits, fused[16])

    def _residual(self, matched: Matched, s: int) -> Tensor:
        scale = self.get_buffer(f"scale_{s}")[None, :, None, None]
        q, m = matched.query[s] / scale, matched.reference[s] / scale
        d = q - m
        return torch.cat([q, d, d.abs()], 1)

    @staticmethod
    def _scalars(log: Tensor) -> Tensor:
        """(B, 7, h, w): log distances, the same against the image's own mean, local peak of the first."""
        return torch.cat([log, log - log.mean((2, 3), keepdim=True), F.max_pool2d(log[:, :1], 3, 1, 1)], 1)

    @staticmethod
    def _statistics(logs: dict[int, Tensor], pixels: Tensor) -> Tensor:
        """(B, 37): how much the whole pair differs at every stride, and whether it is registered."""
        columns = [f(logs[s]) for s in STRIDES for f in (_mean, _spread, _peak)]
        return torch.cat([*columns, pixels[:, 7].mean((1, 2))[:, None]], 1)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _spread(x: Tensor) -> Tensor:
    return x.flatten(2).std(2)


def _peak(x: Tensor) -> Tensor:
    return x.amax((2, 3))


def _strongest(x: Tensor, fraction: float) -> Tensor:
    """(B,) mean of the strongest part of the cells of (B, 1, h, w)."""
    flat = x.flatten(1)
    return flat.topk(max(1, int(flat.shape[1] * fraction)), 1).values.mean(1)
