"""Linear layers whose weights lie in memory as float16 and are multiplied as float32.

What a token costs on a CPU is reading the weights: halved, a step takes two thirds of the time. Weights that were bfloat16
in their file lose nothing by it, but for what is smaller than 3e-8. Not for training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MOST_LOST = 2.0**-25  # half of the smallest float16


class _HalfLinear(nn.Module):
    """As the float32 layer that it is made of, within the rounding of float32 sums."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.quantized.linear_prepack_fp16(layer.weight, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float32 -> (..., out) float32."""
        result: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return result


def halve_weights(network: nn.Module) -> None:
    """Replace the float32 linear layers inside `network` that float16 holds; nothing where torch cannot multiply them."""
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, nn.Linear) and layer.weight.dtype is torch.float32 and _fits(layer.weight):
                setattr(module, name, _HalfLinear(layer))


@torch.no_grad()
def _fits(weight: Tensor) -> bool:
    return bool((weight.half().float() - weight).abs().max() <= _MOST_LOST)
