"""The trained difference at work: packaged or custom weights, one query against its references.

Knows how pictures and encoder features become an anomaly map, types and an image score; nothing about goldens, registration
or calibration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refdiff.model.difference.comparing import SHARED_POWER, NetworkDifference, NetworkInput, flat_input, network_input
from refdiff.model.difference.compiled import Compiled, through_openvino
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import N_DISTANCES, STRIDES, Matched, ReferenceView
from refdiff.model.difference.network import DifferenceConfig, DifferenceNetwork
from refdiff.model.errors import StorageError
from refdiff.model.number_format import number_format
from refdiff.model.settings import Engine, ModelSettings
from refdiff.model.weights_file import WEIGHTS, read_weights

PACKAGED = WEIGHTS / "difference.safetensors"


class PlainNetwork(nn.Module):
    """A difference network that takes and returns plain tensors: what is `matched`, stride by stride, and the pixels."""

    def __init__(self, net: DifferenceNetwork) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map and type logits."""
        *matched, pixels = inputs
        n = len(STRIDES)
        parts = (dict(zip(STRIDES, matched[i : i + n], strict=True)) for i in range(0, 3 * n, n))
        out = self.net(Matched(*parts), pixels)
        return out.map_logits, out.type_logits

    def example(self) -> list[Tensor]:
        """Inputs of a pair of nothing."""
        h, w = 64, 96
        maps = {s: torch.zeros(2, c, h // s, w // s) for s, c in self.net.config.channels.items()}
        distances = {s: torch.zeros(2, N_DISTANCES, h // s, w // s) for s in STRIDES}
        return flat_input(Matched(maps, maps, distances), torch.zeros(2, 8, h, w))


class DifferenceScorer:
    """Loaded weights, ready to compare. `sha256` names them in calibrations and reports; encoder: digest of theirs."""

    power = SHARED_POWER

    def __init__(
        self, net: DifferenceNetwork, sha256: str, encoder: str, settings: ModelSettings | None = None
    ) -> None:
        self.sha256 = sha256
        self.encoder = encoder
        self.config = net.config
        self._format = number_format()
        plain = PlainNetwork(folded(net.eval(), self._format))
        self._run: Callable[..., tuple[Tensor, ...]]
        settings = settings or ModelSettings()
        compiled = None
        if self._format is torch.float32:
            compiled = through_openvino(lambda: Compiled(plain, plain.example(), settings), settings)
        self._run = compiled or plain.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def look_at(self, seen: Sequence[NetworkInput]) -> list[NetworkDifference]:
        """What the network makes of several queries of one size, in one batch."""
        matched = Matched.stack([s.matched for s in seen])
        with torch.autocast("cpu", torch.bfloat16, enabled=self._format is torch.bfloat16):
            logits, types = self._run(*flat_input(matched, torch.cat([s.pixels for s in seen])))
        return [NetworkDifference(m[0].float(), F.softmax(t.float(), 0)) for m, t in zip(logits, types, strict=True)]

    def look(self, seen: NetworkInput) -> NetworkDifference:
        """What the network makes of a query and its references."""
        return self.look_at([seen])[0]

    def compare_all(
        self, pairs: Sequence[tuple[Tensor, FeatureMaps, Sequence[ReferenceView]]]
    ) -> list[NetworkDifference]:
        """Several queries (picture, maps, references; see `network_input`) of one working size, in one batch."""
        return self.look_at([network_input(*pair) for pair in pairs])

    def compare(
        self, picture: Tensor, maps: dict[int, Tensor], references: Sequence[ReferenceView]
    ) -> NetworkDifference:
        """`network_input`, then `look`."""
        return self.look(network_input(picture, maps, references))


def folded(net: DifferenceNetwork, dtype: torch.dtype = torch.float32) -> DifferenceNetwork:
    """Batch norm folded into the convolutions before it, and weights in the format that autocast would make of them."""
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            assert isinstance(module[0], nn.Conv2d)
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return net


def read_network(path: Path = PACKAGED) -> tuple[DifferenceNetwork, str, str]:
    """The network as it was trained (float32, eval), digest of its encoder, its own sha256. Raises StorageError."""
    tensors, about, digest = read_weights(path, "difference")
    try:
        if about.get("recipe", {}).get("hard"):
            raise StorageError(f"{path}: trained on hard matches, which are no longer supported; retrain")
        net = DifferenceNetwork(DifferenceConfig.from_card(about["config"]))
        net.load_state_dict(tensors)
        return net.eval(), str(about["encoder"]), digest
    except (RuntimeError, KeyError, TypeError, ValueError) as e:
        raise StorageError(f"{path}: its card does not describe what is in it ({type(e).__name__}); retrain") from e


def pack_networks(networks: Sequence[DifferenceNetwork]) -> bytes:
    """Several networks of one configuration as one safetensors file, in half precision."""
    parts = ((f"{i}.{k}", v) for i, net in enumerate(networks) for k, v in net.state_dict().items())
    return save({k: v.half().contiguous() if v.is_floating_point() else v for k, v in parts})


def unpack_networks(weights: bytes, config: DifferenceConfig) -> list[DifferenceNetwork]:
    """What `pack_networks` made, in float32. Raises StorageError where it is no such file."""
    try:
        tensors: dict[int, dict[str, Tensor]] = {}
        for name, value in load(weights).items():
            number, _, key = name.partition(".")
            tensors.setdefault(int(number), {})[key] = value.float() if value.is_floating_point() else value
        found = [DifferenceNetwork(config) for _ in tensors]
        for i, net in enumerate(found):
            net.load_state_dict(tensors[i])
        return [net.eval() for net in found]
    except (SafetensorError, RuntimeError, KeyError, ValueError) as e:
        raise StorageError(f"the networks of the product cannot be read ({type(e).__name__}); fit them again") from e


def load_difference(path: Path = PACKAGED, settings: ModelSettings | None = None) -> DifferenceScorer:
    """Weights beside their card (`difference.json`), whose sha256 must fit, made ready to compare. Raises StorageError."""
    net, encoder, digest = read_network(path)
    return DifferenceScorer(net, digest, encoder, settings)


def shared_difference(settings: ModelSettings) -> DifferenceScorer:
    """Those of the settings, loaded once a process."""
    return _shared(settings.difference_weights or PACKAGED, settings.engine, settings.cache, settings.threads)


@lru_cache(maxsize=2)
def _shared(path: Path, engine: Engine, cache: Path, threads: int | None) -> DifferenceScorer:
    return load_difference(path, ModelSettings(engine=engine, cache=cache, threads=threads))
