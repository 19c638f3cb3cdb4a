"""A transformers backbone in place of the packaged encoder: maps at our strides, a network trained on it, clear refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from refdiff.memory.records.defect_names import Sight
from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import DIFFERENCE_TYPES, UNKNOWN
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.scorer import load_difference
from refdiff.model.errors import InputError
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.training.difference import DifferenceRecipe, train_difference
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import check_parts, fit_product
from refdiff.tools.inspection.calibration import calibrate, weights_in_use
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.inspection import regions_of
from refdiff.tools.naming.looks import vector
from refdiff.tools.workspace import Workspace


def _vit(folder: Path) -> Path:
    from transformers import Dinov2Backbone, Dinov2Config

    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, patch_size=14
    )
    Dinov2Backbone(config).save_pretrained(folder)
    return folder


def _siglip(folder: Path) -> Path:
    from transformers import SiglipConfig, SiglipModel

    tower = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48}
    words = tower | {"vocab_size": 100, "projection_size": 24, "bos_token_id": 1, "eos_token_id": 2}
    seeing = tower | {"image_size": 64, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=words, vision_config=seeing)).save_pretrained(folder)
    return folder


def _convnext(folder: Path) -> Path:
    from transformers import ConvNextBackbone, ConvNextConfig

    ConvNextBackbone(ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1])).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (_vit, {4: 24, 8: 24, 16: 24, 32: 24}),
        (_siglip, {4: 24, 8: 24, 16: 24, 32: 24}),
        (_convnext, {4: 8, 8: 12, 16: 16, 32: 24}),
    ],
)
def test_backbone_gives_feature_maps_at_every_stride(make, channels: dict[int, int], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    encoder = Encoder(ModelSettings(encoder=make(tmp_path / "net"), working_px=128))
    assert encoder.channels == channels
    image = np.random.default_rng(0).integers(0, 256, (100, 128, 3)).astype(np.uint8)
    features = encoder.embed(image)
    assert features.work_size == (96, 128)
    for stride, m in features.maps.items():
        assert m.shape == (channels[stride], 96 // stride, 128 // stride)
    assert encoder.fingerprint != Encoder(ModelSettings(working_px=128)).fingerprint
    assert features.global_vec.shape == (encoder.global_dim,)
    assert features.patches.shape == (36, encoder.patch_dim)


@pytest.mark.long
def test_difference_network_trained_on_a_backbone_works_with_it_only(tmp_path: Path) -> None:
    folder = _convnext(tmp_path / "net")
    recipe = DifferenceRecipe(pairs=128, epochs=0.5, encoder=str(folder), width=16, workers=1)
    weights = train_difference(recipe, (), tmp_path / "run")
    assert load_difference(weights).encoder == Encoder(ModelSettings(encoder=folder)).digest
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    own = ModelSettings(encoder=folder, difference_weights=weights, cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory, own) as workspace:
        a, b = (workspace.encoder.embed(render("label", 1, i, size=(128, 128)).image) for i in (0, 1))
        assert a.maps[8].shape == b.maps[8].shape
        assert workspace.difference.sha256
    other = ModelSettings(difference_weights=weights, cache=tmp_path / "cache")
    with Workspace.open(memory, other) as workspace, pytest.raises(InputError, match="train difference --encoder"):
        _ = workspace.difference


@pytest.mark.parametrize("make", [_vit, _siglip])
def test_part_is_inspected_with_an_encoder_that_no_network_was_trained_on(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    settings = ModelSettings(encoder=make(tmp_path / "net"), cache=tmp_path / "cache", working_px=96)
    photos = [render("label", 1, i, size=(96, 96)).image for i in range(7)]
    with Workspace.open(MemorySettings(home=tmp_path / "home", qdrant_url=None), settings) as workspace:
        for i, photo in enumerate(photos[:5]):
            Image.fromarray(photo).save(tmp_path / f"{i}.png")
        enroll(workspace, "label", sorted(tmp_path.glob("*.png")))
        assert weights_in_use(workspace)["difference"] == "none"
        calibration = calibrate(workspace, "label")
        good, spoiled = photos[5], photos[6].copy()
        spoiled[30:60, 30:60] = 255 - spoiled[30:60, 30:60]
        results = [compare(workspace, photo, "label") for photo in (good, spoiled)]
        assert results[0].difference.score < results[1].difference.score
        region = regions_of(results[1], calibration.pixel_threshold, at_least_one=True)[0]
        assert (region.type, region.type_confidence) == (UNKNOWN, 0.0)
        with pytest.raises(InputError, match="train difference --encoder"):
            fit_product(workspace, "label", "somebody")
        with pytest.raises(InputError, match="train difference --encoder"):
            check_parts(workspace, "label")


def test_finding_gets_a_vector_with_an_encoder_that_no_network_was_trained_on(tmp_path: Path) -> None:
    settings = ModelSettings(encoder=_vit(tmp_path / "net"), cache=tmp_path / "cache", working_px=96)
    golden = render("label", 1, 0, size=(96, 96)).image
    photo = golden.copy()
    photo[30:60, 30:60] = 255 - photo[30:60, 30:60]
    straight = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)
    with Workspace.open(MemorySettings(home=tmp_path / "home", qdrant_url=None), settings) as workspace:
        for registered in (True, False):
            seen = Sight("", "", registered, straight, (30, 30, 60, 60), 30.0, 30.0, 900)
            found = vector(workspace, photo, golden, seen)
            types = found[-4 - len(DIFFERENCE_TYPES) : -4]
            assert np.isfinite(found).all()
            assert not types.any()  # nothing says what it is


def test_half_precision_weights_compute_in_float32_and_missing_ones_are_refused(tmp_path: Path) -> None:
    folder = _vit(tmp_path / "net")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    image = np.zeros((96, 96, 3), np.uint8)
    assert Encoder(ModelSettings(encoder=folder, working_px=96)).embed(image).maps[8].isfinite().all()
    other = _vit(tmp_path / "other")
    some = {k: v for k, v in load_file(other / "model.safetensors").items() if "layer.1." not in k}
    save_file(some, other / "model.safetensors")
    with pytest.raises(InputError, match="missing"):
        Encoder(ModelSettings(encoder=other))


def test_folder_without_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="safetensors"):
        Encoder(ModelSettings(encoder=tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a transformers backbone"):
        Encoder(ModelSettings(encoder=tmp_path))


def test_truncated_backbone_weights_are_refused_before_a_pool_is_built(tmp_path: Path) -> None:
    folder = _convnext(tmp_path / "net")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    recipe = DifferenceRecipe(pairs=64, encoder=str(folder))
    with pytest.raises(InputError, match="cannot be read as a transformers backbone"):
        train_difference(recipe, (), tmp_path / "run")
    assert not (tmp_path / "run/pool").exists()


def test_backbones_of_the_same_shape_have_different_digests(tmp_path: Path) -> None:
    one, other = (Encoder(ModelSettings(encoder=_convnext(tmp_path / name))) for name in ("a", "b"))
    assert one.channels == other.channels
    assert one.digest != other.digest
