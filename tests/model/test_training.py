"""Training of the difference network: ground truth of pairs, resumable pools and training, loadable weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from refdiff.agent.evaluation.own_products import own_products
from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.scorer import load_difference
from refdiff.model.errors import InputError, StorageError
from refdiff.model.images import encode_png
from refdiff.model.synthesis.photo_pairs import break_off, sway
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.model.training.difference import DifferenceRecipe, train_difference
from refdiff.model.training.pairs import (
    NO_TYPE,
    PAIR_PX,
    Pair,
    Photo,
    Source,
    cell_targets,
    marked_cells,
    photo_pair,
    read_mask,
    rendered_pair,
)
from refdiff.model.training.pool import SHARD, PoolPlan, batches, build_pool, count_batches, photos_of, read_shard
from refdiff.model.training.sources import UNSEEN, held_out, kept_for_tests, list_magnetic_tile, list_piped
from refdiff.server.cli.invocation import begin
from refdiff.server.cli.main import app


def _first(query: Path, candidates: Sequence[Path]) -> list[Path]:
    return list(candidates)


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A customer's folder: good photos, one defect with a mask, one without."""
    root = tmp_path_factory.mktemp("own") / "gear"
    for folder in ("train/good", "test/scratch", "test/odd", "ground_truth/scratch"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        (root / f"train/good/{i}.png").write_bytes(encode_png(render("moulded", 5, i, size=(160, 160)).image))
    broken = render("moulded", 5, 9, size=(160, 160), defects=[DefectSpec("scratch", size_px=60, seed=1)])
    for kind in ("scratch", "odd"):
        (root / f"test/{kind}/a.png").write_bytes(encode_png(broken.image))
    mask = np.repeat(broken.defect_mask[..., None] * np.uint8(255), 3, 2)
    (root / "ground_truth/scratch/a_mask.png").write_bytes(encode_png(mask))
    return root


def _check(pair: Pair) -> None:
    assert pair.query.shape == (PAIR_PX, PAIR_PX, 3)
    assert pair.query.dtype == np.uint8
    assert 1 <= len(pair.references) <= 4
    for reference in pair.references:
        assert reference.image.shape == pair.query.shape
        assert reference.covered.shape == pair.query.shape[:2]
    if pair.mask is not None:
        assert pair.label == bool(pair.mask.any())
        assert (pair.types[~pair.mask] == NO_TYPE).all()
    assert set(np.unique(pair.types)) <= {*range(len(DIFFERENCE_TYPES)), NO_TYPE}


@pytest.mark.parametrize("seed", range(12))
def test_rendered_pair_has_consistent_ground_truth(seed: int) -> None:
    pair = rendered_pair(np.random.default_rng(seed), 1 + seed % 3)
    _check(pair)
    again = rendered_pair(np.random.default_rng(seed), 1 + seed % 3)
    assert np.array_equal(pair.query, again.query)
    cells, types = cell_targets(pair.mask, pair.types)
    assert cells.any() == pair.label
    assert (types[cells > 0] != NO_TYPE).any() or not pair.label


@pytest.mark.parametrize(
    ("share", "marked"),
    [
        ([0.0, 0.1, 0.2, 1.0], [False, False, True, True]),
        ([0.0, 0.1, 0.15, 0.15], [False, False, True, True]),
        ([0.0, 0.0, 0.0, 0.0], [False] * 4),
    ],
)
def test_cells_are_marked_that_a_defect_covers_enough_of_or_most(share: list[float], marked: list[bool]) -> None:
    for kind in (np.float32, np.float64):
        assert marked_cells(np.array([share], kind)).tolist() == [marked]


def test_photo_pairs_come_with_and_without_masks(product: Path) -> None:
    [source], _ = own_products(product)
    assert (len(source.good), len(source.bad)) == (4, 2)
    assert {b.type for b in source.bad} == {"scratch", "odd"}
    seen = set()
    for seed in range(40):
        pair = photo_pair(source, np.random.default_rng(seed), 1, _first)
        _check(pair)
        seen.add((pair.label, pair.mask is not None))
    assert seen == {(True, True), (False, True), (True, False)}


def test_folder_of_products_is_read_and_an_empty_one_refused(product: Path, tmp_path: Path) -> None:
    assert [s.name for s in own_products(product.parent)[0]] == ["own_gear"]
    with pytest.raises(InputError, match="train/good"):
        own_products(tmp_path)


def test_own_products_are_read_as_evaluate_reads_them_and_what_is_not_is_named(product: Path, tmp_path: Path) -> None:
    def photos(*names: str) -> None:
        for i, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(encode_png(render("moulded", 5, i, size=(64, 64)).image))

    photos("a/train/ok/lot1/0.png", "a/train/ok/lot2/0.png", "a/test/Good/1.png", "a/test/scratch/top/0.png")
    photos("a/ground_truth/scratch/top/0_GT.png", "a/ground_truth/scratch/top/0/2.png", "a/ground_truth/scratch/9.png")
    photos("b/0.png", "b/more/1.png", "c/train/good/0.png", "d/train/schlecht/0.png", "d/test/dent/0.png")
    photos("cover.png", "._cover.png", "e/good/0.png", "e/good/1.png", "e/bad/0.png")
    (tmp_path / "b" / "notes.pdf").write_bytes(b"%PDF")
    [a, b, e], notes = own_products(tmp_path)
    assert [p.path.relative_to(tmp_path).as_posix() for p in a.good] == [
        "a/train/ok/lot1/0.png",
        "a/train/ok/lot2/0.png",
    ]
    assert [(p.type, [m.name for m in p.masks]) for p in a.bad] == [("scratch", ["0_GT.png", "2.png"])]
    assert (b.name, len(b.good), b.bad) == ("own_b", 2, ())
    assert (e.name, [p.path.name for p in e.good]) == ("own_e", ["0.png", "1.png"])
    assert own_products(tmp_path / "e")[0] == [e]  # not two products, good and bad
    said = "\n".join(notes)
    for left_out in (
        "1 masks belong to no test image",
        "c: 1 good photos",
        "e: not read as good, and left out: bad",
        "d: 0 good photos",
        "train/schlecht",
        "pdf",
    ):
        assert left_out in said


def test_half_of_the_things_and_all_unseen_products_are_held_out() -> None:
    groups = [f"cell{i}.png" for i in range(400)]
    kept = [held_out("elpv_mono", g) for g in groups]
    assert kept == [held_out("elpv_mono", g) for g in groups]
    assert 150 < sum(kept) < 250
    assert all(held_out(p, g) for p in UNSEEN for g in groups)


def test_impurities_of_papers_are_never_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "piped" / "data" / "PA_BRG02_RL"
    for kind, code in {"NoDefects": "ND", "Defects": "D"}.items():
        (folder / kind).mkdir(parents=True)
        for sheet in range(1, 13):
            for patch in (1, 2):
                (folder / kind / f"PA_BRG02_RL_S_{code}_{sheet:02}_{patch}.bmp").write_bytes(b"")
    [(name, listed)] = list_piped(tmp_path).items()
    assert all(kept_for_tests(name, i) for i in listed if i.kind != "good")
    good = [i for i in listed if i.kind == "good"]
    assert {len({kept_for_tests(name, i) for i in good if i.group == g}) for g in {i.group for i in good}} == {1}
    assert 0 < sum(kept_for_tests(name, i) for i in good) < len(good)
    assert not {i.group for i in listed if i.kind != "good"} & {i.group for i in good}


def test_photos_of_one_magnetic_tile_are_one_group_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    root = tmp_path / "magnetic_tile"
    for kind, numbers in {"Free": (461, 524, 1012, 1810), "Crack": (743,), "Blowhole": (1836, 99)}.items():
        folder = root / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"exp1_num_{number}.jpg").write_bytes(b"")
    (root / "MT_Free" / "Imgs" / "unnumbered.jpg").write_bytes(b"")
    groups: dict[str, list[str]] = {}
    for listed in list_magnetic_tile(tmp_path):
        groups.setdefault(listed.group, []).append(listed.path.stem.removeprefix("exp1_num_"))
    tiles = {"99"}, {"461", "524"}, {"743"}, {"1012"}, {"1810", "1836"}, {"unnumbered"}
    assert {frozenset(g) for g in groups.values()} == {frozenset(t) for t in tiles}


