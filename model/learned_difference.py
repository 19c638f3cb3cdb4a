"""The trained difference at work: weights from the package (or of one's own), one query against its references.

Knows how pictures and encoder features become an anomaly map, types and an image score; nothing about goldens, registration
or calibration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refdiff.model.difference_network import DIFFERENCE_TYPES, DifferenceConfig, DifferenceNetwork, pixel_input
from refdiff.model.encoder import CHANNELS
from refdiff.model.errors import StorageError
from refdiff.model.matching import ReferenceMaps, composite_reference, match

PACKAGED = Path(__file__).parent / "weights" / "difference.safetensors"


@dataclass(frozen=True)
class SeenReference:
    """One reference as the network sees it. maps: encoder maps (on the query's grid if registered). valid: (h8, w8) bool.
    picture: (3, H, W) uint8 on the query's working grid and covered: (H, W) bool, both None if not registered."""

    maps: dict[int, Tensor]
    valid: Tensor
    picture: Tensor | None = None
    covered: Tensor | None = None

    @property
    def registered(self) -> bool:
        return self.picture is not None


@dataclass(frozen=True)
class LearnedDifference:
    """logits: (h4, w4) float32, > 0 = more likely defect than not. types: (T, h4, w4) probabilities of DIFFERENCE_TYPES.
    image_logit: of the pair as a whole. global_logit: of a missing, added, wrong or misplaced component or level."""

    logits: Tensor
    types: Tensor
    image_logit: float
    global_logit: float


class DifferenceModel:
    """Loaded weights, ready to compare. `sha256` names them in calibrations and reports."""

    def __init__(self, net: DifferenceNetwork, sha256: str) -> None:
        self.sha256 = sha256
        self._net = _folded(net.eval()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def compare(
        self,
        picture: Tensor,
        maps: dict[int, Tensor],
        references: Sequence[SeenReference],
        *,
        hard: bool = False,
    ) -> LearnedDifference:
        """picture: (3, H, W) uint8 query at working size; maps: its encoder maps, stride -> (C, H/s, W/s)."""
        views = [ReferenceMaps(r.maps, r.valid, r.registered) for r in references]
        matched = match(maps, views, hard=hard)
        pictures = [r.picture for r in references if r.picture is not None]
        reaches = [r.covered for r in references if r.covered is not None]
        if pictures:
            reference = composite_reference(picture.float(), torch.stack(pictures).float()).to(torch.uint8)
            covered = torch.stack(reaches).all(0)
        else:
            reference, covered = picture, torch.zeros(picture.shape[-2:], dtype=torch.bool)
        pixels = pixel_input(picture[None], reference[None], covered[None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = self._net(matched, pixels)
        return LearnedDifference(
            out.map_logits[0, 0].float(),
            F.softmax(out.type_logits[0].float(), 0),
            float(out.image_logits[0]),
            float(out.global_logits[0]),
        )


def _folded(net: DifferenceNetwork) -> DifferenceNetwork:
    """Batch norm folded into the convolutions before it."""
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential) and len(module) == 3 and isinstance(module[1], nn.BatchNorm2d):
            assert isinstance(module[0], nn.Conv2d)
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return net


def load_difference(path: Path = PACKAGED) -> DifferenceModel:
    """Weights beside their card (`difference.json`), whose sha256 must fit. Raises StorageError."""
    card = path.with_suffix(".json")
    try:
        about = json.loads(card.read_text(encoding="utf-8"))
        data = path.read_bytes()
    except (OSError, ValueError) as e:
        raise StorageError(
            f"difference weights {path} and {card.name} cannot be read ({e}); reinstall or retrain"
        ) from e
    digest = hashlib.sha256(data).hexdigest()
    if digest != about.get("sha256"):
        raise StorageError(f"{path}: sha256 {digest} is not what {card.name} says; the file was changed or cut off")
    net = DifferenceNetwork(DifferenceConfig(CHANNELS, **about["config"]))
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()})
    return DifferenceModel(net, digest)


@lru_cache(maxsize=2)
def shared_difference(path: Path = PACKAGED) -> DifferenceModel:
    """The same, loaded once a process."""
    return load_difference(path)


__all__ = ["DIFFERENCE_TYPES", "DifferenceModel", "LearnedDifference", "SeenReference", "load_difference"]
