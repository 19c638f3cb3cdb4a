"""Any `transformers` backbone in place of the packaged encoder: a folder with its config and safetensors.

Four of its stages, from shallow to deep, become the maps at strides 4, 8, 16 and 32: hierarchical networks (ConvNeXt, Swin,
ResNet) give them as they are, plain vision transformers (DINOv2, DINOv3, SigLIP) have one stride and are resampled. Nothing
is loaded from a hub. A difference network must be trained on the backbone it is used with; without one, distances decide.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refdiff.model.difference.matching import STRIDES
from refdiff.model.errors import InputError

_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # where the folder does not say


class TransformersBackbone(nn.Module):
    """(B, 3, H, W) in -1..1, H and W multiples of 32 -> {stride: (B, C, H / stride, W / stride)}.

    channels: stride -> C. digest: names weights and configuration.
    """

    def __init__(self, folder: Path) -> None:
        """Raises InputError: no such folder, no backbone in it, weights that are not safetensors."""
        super().__init__()
        from transformers import AutoConfig, SiglipVisionModel
        from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING

        weights = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
        if not weights:
            raise InputError(f"{folder}: no folder with config.json and safetensors of a transformers backbone")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            how: dict[str, Any] = {
                "local_files_only": True, "use_safetensors": True, "dtype": torch.float32, "output_loading_info": True
            }  # fmt: skip
            self._tower = getattr(config, "vision_config", config) if "siglip" in config.model_type else None
            if self._tower is not None:
                kind: Any = SiglipVisionModel
                net, loaded = kind.from_pretrained(folder, config=self._tower, **how)
                config, widths = self._tower, [self._tower.hidden_size] * len(STRIDES)
            else:
                kind = MODEL_FOR_BACKBONE_MAPPING[type(config)]
                depth = len(config.stage_names) - 1  # without the stem
                config.out_features = [config.stage_names[-(-depth * i // 4)] for i in (1, 2, 3, 4)]
                net, loaded = kind.from_pretrained(folder, config=config, **how)
                widths = [int(c) for c in net.channels]
            # norms of one dimension begin at 1 and 0, everything else at random
            if missing := sorted(k for k in loaded["missing_keys"] if net.get_parameter(k).ndim > 1):
                raise ValueError(f"weights of {missing[0]} and {len(missing) - 1} more are missing")
            self.channels = dict(zip(STRIDES, widths, strict=True))
            self._patch = int(getattr(config, "patch_size", 1) or 1)
            about = folder / "preprocessor_config.json"
            told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
            for name, default in zip(("image_mean", "image_std"), _IMAGENET, strict=True):
                self.register_buffer(name, torch.tensor(told.get(name) or default)[None, :, None, None])
        # what a broken folder raises depends on which of its files is broken and on the kind of network
        except Exception as e:
            raise InputError(f"{folder}: cannot be read as a transformers backbone ({e})") from e
        self.net = net.eval().requires_grad_(False)
        digest = hashlib.sha256()
        for path in (folder / "config.json", *weights):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        self.digest = digest.hexdigest()

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        h, w = x.shape[-2:]
        x = ((x + 1) / 2 - self.get_buffer("image_mean")) / self.get_buffer("image_std")
        fitting = [max(1, round(n / self._patch)) * self._patch for n in (h, w)]
        if fitting != [h, w]:
            x = F.interpolate(x, size=fitting, mode="bilinear", align_corners=False, antialias=True)
        maps = self._maps(x.contiguous())
        return {s: _to_grid(m, (h // s, w // s)) for s, m in zip(STRIDES, maps, strict=True)}

    def _maps(self, x: Tensor) -> list[Tensor]:
        if self._tower is None:
            return list(self.net(x).feature_maps)
        layers = self.net(x, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[1:]
        h, w = (n // self._patch for n in x.shape[-2:])
        chosen = (layers[-(-len(layers) * i // 4) - 1] for i in (1, 2, 3, 4))
        return [tokens.transpose(1, 2).unflatten(2, (h, w)) for tokens in chosen]


def _to_grid(m: Tensor, size: tuple[int, int]) -> Tensor:
    if m.shape[-2:] == size:
        return m
    shrinks = m.shape[-1] > size[1]
    return F.interpolate(m, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
