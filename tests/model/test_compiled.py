"""Networks through OpenVINO: the same numbers as torch, for any batch and size; kept once converted; nothing is reported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from refdiff.model.difference import compiled as module
from refdiff.model.difference.comparing import NetworkInput, network_input
from refdiff.model.difference.compiled import Compiled, uses_openvino
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.scorer import DifferenceScorer, PlainNetwork, read_network
from refdiff.model.errors import InputError
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render

needs_openvino = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")


class _Doubled(nn.Module):
    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.factor, x.amax((2, 3))


@pytest.fixture
def by(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Chooses the engine."""
    monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", "float32")
    return lambda name: monkeypatch.setenv("REFDIFF_ENGINE", name)


@needs_openvino
@pytest.mark.parametrize(("size", "batch"), [((160, 128), 1), ((96, 192), 3), ((160, 128), 2)])
def test_encoder_maps_are_those_of_torch(by: Callable[[str], None], size: tuple[int, int], batch: int) -> None:
    images = [render("label", 1, photo, size=size).image for photo in range(batch)]
    found: dict[str, list[FeatureMaps]] = {}
    for name in ("openvino", "torch"):
        by(name)
        found[name] = [f.maps for f in Encoder(ModelSettings(working_px=max(size))).embed_batch(images)]
    for ours, right in zip(found["openvino"], found["torch"], strict=True):
        for stride, values in right.items():
            assert (ours[stride] - values).abs().max() < 1e-5 * values.abs().max()


def _seen(height: int, width: int, photo: int) -> NetworkInput:
    encoder = Encoder(ModelSettings(working_px=max(height, width)))
    query, golden = (render("label", 1, i, size=(height, width)).image for i in (photo, 7))
    maps, others = (f.maps for f in encoder.embed_batch([query, golden]))
    picture, other = (torch.from_numpy(i.copy()).permute(2, 0, 1) for i in (query, golden))
    valid = torch.ones(maps.grid, dtype=torch.bool)
    covered = torch.ones(height, width, dtype=torch.bool)
    return network_input(picture, maps, [ReferenceView(others, valid, True, other, covered)])


@needs_openvino
def test_difference_network_says_what_it_says_in_torch(by: Callable[[str], None]) -> None:
    scorers = {}
    for name in ("openvino", "torch"):
        by(name)
        net, encoder, sha256 = read_network()
        scorers[name] = DifferenceScorer(net, sha256, encoder)
    for pairs in ([_seen(96, 128, 0)], [_seen(160, 96, 1), _seen(160, 96, 2)]):
        for ours, seen in zip(scorers["openvino"].look_at(pairs), pairs, strict=True):
            right = scorers["torch"].look(seen)
            assert (ours.logits - right.logits).abs().max() < 1e-4  # of about -10 .. 10
            assert (ours.types - right.types).abs().max() < 1e-5


@needs_openvino
def test_converted_network_is_kept_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ModelSettings(cache=tmp_path, threads=1)
    x = torch.randn(2, 3, 8, 8)

    def first(factor: float) -> Tensor:
        return Compiled(_Doubled(factor), [x], settings)(x)[0]

    assert torch.equal(first(2.0), 2 * x)
    converted: list[nn.Module] = []
    convert = module.converted
    monkeypatch.setattr(module, "converted", lambda net, example: converted.append(net) or convert(net, example))
    assert torch.equal(first(2.0), 2 * x)
    assert not converted, "read from the cache"
    assert torch.equal(first(3.0), 3 * x)
    assert len(converted) == 1, "other weights"
    for path in (tmp_path / "openvino").glob("*.xml"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(first(2.0), 2 * x)
    assert len(converted) == 2, "damaged"
    monkeypatch.setattr(module, "write_atomic", lambda *a, **k: (_ for _ in ()).throw(OSError("read-only")))
    assert torch.equal(first(4.0), 4 * x)


@needs_openvino
def test_threads_that_need_a_network_at_once_convert_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, net = ModelSettings(cache=tmp_path, threads=1), read_network()[0]
    converted: list[nn.Module] = []
    convert = module.converted
    monkeypatch.setattr(module, "converted", lambda net, example: converted.append(net) or convert(net, example))
    plain = PlainNetwork(net)
    with ThreadPoolExecutor(2) as threads:
        compiled = list(threads.map(lambda _: Compiled(plain, plain.example(), settings), range(2)))
    (ours, _), (theirs, _) = (c(*plain.example()) for c in compiled)
    assert torch.equal(ours, theirs)
    assert len(converted) == 1


@needs_openvino
def test_results_stay_as_they_were_when_the_network_runs_again(tmp_path: Path) -> None:
    compiled = Compiled(_Doubled(), [torch.zeros(2, 3, 8, 8)], ModelSettings(cache=tmp_path, threads=1))
    a, b = torch.randn(1, 3, 16, 8), torch.randn(1, 3, 16, 8)
    doubled, _most = compiled(a)
    compiled(b)
    assert torch.equal(doubled, 2 * a)


@needs_openvino
def test_openvino_cannot_report_its_use(tmp_path: Path) -> None:
    Compiled(_Doubled(), [torch.zeros(2, 3, 8, 8)], ModelSettings(cache=tmp_path, threads=1))
    assert sys.modules["openvino_telemetry"] is None
    assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)


def test_engine_follows_the_setting_and_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for installed, expected in ((True, {"auto": True, "torch": False, "openvino": True}), (False, {"auto": False})):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: object() if found else None)
        for name, uses in expected.items():
            assert uses_openvino(ModelSettings(engine=name)) is uses  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pip install openvino"):
        uses_openvino(ModelSettings(engine="openvino"))


@needs_openvino
def test_openvino_that_does_not_work_leaves_the_networks_to_torch(
    by: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr(module, "load_openvino", broken)
    image = render("label", 1, 0, size=(96, 96)).image
    by("torch")
    expected = Encoder(ModelSettings(working_px=96)).embed(image)
    by("auto")
    settings = ModelSettings(working_px=96, cache=tmp_path)
    assert torch.equal(Encoder(settings).embed(image).maps[8], expected.maps[8])
    DifferenceScorer(*read_network(), settings=settings)
    assert sum("libopenvino.so" in r.getMessage() for r in caplog.records) == 2
    by("openvino")
    with pytest.raises(ImportError):
        Encoder(ModelSettings(working_px=96, cache=tmp_path))
