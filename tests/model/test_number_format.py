"""The number format: chosen by speed, once per machine, unless a setting says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from refdiff.model import number_format as module
from refdiff.model.difference.comparing import network_input
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.matching import ReferenceView
from refdiff.model.difference.scorer import load_difference
from refdiff.model.number_format import FORMATS, autocast, number_format
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    module._faster.cache_clear()


@pytest.mark.parametrize("name", FORMATS)
def test_setting_forces_the_format(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", name)
    assert number_format() is FORMATS[name]
    weight = torch.ones(2, 2)
    with autocast():
        assert torch.mm(weight, weight).dtype is FORMATS[name]


@pytest.mark.parametrize("faster", FORMATS)
def test_faster_format_is_taken_and_kept_for_the_machine(faster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_seconds", lambda dtype: 0.001 if dtype is FORMATS[faster] else 0.002)
    assert number_format() is FORMATS[faster]
    module._faster.cache_clear()
    monkeypatch.setattr(module, "_seconds", lambda dtype: pytest.fail("measured again"))
    assert number_format() is FORMATS[faster]


@pytest.mark.parametrize("kept", ["", "[]", '{"cpu": "another", "torch": "1.0", "format": "bfloat16"}'])
def test_unusable_or_foreign_record_is_measured_again(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ModelSettings().cache / "number-format.json"
    path.parent.mkdir(parents=True)
    path.write_text(kept)
    monkeypatch.setattr(module, "_seconds", lambda dtype: 0.001 if dtype is torch.float32 else 0.002)
    assert number_format() is torch.float32
    assert json.loads(path.read_text())["format"] == "float32"


def test_cache_that_cannot_be_written_does_not_stop_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFDIFF_CACHE", str(tmp_path / "file" / "cache"))
    assert number_format() in FORMATS.values()


def test_difference_map_agrees_in_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(ModelSettings(working_px=128))
    query, reference = (encoder.embed(render("weave", 1, seed, size=(128, 128)).image) for seed in (1, 2))
    picture = torch.zeros(3, 128, 128, dtype=torch.uint8)
    view = ReferenceView(
        reference.maps, torch.ones(16, 16, dtype=torch.bool), True, picture, torch.ones(128, 128, dtype=torch.bool)
    )
    seen = network_input(picture, query.maps, [view])
    maps = []
    for name in FORMATS:
        monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", name)
        maps.append(load_difference().look(seen).logits)
    assert (maps[0] - maps[1]).abs().mean() < 0.02 * maps[0].std()
