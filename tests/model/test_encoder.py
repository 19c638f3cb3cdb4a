"""The frozen encoder: its features are those of the published weights, alone or in a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refdiff.model.difference import encoder as module
from refdiff.model.difference import features as features_module
from refdiff.model.difference.encoder import CHANNELS, Encoder, load_efficientnet_lite0
from refdiff.model.difference.features import resize_to, work_size
from refdiff.model.errors import ImageError, StorageError
from refdiff.model.images import RgbImage
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render

SETTINGS = ModelSettings(working_px=160)
# stride -> mean, standard deviation, largest magnitude, first, last and middle value
CANONICAL = {
    4: (-0.0064, 11.2332, 53.1053, -1.0947, 10.7946, 8.393),
    8: (0.0481, 9.8091, 32.7136, 3.21, 1.1713, -8.3112),
    16: (0.1216, 5.0067, 22.2139, 4.0071, 0.0643, -4.4059),
    32: (-0.0235, 1.6171, 6.5542, 0.0415, -1.2824, -3.7818),
}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(SETTINGS)


def canonical_image() -> RgbImage:
    """(128, 160, 3): ramps in red and green, a chequerboard in blue."""
    y, x = np.mgrid[:128, :160]
    return np.stack([x * 255 // 159, y * 255 // 127, (x // 16 + y // 16) % 2 * 200], -1).astype(np.uint8)


def test_encoder_features_match_canonical_values(encoder: Encoder) -> None:
    features = encoder.embed(canonical_image())
    assert (features.size, features.work_size) == ((128, 160), (128, 160))
    for stride, wanted in CANONICAL.items():
        m = features.maps[stride]
        assert m.shape == (CHANNELS[stride], 128 // stride, 160 // stride)
        middle = m[m.shape[0] // 2, m.shape[1] // 2, m.shape[2] // 2]
        found = (m.mean(), m.std(), m.abs().max(), m[0, 0, 0], m[-1, -1, -1], middle)
        assert [float(v) for v in found] == pytest.approx(wanted, rel=1e-3, abs=5e-3)
    vec, patches = features.global_vec, features.patches
    assert vec[[0, 100, 319, 320, 500, 639]] == pytest.approx(
        [0.0538, 0.0423, -0.0333, 0.0428, 0.0558, 0.0339], abs=1e-3
    )
    assert [patches[0, 0], patches[17, 50], patches[35, 111]] == pytest.approx([0.0261, -0.0921, 0.0324], abs=1e-3)
    assert (vec.shape, patches.shape, vec.dtype, patches.dtype) == ((640,), (36, 112), np.float32, np.float32)
    assert np.linalg.norm(vec) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(patches, axis=1) == pytest.approx(1, abs=1e-5)


def test_encoder_batch_gives_the_features_of_single_images(encoder: Encoder) -> None:
    images = [render("circuit", 1, i, size=(120, 160), noise_seed=i).image for i in range(3)]
    for image, together in zip(images, encoder.embed_batch(images), strict=True):
        alone = encoder.embed(image)
        for stride in CHANNELS:
            assert (alone.maps[stride] - together.maps[stride]).abs().max() < 1e-3 * alone.maps[stride].abs().max()
        assert together.global_vec == pytest.approx(alone.global_vec, abs=1e-4)
        assert together.patches == pytest.approx(alone.patches, abs=1e-4)
    assert encoder.embed_batch([]) == []


def test_encoder_is_deterministic(encoder: Encoder) -> None:
    first, again = encoder.embed(canonical_image()), encoder.embed(canonical_image())
    assert all((first.maps[s] == again.maps[s]).all() for s in CHANNELS)


def test_global_vector_separates_designs_more_than_photos(encoder: Encoder) -> None:
    def vector(design: int, photo: int) -> np.ndarray:
        return encoder.embed(render("circuit", design, photo, size=(160, 160), noise_seed=photo).image).global_vec

    here, same, other = vector(1, 0), vector(1, 1), vector(2, 0)
    assert here @ same > here @ other


def test_changed_encoder_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(module.weights_path().read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "weights.pth"
    changed.write_bytes(data)
    monkeypatch.setattr(module, "weights_path", lambda: changed)
    with pytest.raises(StorageError, match="sha256"):
        load_efficientnet_lite0()


def test_encoder_fingerprint_changes_with_settings_and_version(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Encoder(SETTINGS).fingerprint == encoder.fingerprint
    assert Encoder(ModelSettings(working_px=192)).fingerprint != encoder.fingerprint
    monkeypatch.setattr(features_module, "FEATURE_VERSION", "next")
    assert Encoder(SETTINGS).fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    ("size", "working_px", "wanted"),
    [
        ((320, 320), 320, (320, 320)),
        ((480, 640), 320, (256, 320)),  # 240 rounds to a multiple of 32
        ((1000, 100), 320, (320, 64)),  # never under 64
        ((16, 16), 320, (320, 320)),
        ((3000, 4000), 96, (64, 96)),
    ],
)
def test_work_size_is_a_multiple_of_32_and_at_least_64(
    size: tuple[int, int], working_px: int, wanted: tuple[int, int]
) -> None:
    assert work_size(size, working_px) == wanted


def test_resize_averages_when_shrinking() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.abs(resize_to(stripes, (32, 32)).astype(int) - 100).max() <= 1  # no aliasing
    assert resize_to(stripes, (64, 64)) is stripes


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 1), (64, 64, 4)])
def test_image_that_is_not_8_bit_rgb_is_refused(encoder: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="RGB"):
        encoder.embed(np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match="float"):
        encoder.embed(np.zeros((64, 64, 3), np.float32))  # type: ignore[arg-type]
