"""Training pairs as the tools register them, and training that goes on from weights on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from refdiff.model.difference.scorer import PACKAGED, load_difference, read_network
from refdiff.model.errors import InputError
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import render
from refdiff.model.training.difference import DifferenceRecipe, train_difference
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.training.pool import describe_registered, read_shard, registered_pairs
from refdiff.server.cli import main
from refdiff.tools.golden_samples import training_pairs
from refdiff.tools.golden_samples.training_pairs import make_pairs


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A product of eight good photos, two with a known defect and one defective somewhere."""
    good, bad = [], []
    for i in range(8):
        path = tmp_path / f"good{i}.png"
        path.write_bytes(encode_png(render("label", 1, i, size=(96, 128)).image))
        good.append(Photo(path))
    for i in range(3):
        photo = render("label", 1, 20 + i, size=(96, 128)).image.copy()
        photo[30:50, 40 : 60 + i] = 255 - photo[30:50, 40 : 60 + i]
        mask = np.zeros((96, 128), np.uint8)
        mask[30:50, 40 : 60 + i] = 255
        path, truth = tmp_path / f"bad{i}.png", tmp_path / f"mask{i}.png"
        path.write_bytes(encode_png(photo))
        truth.write_bytes(encode_png(np.dstack([mask] * 3)))
        bad.append(Photo(path, True, truth if i < 2 else None, type="stain"))
    return Source("own_label", tuple(good), tuple(bad), "the customer's own")


@pytest.mark.long
def test_pairs_are_registered_as_in_an_inspection_and_training_goes_on_from_weights(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_pairs, "_RENDERED", 0.0)
    folder = tmp_path / "pairs"
    folder.mkdir()
    describe_registered(folder, [source], 0)
    for index in range(2):
        training_pairs._make([source], folder, 0, index)
    assert make_pairs([source], folder, products=2, seed=0, workers=1) > 20  # both are there already
    shards = registered_pairs(folder, [source])
    batches = [read_shard(path) for path in shards]
    label = np.concatenate([b.label.numpy() for b in batches])
    known = np.concatenate([b.known.numpy() for b in batches])
    marked = np.concatenate([b.mask.flatten(1).any(1).numpy() for b in batches])
    assert 0 < label.mean() < 1
    assert (marked[known > 0] == label[known > 0]).all()
    assert (label[known == 0] == 1).all()
    assert (known == 0).any()
    for batch in batches:
        assert not batch.covered.float().mean() < 0.8  # registered, and nearly all of it reached
    recipe = DifferenceRecipe(epochs=1, batch=8, lr=1e-3, start=str(PACKAGED))
    path = train_difference(recipe, [source], tmp_path / "run", pool=folder)
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["started_from"] == read_network()[2]
    assert "start" not in about["recipe"]
    assert load_difference(path).sha256 not in ("", read_network()[2])
    statistics = "fuse.32.1.running_mean"
    assert (read_network(path)[0].state_dict()[statistics] == read_network()[0].state_dict()[statistics]).all()


def test_folders_that_hold_something_else_are_refused(source: Source, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refdiff train pairs"):
        registered_pairs(tmp_path / "nowhere", [source])
    describe_registered(tmp_path, [source], 0)
    with pytest.raises(InputError, match="another seed"):
        describe_registered(tmp_path, [source], 1)
    (tmp_path / "00000_96x128.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="other sources"):
        registered_pairs(tmp_path, [])
    with pytest.raises(InputError, match="other sources"):
        make_pairs([], tmp_path, products=2, seed=0, workers=1)


def test_start_without_registered_pairs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", "difference", "--start", "weights.safetensors"]) == 65
    assert "refdiff train pairs" in " ".join(capsys.readouterr().err.split())