def test_broken_off_piece_changes_the_masked_pixels() -> None:
    scene = render("moulded", 3, 0)
    sizes = []
    for seed in range(12):
        made = break_off(scene.image, np.random.default_rng(seed), scene.foreground)
        if made is None:
            continue
        changed = np.abs(made.image.astype(int) - scene.image).max(2) >= 5
        assert made.mask[changed].mean() > 0.95
        assert made.structural == (made.type == "missing_component")
        sizes.append(made.mask.mean())
    assert len(sizes) >= 10
    assert max(sizes) > 3 * min(sizes)
    assert break_off(scene.image, np.random.default_rng(0), np.ones_like(scene.foreground)) is None


def test_sway_moves_the_image_a_little() -> None:
    image = render("circuit", 3, 0).image
    moved = sway(image, np.random.default_rng(1), max_shift_px=2.0)
    difference = np.abs(moved.astype(int) - image)
    assert 0 < difference.mean() < 12
    assert moved.shape == image.shape


# ---- pool and training ----


@pytest.fixture(scope="module")
def pool(product: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Source]]:
    folder = tmp_path_factory.mktemp("pool")
    sources, _ = own_products(product)
    build_pool(PoolPlan(0, tuple(sources)), folder, 2 * SHARD, 2)
    return folder, sources


