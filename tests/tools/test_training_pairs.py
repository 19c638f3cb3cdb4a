"""Training pairs as the tools register them, and training that goes on from weights on them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from refdiff.agent.evaluation.own_products import own_products
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.scorer import load_difference, read_network
from refdiff.model.errors import ImageError, InputError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.training import pairs
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.training.pool import ByThumbnail, describe_registered, read_shard, registered_pairs
from refdiff.model.training.sources import usable
from refdiff.server.cli import main
from refdiff.tools.golden_samples import training_pairs
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.training_pairs import make_pairs
from refdiff.tools.workspace import Workspace

SEED = 0  # both products are drawn


def photo(instance: int, spot: int = 0) -> np.ndarray:
    """A label; spot: width of the stain on it, px."""
    picture = render("label", 1, instance, size=(96, 128)).image.copy()
    picture[30:50, 40 : 40 + spot] = 255 - picture[30:50, 40 : 40 + spot]
    return picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Products of a customer: labels with eight good photos, two with a known defect and one defective somewhere, beside a
    broken photo of each kind and two masks that cannot be used; and one whose two good photos are the same."""
    root = tmp_path / "data"
    good, bad, truth = (root / "label" / name for name in ("train/good", "test/stain", "ground_truth/stain"))
    same = root / "same" / "train" / "good"
    for folder in (good, bad, truth, same):
        folder.mkdir(parents=True)
    for i in range(8):
        (good / f"{i}.png").write_bytes(encode_png(photo(i)))
    for i in range(5):
        (bad / f"{i}.png").write_bytes(encode_png(photo(20 + i, spot=20 + i)))
        mask = np.zeros((96, 128, 3), np.uint8)
        mask[30:50, 40 : 60 + i] = 255
        if i != 2:
            (truth / f"{i}_mask.png").write_bytes(encode_png(mask if i < 3 else np.zeros_like(mask)))
    (truth / "4_mask.png").write_bytes(b"no picture")
    (good / "broken.png").write_bytes(encode_png(photo(9))[:500])
    (bad / "broken.png").write_bytes(b"")
    for name in ("a.png", "b.png"):
        (same / name).write_bytes(encode_png(photo(9)))
    return root


def test_pairs_are_registered_as_in_an_inspection_and_training_goes_on_from_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_pairs, "_RENDERED", 0.0)
    folder, out = tmp_path / "pairs", tmp_path / "run"
    folder.mkdir()
    sources, _ = own_products(data)
    describe_registered(folder, sources, SEED)
    for index in range(2):  # as the processes do that `train pairs` starts; it finds both there
        training_pairs._make(sources, folder, SEED, index)
    command = ["train", "pairs", "--data", str(data), "--out", str(folder), "--products", "2", "--seed", str(SEED)]
    assert main.run([*command, "--json"]) == 0
    told = capsys.readouterr()
    made = json.loads(told.out)
    left_out = {Path(name).relative_to(data).as_posix() if "/" in name else name: why
                for why, names in made["left_out"].items() for name in names}  # fmt: skip
    assert sorted(left_out) == [
        "label/ground_truth/stain/3_mask.png", "label/ground_truth/stain/4_mask.png", "label/test/stain/broken.png",
        "label/train/good/broken.png", "own_same (1)", "same/train/good/a.png",  # which was drawn second
    ]  # fmt: skip
    assert "marks no defect" in left_out["label/ground_truth/stain/3_mask.png"]
    assert "own_same (1)" in told.err
    assert made["products"] == 1

    shards = registered_pairs(folder, sources)
    batches = [read_shard(path) for path in shards]
    label = np.concatenate([b.label.numpy() for b in batches])
    known = np.concatenate([b.known.numpy() for b in batches])
    marked = np.concatenate([b.mask.flatten(1).any(1).numpy() for b in batches])
    assert len(label) == made["pairs"] > 10
    assert 0 < label.mean() < 1
    assert (marked[known > 0] == label[known > 0]).all()
    assert (label[known == 0] == 1).all()
    assert (known == 0).any()
    for batch in batches:
        assert not batch.covered.float().mean() < 0.8  # registered, and nearly all of it reached

    command = ["train", "difference", "--data", str(data), "--registered", str(folder), "--out", str(out)]
    assert main.run([*command, "--epochs", "1", "--lr", "0.1", "--json"]) == 0
    path = out / "difference.safetensors"
    about = json.loads(path.with_suffix(".json").read_text())
    assert about["started_from"] == read_network()[2]
    assert "start" not in about["recipe"]
    assert load_difference(path).sha256 not in ("", read_network()[2])
    before, after = read_network()[0].state_dict(), read_network(path)[0].state_dict()
    trained = load_file(out / "checkpoint.safetensors")
    moves = []
    for name, weight in after.items():
        if weight.is_floating_point():
            # what ships is the mean of the weights before and after, in half precision
            move = trained[f"average.{name}"] - before[name]
            torch.testing.assert_close(weight, before[name] + move / 2, rtol=1e-3, atol=1e-6)
            moves.append(float((move.abs() / (before[name].abs() + 1e-3)).max()))
    assert max(moves) > 0.1  # so another share would be seen
    statistics = "fuse.32.1.running_mean"
    assert (after[statistics] == before[statistics]).all()


