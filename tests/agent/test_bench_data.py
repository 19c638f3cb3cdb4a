"""Layout of public data sets: no leak between train and test, reproducible, masks of one polarity."""

from __future__ import annotations

import json
from pathlib import Path

import bench_data
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from refdiff.agent.evaluation.layouts import load_mask, read_dataset
from refdiff.model.errors import InputError


def save(path: Path, seed: int, mask: bool | None = None, inverted: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mask is None:
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
        return
    levels = np.zeros((16, 16), np.uint8)
    levels[4:8, 4:8] = 255 if mask else 0
    Image.fromarray(255 - levels if inverted else levels).save(path)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    root = tmp_path / "sources"
    for i in range(30):
        save(root / "aliens" / "normal" / f"{i}.png", i)
    for i in range(4):
        save(root / "aliens" / "anomaly" / f"{i}.png", 100 + i)
    for i in range(8):
        save(root / "magnetic_tile" / "MT_Free" / "Imgs" / f"f{i}.jpg", 200 + i)
        save(root / "magnetic_tile" / "MT_Crack" / "Imgs" / f"c{i}.jpg", 300 + i)
        save(root / "magnetic_tile" / "MT_Crack" / "Imgs" / f"c{i}.png", 0, mask=i > 0)
    paper = root / "piped" / "data"
    for name, folder in (("PA_AAA01_TL", "GroundTruth"), ("PA_BBB01_RL", "GroundThruth")):
        for sheet in range(1, 5):
            for patch in range(1, 5):
                stem = f"{sheet:02d}_{patch}"
                same = (sheet, patch) in ((1, 1), (4, 4))  # one picture twice, on two sheets
                save(paper / name / "NoDefects" / f"{name}_S_ND_{stem}.bmp", 400 if same else 401 + 10 * sheet + patch)
                save(paper / name / "Defects" / f"{name}_S_D_{stem}.bmp", 500 + 10 * sheet + patch)
                save(paper / name / "Defects" / folder / f"{name}_S_GT_{stem}.bmp", 0, mask=True, inverted=True)
    return root


def run(*arguments: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(bench_data.main)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stderr


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.mark.parametrize("copy", [False, True])
def test_laid_out_sources_share_no_image_between_train_and_test(sources: Path, tmp_path: Path, copy: bool) -> None:
    pytest.importorskip("elpv_dataset")
    out = tmp_path / "out"
    code, _ = run("--data", str(sources), "--out", str(out), "--test-good", "5", "--test-bad", "6", *["--copy"] * copy)
    assert code == 0
    found = {p.name: read_dataset(p) for p in sorted(out.iterdir())}
    assert list(found) == ["aliens", "elpv_mono", "magnetic_tile", "piped_aaa01_tl", "piped_bbb01_rl"]
    for data in found.values():
        assert not any("also in train/good" in note for note in data.notes)
        manifest = json.loads((data.root / "manifest.json").read_text())
        assert manifest["licence"]
        assert len(manifest["sha256"]) == len(data.train) + len(data.test)
        assert data.train[0].is_symlink() != copy
    counts = {
        name: (len(d.train), sum(not s.label for s in d.test), sum(s.label for s in d.test))
        for name, d in found.items()
    }
    assert counts["aliens"] == (20, 10, 4)
    assert counts["elpv_mono"] == (588 - 5, 5, 6)
    assert counts["magnetic_tile"] == (4, 4, 8)
    assert sum(counts["piped_aaa01_tl"]) == 16 - 1 + 16  # the doubled picture once


def test_masks_of_every_source_are_written_with_bright_defects(sources: Path, tmp_path: Path) -> None:
    run("--data", str(sources), "--out", str(tmp_path / "out"), "--test-good", "5", "--test-bad", "5")
    for name in ("magnetic_tile", "piped_aaa01_tl", "piped_bbb01_rl"):
        masks = [mask for s in read_dataset(tmp_path / "out" / name).test for mask in s.masks]
        assert len(masks) == (7 if name == "magnetic_tile" else 16)  # an empty mask is no mask
        for path in masks:
            assert load_mask(path, (16, 16))[0].sum() == 16


def test_images_of_one_paper_sheet_stay_on_one_side_of_the_split(sources: Path, tmp_path: Path) -> None:
    for product in bench_data.piped(sources):
        bench_data.lay_out(product, tmp_path, seed=0)
        data = read_dataset(tmp_path / product.name)
        trained = {p.stem.split("_ND_")[1][:2] for p in data.train}
        tested = {s.path.stem.split("_ND_")[1][:2] for s in data.test if not s.label}
        assert trained
        assert tested
        assert not trained & tested


def test_layout_depends_only_on_the_seed(sources: Path, tmp_path: Path) -> None:
    product = bench_data.aliens(sources)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        bench_data.lay_out(product, tmp_path / name, seed=seed)
    assert names(tmp_path / "a") == names(tmp_path / "b") != names(tmp_path / "c")
    bench_data.lay_out(product, tmp_path / "c", seed=0)  # laid out anew, nothing of the old one stays
    assert names(tmp_path / "c") == names(tmp_path / "a")


def test_folder_not_made_by_bench_data_is_not_overwritten(sources: Path, tmp_path: Path) -> None:
    (tmp_path / "aliens").mkdir()
    (tmp_path / "aliens" / "precious.txt").write_text("x")
    with pytest.raises(InputError, match="was not made by bench-data"):
        bench_data.lay_out(bench_data.aliens(sources), tmp_path, seed=0)
    assert (tmp_path / "aliens" / "precious.txt").exists()


def test_missing_sources_are_reported_and_too_few_images_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("elpv_dataset")
    code, text = run("--data", str(tmp_path), "--out", str(tmp_path / "out"))
    assert code == 0
    assert text.count("skipped: ") == 3
    assert "no folder aliens" in text
    code, text = run("--out", str(tmp_path / "few"), "--test-good", "700")
    assert code == 65
    assert "too few" in text
