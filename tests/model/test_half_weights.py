"""Linear layers with float16 weights say what float32 ones say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refdiff.model.language.half_weights import halve_weights

pytestmark = pytest.mark.skipif(
    torch.backends.quantized.engine not in ("x86", "fbgemm"), reason="torch multiplies no float16 weights here"
)


@torch.inference_mode()
def test_bfloat16_weights_in_float16_give_the_same_results() -> None:
    torch.manual_seed(1)
    layer = nn.Linear(576, 192)
    layer.weight.data = (layer.weight * 3).bfloat16().float()
    x = torch.randn(2, 9, 576)
    expected = layer(x)
    network = nn.Sequential(layer)
    halve_weights(network)
    assert not isinstance(network[0], nn.Linear)
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [1e6, 1.0001, torch.nan], ids=["too large", "too fine", "no number"])
def test_a_layer_that_float16_does_not_hold_stays(value: float) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.bfloat16))
    network[0].weight.data.fill_(value)
    halve_weights(network)
    assert [type(layer) for layer in network] == [nn.Linear, nn.Linear]