@pytest.mark.long
def test_training_on_drawn_pairs_leaves_out_what_cannot_be_used(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "same" / "train" / "good" / "b.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    command = ["train", "difference", "--data", str(data), "--out", str(out), "--pairs", "64", "--epochs", "0.01"]
    assert main.run([*command, "--seed", "1", "--json"]) == 0
    told = capsys.readouterr()
    left_out = {Path(name).relative_to(data).as_posix() if "/" in name else name: why
                for why, names in json.loads(told.out)["left_out"].items() for name in names}  # fmt: skip
    assert sorted(left_out) == [
        "label/ground_truth/stain/3_mask.png", "label/ground_truth/stain/4_mask.png", "label/test/stain/broken.png",
        "label/train/good/broken.png", "own_same (1)", "same/train/good/b.png",
    ]  # fmt: skip
    assert "marks no defect" in left_out["label/ground_truth/stain/3_mask.png"]
    assert "own_same (1)" in told.err
    [source] = json.loads((out / "difference.json").read_text())["sources"]
    assert (source["name"], source["good"], source["defective"]) == ("own_label", 8, 3)


def test_pairs_are_drawn_of_all_photos_that_are_left(data: Path) -> None:
    [labels, _], _ = usable(own_products(data)[0])
    assert [p.path.name for p in labels.good] == [f"{i}.png" for i in range(8)]
    assert [p.path.name for p in labels.bad] == ["0.png", "1.png", "2.png"]
    nearest = ByThumbnail(pairs.read_photo)
    for seed in range(30):
        pairs.photo_pair(labels, np.random.default_rng(seed), 2, nearest)


def test_recording_leaves_out_what_cannot_be_used(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "record", "--data", str(data / "label"), "--out", str(tmp_path / "run"), "--per-product", "2"]
    assert main.run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["recorded"] > 0
    assert {Path(name).name for names in told["left_out"].values() for name in names} == {
        "broken.png", "3_mask.png", "4_mask.png",
    }  # fmt: skip


def test_photo_whose_own_reference_is_lost_is_left_out(data: Path) -> None:
    good = data / "label" / "train" / "good"
    templates, tested = [good / "0.png", good / "broken.png"], [good / "1.png", good / "2.png"]
    boards = Source("boards", tuple(Photo(p, partner=p) for p in templates),
                    tuple(Photo(p, True, partner=t) for p, t in zip(tested, templates, strict=True)), "none")  # fmt: skip
    [kept], left_out = usable([boards])
    assert ([p.path for p in kept.good], [p.path for p in kept.bad]) == ([templates[0]], [tested[0]])
    assert left_out["its reference cannot be read"] == [str(tested[1])]


def test_sources_without_a_usable_photo_are_refused(data: Path) -> None:
    for path in data.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"own_label \(0\).*save them as PNG or JPEG"):
        usable(own_products(data)[0])


def test_folders_that_hold_something_else_are_refused(data: Path, tmp_path: Path) -> None:
    sources, _ = own_products(data)
    with pytest.raises(InputError, match="refdiff train pairs"):
        registered_pairs(tmp_path / "nowhere", sources)
    describe_registered(tmp_path, sources, 0)
    with pytest.raises(InputError, match="another seed"):
        describe_registered(tmp_path, sources, 1)
    (tmp_path / "00000_96x128.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="other photos"):
        registered_pairs(tmp_path, [])
    with pytest.raises(InputError, match="other photos"):
        make_pairs([], tmp_path, products=2, seed=0, workers=1)


def test_start_without_registered_pairs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["train", "difference", "--start", "weights.safetensors"]) == 65
    assert "refdiff train pairs" in " ".join(capsys.readouterr().err.split())


def test_photos_of_a_source_are_read_through_the_window_of_its_golden_samples(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        deep = photo(i, spot=20 * (i == 2))[..., ::-1].astype(np.uint16) * 200
        path.write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    shallow = tmp_path / "shallow.png"
    shallow.write_bytes(encode_png(photo(3)))
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    with Workspace.open(memory, ModelSettings(cache=tmp_path / "cache", working_px=96)) as workspace:
        assert len(enroll(workspace, "product", paths[:2]).added) == 2
        read = training_pairs._read(workspace, Photo(paths[2], defective=True))
        assert read.image.std() > 30
        with pytest.raises(ImageError, match="8-bit"):
            training_pairs._read(workspace, Photo(shallow))
