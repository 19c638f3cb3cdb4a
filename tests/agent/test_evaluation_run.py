"""`evaluate` end to end on small rendered data sets in the three layouts, against known truth."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from refdiff.agent.drivers.embedded import EmbeddedDriver
from refdiff.agent.evaluation.run import evaluate
from refdiff.agent.report.schema import LlmReading
from refdiff.model.boards.network import load_boards
from refdiff.model.errors import InputError
from refdiff.model.synthesis.render import DefectSpec, Scene, render
from refdiff.tools.inspection import inspection

PX = 192  # of the photos
CONTRACT = {
    "n_good", "n_bad", "image_auroc", "pixel_auroc", "aupro", "false_reject_rate", "escape_rate", "review_rate", "f1",
    "f1_oracle", "alpha", "ms_per_image", "references", "goldens", "weights_sha256", "per_image",
}  # fmt: skip


def _save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    return path


def _scene(instance: int, *, bad: bool, size: int = PX) -> Scene:
    defects = [DefectSpec("missing_component", contrast=1.0, seed=instance)] if bad else []
    return render("circuit", 5, instance, size=(size, size), defects=defects, noise_seed=instance)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_WORKING_PX", str(PX))


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mvtec")
    for i in range(8):
        _save(_scene(i, bad=False).image, root / "train" / "good" / f"{i:03}.png")
    for i in range(5):
        _save(_scene(100 + i, bad=False).image, root / "test" / "good" / f"{i:03}.png")
        scene = _scene(200 + i, bad=True)
        _save(scene.image, root / "test" / "missing" / f"{i:03}.png")
        _save(scene.defect_mask.astype(np.uint8) * 255, root / "ground_truth" / "missing" / f"{i:03}_mask.png")
    return root


def test_mvtec_layout_finds_missing_components(mvtec: Path) -> None:
    results = evaluate(mvtec, references=1, goldens=6, alpha=0.1)
    assert set(results.model_dump()) >= CONTRACT
    assert (results.n_good, results.n_bad, results.goldens, results.references) == (5, 5, 6, 1)
    assert results.image_auroc is not None
    assert results.image_auroc >= 0.9
    assert results.pixel_auroc is not None
    assert results.pixel_auroc >= 0.9
    assert results.aupro is not None
    assert results.aupro >= 0.6
    assert results.alpha.attained == pytest.approx(1 / 7)
    # six parts promise too little to fail anything: what stands out goes to a person
    assert {r.verdict.value for r in results.per_image} <= {"PASS", "REVIEW"}
    assert sum(r.verdict.value == "REVIEW" for r in results.per_image if r.label == 1) >= 4


def test_photo_that_is_also_a_golden_sample_is_not_compared_with_itself(mvtec: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(mvtec, tmp_path / "twice"))
    golden = sorted((root / "train" / "good").iterdir())[0]
    shutil.copy(golden, root / "test" / "good" / "golden.png")
    scores = {r.path: r.score for r in evaluate(root, references=1).per_image}
    (itself,) = (s for path, s in scores.items() if Path(path).name == "golden.png")
    others = [s for path, s in scores.items() if "good" in path and s != itself]
    assert itself > 0.2 * min(others)


def test_evaluation_touches_no_user_data_and_is_deterministic(mvtec: Path, tmp_path: Path) -> None:
    first, second = (evaluate(mvtec, references=2, goldens=4) for _ in range(2))
    assert [r.score for r in first.per_image] == [r.score for r in second.per_image]
    assert not (tmp_path / "home").exists()


def test_black_photo_gets_review_and_changes_no_other_score(mvtec: Path, tmp_path: Path) -> None:
    root = tmp_path / "with-black"
    shutil.copytree(mvtec, root)
    _save(np.zeros((PX, PX, 3), np.uint8), root / "test" / "black" / "000.png")
    results = evaluate(root, references=1, goldens=8)
    [black] = [r for r in results.per_image if r.kind == "black"]
    assert black.verdict.value == "REVIEW"
    assert np.isfinite(black.score)
    assert results.n_bad == 6
    others = {r.path: r.score for r in evaluate(mvtec, references=1, goldens=8).per_image}
    assert {r.path: r.score for r in results.per_image if r is not black} == others


def test_images_that_cannot_be_read_are_left_out_and_named(mvtec: Path, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(mvtec, root)
    damaged = ["train/good/001.png", "test/good/001.png", "test/missing/002.png", "ground_truth/missing/003_mask.png"]
    for name in damaged:
        (root / name).write_bytes((root / name).read_bytes()[:100])
    results = evaluate(root, references=1)
    assert (results.goldens, results.n_good, results.n_bad) == (7, 4, 4)
    assert results.pixel_auroc is not None
    notes = "\n".join(results.notes)
    assert "1 of 8 good training images cannot be enrolled" in notes
    assert "2 of 10 test images cannot be read and are left out" in notes
    assert "1 of 5 images with masks have one that cannot be used and are left out of the pixel figures" in notes
    assert "003_mask.png" in notes
    for name in damaged[1:]:
        assert name in notes
    others = {r.path: r.score for r in results.per_image}
    shutil.copy(mvtec / damaged[1], root / damaged[1])
    shutil.copy(mvtec / damaged[2], root / damaged[2])
    again = {r.path: r.score for r in evaluate(root, references=1).per_image}
    assert others == {name: again[name] for name in others}
    assert len(again) == 10
    for path in (root / "test").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no test image can be read \(test/"):
        evaluate(root, references=1)


def test_photo_that_the_references_hardly_cover_gets_review_as_in_an_inspection(
    mvtec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_MIN_COVERED", 1.1)
    assert {r.verdict.value for r in evaluate(mvtec, references=1, goldens=2).per_image} == {"REVIEW"}


def test_pairs_layout_with_calibration_rows(tmp_path: Path) -> None:
    rows = []
    for i in range(24):
        a, b = _scene(2 * i, bad=False, size=128).image, _scene(2 * i + 1, bad=False, size=128).image
        _save(a, tmp_path / f"cal/{i}_ref.png")
        _save(b, tmp_path / f"cal/{i}_query.png")
        rows.append([f"cal/{i}_ref.png", f"cal/{i}_query.png", "0", "", "calibrate"])
    for i in range(3):
        for bad in (False, True):
            scene = _scene(300 + 2 * i + bad, bad=bad, size=128)
            _save(_scene(400 + i, bad=False, size=128).image, tmp_path / f"{i}_{bad}_ref.png")
            _save(scene.image, tmp_path / f"{i}_{bad}_query.png")
            rows.append([f"{i}_{bad}_ref.png", f"{i}_{bad}_query.png", str(int(bad)), "", ""])
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["reference", "query", "label", "mask", "split"], *rows])
    results = evaluate(tmp_path, alpha=0.05)
    assert (results.n_good, results.n_bad, results.references) == (3, 3, 1)
    assert results.n_calibration == 24
    assert all(r.p_value is not None for r in results.per_image)
    assert results.pixel_auroc is None
    assert results.false_reject_rate is not None
    assert results.false_reject_rate <= 1 / 3


def _board(kind: str | None) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int, int] | None]:
    """Template, test image and box of a bare board with one defect: bright copper on dark."""
    template = np.zeros((320, 320), np.uint8)
    for x in (60, 130, 200):
        cv2.line(template, (x, 20), (x, 300), 255, 14)
    cv2.circle(template, (265, 160), 26, 255, -1)
    test = template.copy()
    edits = {
        "open": ((118, 150, 142, 162), 0, (116, 148, 144, 164)),
        # as in DeepPCB, the box of a small defect leaves some pixels round it: none there is under 20 px
        "short": ((60, 200, 130, 212), 255, (60, 196, 130, 216)),
        "copper": ((88, 90, 104, 106), 255, (80, 82, 112, 114)),
        "pin-hole": ((258, 152, 270, 166), 0, (250, 144, 278, 174)),
    }
    if kind is None:
        return 255 - template, 255 - test, None  # copper is dark
    (x0, y0, x1, y1), value, box = edits[kind]
    test[y0:y1, x0:x1] = value
    return 255 - template, 255 - test, box


def test_deeppcb_layout_writes_a_detections_file_for_every_image(tmp_path: Path) -> None:
    kinds: dict[str, str | None] = {"10000001": "open", "10000002": "short", "10000003": "copper",
                                    "10000004": "pin-hole", "10000005": None}  # fmt: skip
    ids = {"open": 1, "short": 2, "copper": 5, "pin-hole": 6}
    lines = []
    for name, kind in kinds.items():
        template, test, box = _board(kind)
        _save(template, tmp_path / f"PCBData/group1/1/{name}_temp.jpg")
        _save(test, tmp_path / f"PCBData/group1/1/{name}_test.jpg")
        text = "" if box is None else " ".join(map(str, [*box, ids[kind or ""]])) + "\n"
        (tmp_path / "PCBData/group1/1_not").mkdir(exist_ok=True)
        (tmp_path / f"PCBData/group1/1_not/{name}.txt").write_text(text)
        lines.append(f"group1/1/{name}.jpg group1/1_not/{name}.txt")
    (tmp_path / "PCBData/test.txt").write_text("\n".join(lines))
    out = tmp_path / "out"
    results = evaluate(tmp_path, split="test", detections=out)
    assert sorted(p.stem for p in out.iterdir()) == sorted(kinds)
    for name, kind in kinds.items():
        found = [line.split(",") for line in (out / f"{name}.txt").read_text().splitlines()]
        if kind is None:
            assert found == []
        else:
            assert found[0][5] == kind
            assert 0 < float(found[0][4]) <= 1
    assert results.detection is not None
    assert results.detection.recall is not None
    assert results.detection.recall == 1.0
    assert results.weights["boards"] == load_boards().sha256
    assert {"encoder", "difference"} < results.weights.keys()


@pytest.mark.parametrize("kwargs", [{"detections": Path("out")}, {"goldens": 0}, {"split": "test"}])
def test_evaluate_options_that_do_not_apply_are_refused(mvtec: Path, kwargs: dict[str, object]) -> None:
    with pytest.raises(InputError):
        evaluate(mvtec, **kwargs)  # type: ignore[arg-type]


@pytest.mark.long
def test_evaluate_with_judge_reads_every_image_with_the_embedded_model(
    mvtec: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is found in the user's cache folder."""
    monkeypatch.setenv("REFDIFF_CACHE", str(model_folder.parent.parent))
    asked: list[tuple[str, str]] = []
    read = EmbeddedDriver.read_pair

    def counted(self: EmbeddedDriver, prompt: str, reference: str, query: str) -> LlmReading:
        asked.append((reference, query))
        return read(self, prompt, reference, query)

    monkeypatch.setattr(EmbeddedDriver, "read_pair", counted)
    results = evaluate(mvtec, judge=True)
    assert len(asked) == len(results.per_image)
    assert all(r.reading is not None for r in results.per_image)
    passed = [r for r in results.per_image if r.score_passes]
    assert results.reading is not None
    assert results.reading.n_good + results.reading.n_bad == len(passed) > 0


def test_evaluate_with_judge_but_no_model_names_the_build_command(mvtec: Path) -> None:
    with pytest.raises(InputError, match="refdiff model build"):
        evaluate(mvtec, judge=True)
