"""The difference network: shapes, determinism, gradients, folding, and that it can learn what it is for."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.comparing import NetworkInput, network_input, pixel_input
from refdiff.model.difference.matching import STRIDES, Matched, ReferenceView
from refdiff.model.difference.network import DifferenceConfig, DifferenceNetwork
from refdiff.model.difference.scorer import DifferenceScorer, load_difference
from refdiff.model.errors import StorageError
from refdiff.model.number_format import autocast
from refdiff.model.weights_file import write_weights

CHANNELS = {4: 6, 8: 8, 16: 10, 32: 12}


def _batch(b: int, h: int, w: int, seed: int = 0) -> tuple[Matched, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    query = {s: torch.randn(b, c, h // s, w // s, generator=g) for s, c in CHANNELS.items()}
    reference = {s: q + 0.1 * torch.randn(q.shape, generator=g) for s, q in query.items()}
    distances = {s: torch.rand(b, 3, h // s, w // s, generator=g) * 0.3 for s in STRIDES}
    pictures = torch.randint(0, 255, (2, b, 3, h, w), generator=g, dtype=torch.uint8)
    covered = torch.ones(b, h, w, dtype=torch.bool)
    return Matched(query, reference, distances), pixel_input(pictures[0], pictures[1], covered)


@pytest.fixture(scope="module")
def net() -> DifferenceNetwork:
    torch.manual_seed(0)
    return DifferenceNetwork(DifferenceConfig(CHANNELS, width=16)).eval()


@pytest.mark.parametrize(("h", "w"), [(64, 64), (128, 96), (96, 320)])
def test_difference_network_gives_maps_at_stride_4_for_any_size(net: DifferenceNetwork, h: int, w: int) -> None:
    matched, pixels = _batch(2, h, w)
    out = net(matched, pixels)
    assert out.map_logits.shape == (2, 1, h // 4, w // 4)
    assert out.type_logits.shape == (2, len(DIFFERENCE_TYPES), h // 4, w // 4)
    assert out.global_logits.shape == out.image_logits.shape == (2,)
    assert torch.equal(out.map_logits, net(matched, pixels).map_logits)


def test_batch_gives_the_outputs_of_its_items(net: DifferenceNetwork) -> None:
    matched, pixels = _batch(3, 64, 64)
    whole = net(matched, pixels)
    for i in range(3):
        one = Matched(
            *({s: getattr(matched, n)[s][i : i + 1] for s in STRIDES} for n in ("query", "reference", "distances"))
        )
        alone = net(one, pixels[i : i + 1])
        assert torch.allclose(alone.map_logits[0], whole.map_logits[i], atol=1e-4)
        assert torch.allclose(alone.image_logits[0], whole.image_logits[i], atol=1e-4)


CARD = {"width": 16, "channels": {str(s): c for s, c in CHANNELS.items()}}


@pytest.mark.parametrize("earlier", [{}, {"pixels": True, "global_head": True}])
def test_config_is_read_from_current_and_earlier_cards(earlier: dict[str, bool]) -> None:
    assert DifferenceConfig.from_card(CARD | earlier) == DifferenceConfig(CHANNELS, 16)


@pytest.mark.parametrize("part", ["pixels", "global_head"])
def test_card_of_a_network_without_a_part_is_refused(part: str) -> None:
    with pytest.raises(StorageError, match=f"without {part} is no longer supported"):
        DifferenceConfig.from_card(CARD | {part: False})


def test_weights_trained_on_hard_matches_are_refused(net: DifferenceNetwork, tmp_path: Path) -> None:
    path = tmp_path / "difference.safetensors"
    write_weights(path, "difference", net.state_dict(), {"config": CARD, "encoder": "e", "recipe": {"hard": False}})
    assert load_difference(path).encoder == "e"
    write_weights(path, "difference", net.state_dict(), {"config": CARD, "encoder": "e", "recipe": {"hard": True}})
    with pytest.raises(StorageError, match="hard matches"):
        load_difference(path)


def test_pixel_input_forgives_one_pixel_shift_and_masks_uncovered_pixels() -> None:
    query = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    query[..., 10:20, 10:20] = 200
    moved = torch.roll(query, 1, dims=3)
    covered = torch.ones(1, 32, 32, dtype=torch.bool)
    assert float(pixel_input(query, moved, covered)[:, 6].abs().max()) == 0
    missing = pixel_input(query, torch.zeros_like(query), covered)[0, 6]
    assert float(missing[15, 15]) > 1
    covered[:, :, 16:] = False
    half = pixel_input(query, torch.zeros_like(query), covered)[0]
    assert float(half[6, 15, 12]) > 1
    assert float(half[6, 15, 18]) == 0
    assert float(half[7].mean()) == 0.5


def test_difference_network_learns_where_features_differ() -> None:
    """A few steps suffice to light up where the distance is large, on pairs that it has not seen."""
    torch.manual_seed(0)
    net = DifferenceNetwork(DifferenceConfig(CHANNELS, width=16))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    def sample(seed: int) -> tuple[Matched, torch.Tensor, torch.Tensor]:
        matched, pixels = _batch(8, 64, 64, seed)
        mask = torch.zeros(8, 16, 16)
        for i in range(0, 8, 2):
            y, x = (int(v) for v in torch.randint(0, 12, (2,), generator=torch.Generator().manual_seed(seed * 8 + i)))
            mask[i, y : y + 4, x : x + 4] = 1
        for s in (4, 8):
            grown = torch.nn.functional.interpolate(mask[:, None], size=(64 // s, 64 // s))
            matched.distances[s].add_(0.8 * grown)
        return matched, pixels, mask

    net.train()
    for step in range(40):
        matched, pixels, mask = sample(step + 1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(matched, pixels).map_logits[:, 0], mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    matched, pixels, mask = sample(1000)
    with torch.inference_mode():
        logits = net(matched, pixels).map_logits[:, 0]
    assert float(logits[mask > 0].mean()) > float(logits[mask == 0].mean()) + 2


def test_folded_weights_give_the_same_map(net: DifferenceNetwork) -> None:
    trained = copy.deepcopy(net)
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    matched, pixels = _batch(1, 64, 64)
    with autocast():
        before = trained(matched, pixels).map_logits[0, 0].float()
    after = DifferenceScorer(copy.deepcopy(trained), "x", "e").look(NetworkInput(matched, pixels)).logits
    assert before.std() > 0.05
    assert (before - after).abs().mean() < 0.05 * before.std()


def test_missing_or_changed_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "difference.safetensors"
    with pytest.raises(StorageError, match="reinstall or retrain"):
        load_difference(path)
    save_file({"a": torch.zeros(1)}, path)
    path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64, "config": {}}))
    with pytest.raises(StorageError, match="changed or cut off"):
        load_difference(path)


def test_network_input_marks_pixels_covered_by_a_reference() -> None:
    maps = {s: torch.zeros(c, 64 // s, 64 // s) for s, c in CHANNELS.items()}
    valid = torch.ones(8, 8, dtype=torch.bool)
    picture = torch.full((3, 64, 64), 7, dtype=torch.uint8)
    covered = torch.zeros(64, 64, dtype=torch.bool)
    covered[:, :32] = True
    views = [ReferenceView(maps, valid, True, picture, covered), ReferenceView(maps, valid, registered=False)]
    half, none = (network_input(picture, maps, v).pixels[0, -1] for v in (views, views[1:]))
    assert (half > 0).float().mean() == 0.5
    assert not none.any()
