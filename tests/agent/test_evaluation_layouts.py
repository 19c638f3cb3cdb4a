"""The three layouts of `refdiff evaluate`, and folders that match none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.evaluation.layouts import (
    LabelledBox,
    detect_format,
    golden_subset,
    load_mask,
    load_masks,
    read_dataset,
)
from refdiff.model.errors import InputError


def image(path: Path, shade: int = 100, size: tuple[int, int] = (32, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, shade, shade)).save(path)
    return path


def mvtec(root: Path) -> Path:
    for i, suffix in enumerate(("png", "JPG", "jpeg", "bmp", "tif", "tiff", "webp")):
        image(root / "train" / "good" / f"g{i}.{suffix}", shade=i)
    image(root / "test" / "good" / "a.png", 50)
    for i in range(3):
        image(root / "test" / "crack" / f"{i:03d}.png", 60 + i)
    image(root / "ground_truth" / "crack" / "000_mask.png")
    image(root / "ground_truth" / "crack" / "001.png")
    (root / "train" / "good" / "Thumbs.db").write_bytes(b"x")
    (root / "train" / "good" / ".DS_Store").write_bytes(b"x")
    return root


def pairs(root: Path, text: str) -> Path:
    for i in range(4):
        image(root / "q" / f"{i}.png", 10 * i)
    image(root / "r.png", 200)
    image(root / "m.png", 255)
    (root / "pairs.csv").write_bytes(text.encode("utf-8"))
    return root


def deeppcb(root: Path, split: str = "test", boxes: str = "10 11 20 22 3\n1,2,3,4,6\n") -> Path:
    group = root / "PCBData" / "group1"
    for name in ("001", "002"):
        image(group / "1" / f"{name}_temp.jpg")
        image(group / "1" / f"{name}_test.jpg")
    (group / "1_not").mkdir(parents=True, exist_ok=True)
    (group / "1_not" / "001.txt").write_text(boxes)
    (group / "1_not" / "002.txt").write_text("")
    lines = [f"group1/1/{name}.jpg group1/1_not/{name}.txt" for name in ("001", "002")]
    (root / "PCBData" / f"{split}.txt").write_text("\n".join(lines))
    return root


def test_mvtec_layout_is_read_with_labels_and_masks(tmp_path: Path) -> None:
    data = read_dataset(mvtec(tmp_path / "bottle"))
    assert (data.name, data.format) == ("bottle", "mvtec")
    assert [p.name for p in data.train] == ["g0.png", "g1.JPG", "g2.jpeg", "g3.bmp", "g4.tif", "g5.tiff", "g6.webp"]
    assert [(s.name, s.label, s.kind) for s in data.test] == [
        ("test/crack/000.png", 1, "crack"),
        ("test/crack/001.png", 1, "crack"),
        ("test/crack/002.png", 1, "crack"),
        ("test/good/a.png", 0, "good"),
    ]
    assert [s.masks[0].name if s.masks else None for s in data.test] == ["000_mask.png", "001.png", None, None]
    assert len({s.id for s in data.test}) == 4
    assert data.has_masks
    assert "skipped 1 files" in data.notes[0]
    assert "1 defective images have no mask" in data.notes[1]


def test_mvtec_layout_notes_test_images_that_are_also_in_train(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    (root / "test" / "good" / "copy.png").write_bytes((root / "train" / "good" / "g0.png").read_bytes())
    assert any("copy.png" in note and "also in train/good" in note for note in read_dataset(root).notes)


@pytest.mark.parametrize("good", ["OK", "Good", "normal", "defect-free", "0"])
def test_mvtec_good_folder_may_have_any_name_that_pairs_know(tmp_path: Path, good: str) -> None:
    image(tmp_path / "train" / good / "g.png", 1)
    image(tmp_path / "test" / good / "a.png", 2)
    image(tmp_path / "test" / "NG" / "b.png", 3)
    data = read_dataset(tmp_path)
    assert [p.name for p in data.train] == ["g.png"]
    assert [(s.name, s.label, s.kind) for s in data.test] == [
        ("test/NG/b.png", 1, "NG"), (f"test/{good}/a.png", 0, "good")
    ][:: 1 if good > "NG" else -1]  # fmt: skip
    assert f"read as good: {good}; as defective: NG" in data.notes


def test_mvtec_without_a_good_test_folder_asks_which_one_is_good(tmp_path: Path) -> None:
    image(tmp_path / "train" / "good" / "g.png", 1)
    image(tmp_path / "test" / "shift_1" / "a.png", 2)
    image(tmp_path / "test" / "shift_2" / "b.png", 3)
    with pytest.raises(InputError, match=r"which folder of test holds the good parts\? found shift_1/, shift_2/"):
        read_dataset(tmp_path)
    (tmp_path / "test" / "good").mkdir()
    assert [s.label for s in read_dataset(tmp_path).test] == [1, 1]


@pytest.mark.parametrize(
    ("masks", "belong"),
    [
        (["001_mask.png"], {"001": ["001_mask.png"]}),
        (
            ["001_GT.png", "002-gt.bmp", "003 label.tif"],
            {"001": ["001_GT.png"], "002": ["002-gt.bmp"], "003": ["003 label.tif"]},
        ),
        (["001/000.png", "001/001.png", "002/000.png"], {"001": ["000.png", "001.png"], "002": ["000.png"]}),
        (["001_2_mask.png", "001_mask.png"], {"001_2": ["001_2_mask.png"], "001": ["001_mask.png"]}),
        (["cam/001_mask.png"], {"cam/001": ["001_mask.png"]}),
    ],
)
def test_masks_are_found_by_the_name_of_their_image(
    tmp_path: Path, masks: list[str], belong: dict[str, list[str]]
) -> None:
    image(tmp_path / "train" / "good" / "g.png", 1)
    image(tmp_path / "test" / "good" / "a.png", 2)
    for i, name in enumerate(("001", "002", "003", "001_2", "cam/001")):
        image(tmp_path / "test" / "crack" / f"{name}.png", 3 + i)
    for mask in masks:
        image(tmp_path / "ground_truth" / "Crack" / mask)
    data = read_dataset(tmp_path)
    found = {s.name[len("test/crack/") : -len(".png")]: [m.name for m in s.masks] for s in data.test if s.masks}
    assert found == belong
    assert any(f"{5 - len(belong)} defective images have no mask" in note for note in data.notes)
    assert not any("belong to no test image" in note for note in data.notes)


def test_masks_of_one_image_are_united(tmp_path: Path) -> None:
    for i in range(2):
        levels = np.zeros((4, 4), np.uint8)
        levels[i] = 255
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    mask, notes = load_masks([tmp_path / "0.png", tmp_path / "1.png"], (4, 4))
    assert mask.any(axis=1).tolist() == [True, True, False, False]
    assert notes == []


def test_everything_left_out_of_an_mvtec_folder_is_counted_and_named(tmp_path: Path) -> None:
    root = mvtec(tmp_path)
    image(root / "test" / "crack" / "cam2" / "004.png", 90)  # read: sub-folders belong to their class
    image(root / "test" / "loose.png", 91)
    image(root / "train" / "bad" / "b.png", 92)
    image(root / "validation" / "good" / "v.png", 93)
    image(root / "ground_truth" / "crack" / "777_mask.png")
    image(root / "ground_truth" / "dent" / "000_mask.png")
    (root / "test" / "crack" / "photo.heic").write_bytes(b"x")
    data = read_dataset(root)
    assert "test/crack/cam2/004.png" in [s.name for s in data.test]
    said = "\n".join(data.notes)
    for part in (
        "1 images in test are not part of the layout and are left out: loose.png",
        "1 images in train/bad are not part",
        "1 images in validation are not part of the layout and are left out: v.png",
        "1 images in ground_truth/dent are not part",
        "1 masks belong to no test image and are left out: crack/777_mask.png",
        "test/crack: skipped 1 files that are not images; 1 file is not in an image format",
        "(1 .heic: photo.heic); save photos as PNG or JPEG",
    ):
        assert part in said


@pytest.mark.parametrize(
    "text",
    [
        "reference,query,label,mask\nr.png,q/0.png,0,\nr.png,q/1.png,1,m.png\n",
        "\ufeffReference;Query;Label;Mask\r\nr.png;q/0.png;good;\r\nr.png;q\\1.png;BAD;m.png\r\n",
        "label,query,reference\nok,q/0.png,r.png\ndefective,q/1.png,r.png\n\n",
    ],
)
def test_pairs_csv_is_read_in_common_variants(tmp_path: Path, text: str) -> None:
    data = read_dataset(pairs(tmp_path, text))
    assert [(s.path.name, s.name, s.label, s.kind) for s in data.test] == [
        ("0.png", "q/0.png", 0, "good"),
        ("1.png", "q/1.png", 1, "defect"),
    ]
    assert all(s.reference == tmp_path / "r.png" for s in data.test)
    assert data.has_masks == ("m.png" in text)
    assert data.train == ()


def test_pairs_csv_separates_calibration_rows_and_keeps_defect_names(tmp_path: Path) -> None:
    text = (
        "reference,query,label,mask,split\nr.png,q/0.png,0,,calibrate\nr.png,q/1.png,scratch,,test\nr.png,q/2.png,0,,\n"
    )
    data = read_dataset(pairs(tmp_path, text))
    assert [s.name for s in data.calibrate] == ["q/0.png"]
    assert [(s.name, s.kind, s.label) for s in data.test] == [("q/1.png", "scratch", 1), ("q/2.png", "good", 0)]
    assert "scratch" in data.notes[0]


def test_deeppcb_layout_is_read_with_boxes_and_scale(tmp_path: Path) -> None:
    data = read_dataset(deeppcb(tmp_path))
    first, second = data.test
    assert (data.format, data.split) == ("deeppcb", "test")
    assert (first.id, first.name) == ("001", "PCBData/group1/1/001_test.jpg")
    assert first.reference == tmp_path / "PCBData/group1/1/001_temp.jpg"
    assert first.boxes == (LabelledBox(10, 11, 20, 22, "mousebite"), LabelledBox(1, 2, 3, 4, "pin-hole"))
    assert (second.boxes, second.label) == ((), 0)
    assert data.scale_mm_per_px == pytest.approx(1 / 48)
    deeppcb(tmp_path, "trainval")
    assert read_dataset(tmp_path).split == "test"
    assert read_dataset(tmp_path, split="trainval").split == "trainval"


HEAD = "reference,query,label,mask,split\n"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nowhere", "no such folder"),
        (lambda root: root, "none of train/good .* found nothing"),
        (lambda root: mvtec(root / "bottle").parent, "it holds data sets .bottle."),
        (lambda root: pairs(mvtec(root), HEAD), "looks like mvtec and pairs; say which with --format"),
        (lambda root: image(root / "train" / "good" / "a.png").parents[2], "no folder test"),
        (lambda root: (root / "train" / "good").mkdir(parents=True) or root, "no images in train/good"),
        (lambda root: pairs(root, HEAD), "no rows"),
        (lambda root: pairs(root, ""), "no column reference, query, label"),
        (lambda root: pairs(root, "a,b\n1,2\n"), "no column reference, query, label; .* found 'a,b'"),
        (lambda root: pairs(root, HEAD + "r.png,q/9.png,0,,\n"), "line 2: query 'q/9.png' is no file"),
        (lambda root: pairs(root, HEAD + "r.png,q/0.png,7,,\n"), "line 2: label '7'"),
        (lambda root: pairs(root, HEAD + "r.png,q/0.png,,,\n"), "line 2: label ''"),
        (lambda root: pairs(root, HEAD + "r.png,q/0.png,1,,calibrate\n"), "only good pairs calibrate"),
        (lambda root: pairs(root, HEAD + "r.png,q/0.png,0,,valid\n"), "split 'valid'"),
        (lambda root: pairs(root, HEAD + "r.png,q/0.png,0,,calibrate\n"), "no pair to test"),
        (
            lambda root: pairs(root, HEAD + "r.png,q/0.png,0,,calibrate\nr.png,q/0.png,0,,\n"),
            "to calibrate and to test",
        ),
        (lambda root: (root / "PCBData").mkdir() or root, "splits found: none"),
        (lambda root: deeppcb(deeppcb(root, "a"), "b"), "splits found: a, b; say which with --split"),
        (lambda root: deeppcb(root, boxes="1 2 3 4\n"), "expected x1 y1 x2 y2 type"),
        (lambda root: deeppcb(root, boxes="1 2 3 4 7\n"), "type 7; expected 1 to 6"),
    ],
)
def test_folder_without_a_known_layout_is_refused_with_what_is_missing(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_dataset(make(tmp_path))


def test_layout_options_that_do_not_apply_are_refused(tmp_path: Path) -> None:
    mvtec(tmp_path / "m")
    with pytest.raises(InputError, match="only the deeppcb layout has splits"):
        read_dataset(tmp_path / "m", split="test")
    with pytest.raises(InputError, match="no folder PCBData"):
        read_dataset(tmp_path / "m", "deeppcb")
    with pytest.raises(InputError, match=r"pairs\.csv: not found"):
        read_dataset(tmp_path / "m", "pairs")
    with pytest.raises(InputError, match=r"no .*nope\.txt; splits found: test"):
        read_dataset(deeppcb(tmp_path / "d"), split="nope")
    assert detect_format(tmp_path / "d") == "deeppcb"


@pytest.mark.parametrize(
    ("n", "count", "expected"),
    [(10, 4, [0, 2, 5, 7]), (10, None, list(range(10))), (3, 5, [0, 1, 2]), (7, 7, list(range(7))), (5, 1, [0])],
)
def test_golden_subset_is_floor_of_i_len_over_n(n: int, count: int | None, expected: list[int]) -> None:
    assert golden_subset(range(n), count) == expected


@pytest.mark.parametrize("count", [0, -3])
def test_golden_subset_below_one_is_refused(count: int) -> None:
    with pytest.raises(InputError, match="1 or more"):
        golden_subset([1, 2], count)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [([0, 255], [0, 1]), ([0, 1], [0, 1]), ([0, 3], [0, 1]), ([0, 13, 240], [0, 0, 1]), ([0, 0], [0, 0])],
)
def test_mask_levels_from_128_up_or_label_ids_count_as_defect(
    tmp_path: Path, levels: list[int], expected: list[int]
) -> None:
    Image.fromarray(np.array([levels], np.uint8)).save(tmp_path / "m.png")
    mask, note = load_mask(tmp_path / "m.png", (1, len(levels)))
    assert mask.dtype == bool
    assert mask[0].astype(int).tolist() == expected
    assert note is None


def test_mask_of_another_size_is_resized_with_a_note(tmp_path: Path) -> None:
    levels = np.zeros((20, 40), np.uint8)
    levels[:10, :10] = 255
    Image.fromarray(levels).save(tmp_path / "m.png")
    mask, note = load_mask(tmp_path / "m.png", (40, 80))
    assert mask.shape == (40, 80)
    assert mask[:20, :20].all()
    assert mask.sum() == 400
    assert note is not None
    assert "40 x 20 px" in note
    with pytest.raises(InputError, match="different shapes"):
        load_mask(tmp_path / "m.png", (80, 40))
    (tmp_path / "n.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="cannot be read"):
        load_mask(tmp_path / "n.png", (4, 4))