@pytest.mark.long
def test_pool_rebuilds_missing_shards_only(pool: tuple[Path, list[Source]]) -> None:
    folder, sources = pool
    paths = sorted(folder.glob("*.safetensors"))
    assert len(paths) == 2
    before = {p: p.read_bytes() for p in paths}
    told: list[tuple[int, int]] = []
    paths[1].unlink()
    build_pool(PoolPlan(0, tuple(sources)), folder, 2 * SHARD, 1, lambda d, t: told.append((d, t)))
    assert told == [(1, 2), (2, 2)]
    assert {p: p.read_bytes() for p in paths} == before


def test_batches_cover_the_pool_once_and_can_be_skipped(pool: tuple[Path, list[Source]]) -> None:
    shards = sorted(pool[0].glob("*.safetensors"))
    everything = list(batches(shards, 16, np.random.default_rng(0)))
    assert len(everything) == count_batches(shards, 16) == 2 * SHARD // 16
    rest = list(batches(shards, 16, np.random.default_rng(0), skip=3))
    assert [b.label.tolist() for b in rest] == [b.label.tolist() for b in everything[3:]]
    only = list(batches(shards, 8, np.random.default_rng(0), keep=[1]))
    assert all((b.source == 1).all() for b in only)
    assert read_shard(shards[0]).mask.shape == (SHARD, PAIR_PX // 4, PAIR_PX // 4)


def test_few_pairs_of_a_product_are_a_batch_too(pool: tuple[Path, list[Source]], tmp_path: Path) -> None:
    whole = load_file(next(pool[0].glob("*.safetensors")))
    for rows in (1, 7, 20, 30):
        save_file({k: v[:rows].contiguous() for k, v in whole.items()}, tmp_path / f"{rows}.safetensors")
    sizes = [
        [len(b.label) for b in batches([tmp_path / f"{rows}.safetensors"], 16, np.random.default_rng(0))]
        for rows in (1, 7, 20, 30)
    ]
    assert [sorted(s) for s in sizes] == [[1], [7], [16], [14, 16]]


def test_training_on_nothing_is_refused(pool: tuple[Path, list[Source]], tmp_path: Path) -> None:
    everything = DifferenceRecipe(pairs=2 * SHARD, workers=1, width=8, left_out=("rendered", "surfaces", "own_"))
    with pytest.raises(InputError, match="no pairs are left"):
        train_difference(everything, pool[1], tmp_path, pool=pool[0])


def test_changed_photo_is_not_taken_for_the_one_that_a_pool_was_made_of(product: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gear"
    shutil.copytree(product, copy)
    [before], [after] = own_products(product)[0], own_products(copy)[0]
    assert photos_of([before]) == photos_of([after])
    mask = copy / "ground_truth" / "scratch" / "a_mask.png"
    mask.write_bytes(mask.read_bytes() + b" ")
    assert photos_of([before]) != photos_of([after])
    photos_of([replace(before, good=(Photo(Path(os.fsdecode(b"caf\xe9.png"))),))])  # from a disk of another encoding


def test_mask_of_label_ids_marks_what_is_not_0(product: Path, tmp_path: Path) -> None:
    ids = np.zeros((16, 20, 3), np.uint8)
    ids[1, 2:4] = 2
    (tmp_path / "mask.png").write_bytes(encode_png(ids))
    photo = Photo(product / "test" / "scratch" / "a.png", True, (tmp_path / "mask.png",))
    assert read_mask(photo, (16, 20)).sum() == 2


@pytest.mark.long
def test_stopped_training_resumes_and_its_weights_load(pool: tuple[Path, list[Source]], tmp_path: Path) -> None:
    folder, sources = pool
    recipe = DifferenceRecipe(pairs=2 * SHARD, epochs=2, batch=16, width=8, workers=1)

    class Stop(Exception):
        pass

    steps: list[int] = []

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "training":
            steps.append(done)
            if "val" in note:  # the first pass is done and kept
                raise Stop

    with pytest.raises(Stop):
        train_difference(recipe, sources, tmp_path, pool=folder, progress=stop)
    stopped_at = steps[-1]
    steps.clear()
    path = train_difference(
        recipe,
        sources,
        tmp_path,
        pool=folder,
        progress=lambda w, d, t, n="": steps.append(d) if w == "training" else None,
    )
    assert steps[0] == stopped_at + 1
    about = json.loads(path.with_suffix(".json").read_text())
    assert load_difference(path).sha256 == about["sha256"]
    assert about["sources"] == [{"name": "own_gear", "good": 4, "defective": 2, "licence": "the customer's own"}]
    assert "own_gear" in (tmp_path / "MODEL_CARD.md").read_text()
    with pytest.raises(InputError, match="other options"):
        train_difference(replace(recipe, width=16), sources, tmp_path, pool=folder)
    with pytest.raises(InputError, match="other photos, seed or encoder"):
        train_difference(replace(recipe, seed=1), sources, tmp_path, pool=folder)
    other = [replace(sources[0], name="other", bad=(Photo(Path("x.png"), True),))]
    with pytest.raises(InputError, match="other photos"):
        train_difference(recipe, other, tmp_path, pool=folder)


def test_training_command_with_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with begin(as_json=False):
        found = CliRunner().invoke(app, ["train", "difference", "--data", str(tmp_path / "nowhere")])
    assert isinstance(found.exception, InputError)


# ---- a full disk ----


def test_pool_larger_than_the_disk_is_refused(
    pool: tuple[Path, list[Source]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PoolPlan(0, tuple(pool[1]))
    size = sum(p.stat().st_size for p in pool[0].glob("*.safetensors")) / (2 * SHARD)
    assert plan.bytes_per_pair() == pytest.approx(size, rel=0.01)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(StorageError, match=r"10 MB free, 128 pairs take about 160 MB; free some space or choose") as e:
        train_difference(DifferenceRecipe(pairs=2 * SHARD, workers=1), pool[1], tmp_path)
    assert str(tmp_path / "pool") in str(e.value)
    assert not list((tmp_path / "pool").glob("*.safetensors"))
    build_pool(plan, pool[0], 2 * SHARD, 1)  # nothing is missing, nothing is needed


@pytest.mark.long
def test_full_disk_in_training_names_the_file_and_keeps_the_last_checkpoint(
    pool: tuple[Path, list[Source]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sources = pool
    recipe = DifferenceRecipe(pairs=2 * SHARD, epochs=1, batch=16, width=8, workers=1)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(StorageError, match=r"0 MB free, a checkpoint takes about \d+ MB; free some space"):
            train_difference(recipe, sources, tmp_path, pool=folder)
    assert not list(tmp_path.glob("*.safetensors"))

    def no_space(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as full:
        full.setattr("refdiff.model.weights_file.save_file", no_space)
        with pytest.raises(
            StorageError, match=r"checkpoint.safetensors: cannot be written .*os error 28.*free some space"
        ):
            train_difference(recipe, sources, tmp_path, pool=folder)
    assert train_difference(recipe, sources, tmp_path, pool=folder).is_file()
