"""Readers of the three folder layouts of `refdiff evaluate`: `mvtec`, `pairs` and `deeppcb`.

They list files and labels and open no images except masks. A wrong folder raises an InputError that says what was
expected and what was found. Knows nothing about scores, verdicts or banks.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from refdiff.model.boards.deeppcb import LabelledBox, file_below, read_split
from refdiff.model.errors import InputError
from refdiff.model.images import may_be_image
from refdiff.model.wording import few
from refdiff.tools.golden_samples.photos import Refusal, find_images, left_out

Format = Literal["mvtec", "pairs", "deeppcb"]
_NAMED = 5  # names in a note
FORMATS: tuple[Format, ...] = ("mvtec", "pairs", "deeppcb")
DEEPPCB_MM_PER_PX = 1 / 48  # "around 48 pixels per 1 millimetre", its readme

_GOOD_WORDS = frozenset({"0", "good", "ok", "pass", "normal", "false", "no", "no defect", "defect-free"})
_BAD_WORDS = frozenset({"1", "bad", "ng", "nok", "fail", "defect", "defective", "anomaly", "anomalous", "true", "yes"})
_PAIR_COLUMNS = ("reference", "query", "label", "mask")
_MASK_SEPARATORS = "_-. /"  # between an image's name and what a mask's name has besides
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One image to judge. `name` is its path below the data folder (POSIX), `id` names its detections file.

    masks: defect pixels, in any of them.
    """

    path: Path
    name: str
    id: str
    defective: bool
    kind: str
    masks: tuple[Path, ...] = ()
    boxes: tuple[LabelledBox, ...] | None = None
    reference: Path | None = None

    @property
    def label(self) -> int:
        return int(self.defective)


@dataclass(frozen=True)
class DataSet:
    """What a layout holds. `train`: good images to enrol (mvtec); `calibrate`: good pairs set apart (pairs).

    notes: what the reader left out or changed, counted and named. has_masks: pixel metrics apply.
    """

    name: str
    format: Format
    root: Path
    test: tuple[Sample, ...]
    train: tuple[Path, ...] = ()
    calibrate: tuple[Sample, ...] = ()
    split: str | None = None
    scale_mm_per_px: float | None = None
    notes: tuple[str, ...] = ()
    has_masks: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "has_masks", any(sample.masks for sample in self.test))


def read_dataset(root: Path, format: Format | None = None, split: str | None = None) -> DataSet:
    """Read `root` in the given layout, else in the one that it looks like.

    split applies to deeppcb only. Raises InputError: no such folder, not of that layout, nothing to test.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder that holds the data set")
    chosen = format or detect_format(root)
    if split is not None and chosen != "deeppcb":
        raise InputError(f"--split {split}: only the deeppcb layout has splits, {root} is {chosen}; leave it out")
    if chosen == "deeppcb":
        return read_deeppcb(root, split)
    readers: dict[str, Callable[[Path], DataSet]] = {"mvtec": read_mvtec, "pairs": read_pairs}
    if chosen not in readers:
        raise InputError(f"--format {chosen}: unknown layout; use one of {', '.join(FORMATS)}")
    return readers[chosen](root)


def detect_format(root: Path) -> Format:
    """The layout of a folder. Raises InputError when it looks like none of them, or like several."""
    signs: dict[Format, bool] = {
        "mvtec": bool(_good_folders(root / "train")),
        "pairs": (root / "pairs.csv").is_file(),
        "deeppcb": (root / "PCBData").is_dir(),
    }
    found = [name for name, there in signs.items() if there]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root} looks like {' and '.join(found)}; say which with --format")
    inside = sorted(p.name for p in root.iterdir() if p.is_dir() and _good_folders(p / "train"))
    hint = f"; it holds data sets ({few(inside, _NAMED)}): evaluate one of those" if inside else ""
    raise InputError(
        f"{root}: none of train/good (mvtec), pairs.csv (pairs), PCBData (deeppcb) is there; "
        f"found {_listing(root)}{hint}"
    )


def golden_subset(items: Sequence[_T], count: int | None) -> list[_T]:
    """`count` items spread evenly: index floor(i * len / count); all of them for None or a larger count.

    Raises InputError for a count below 1.
    """
    if count is None or count >= len(items):
        return list(items)
    if count < 1:
        raise InputError(f"--goldens {count}: give a number of 1 or more, or leave it out for all")
    return [items[i * len(items) // count] for i in range(count)]


def read_mvtec(root: Path) -> DataSet:
    """`train/good`, `test/<good|defect>`, `ground_truth/<defect>`, each with its sub-folders.

    The good folders may have any of the names that `pairs.csv` knows for good. A mask has the name of its image, alone or
    with more behind it (`001_mask.png`, `001_GT.png`), or lies in a folder of that name (`001/000.png`); several are united.
    """
    notes: list[str] = []
    train = [path for folder in _good_folders(root / "train") for path in _images(folder, notes)]
    if not train:
        raise InputError(f"{root}: no images in train/good; mvtec needs good samples there; found {_listing(root)}")
    if not (root / "test").is_dir():
        raise InputError(f"{root}: no folder test; mvtec needs test/good and test/<defect>; found {_listing(root)}")
    good, kinds = _good_folders(root / "test"), _folders(root / "test")
    if not good:
        raise InputError(
            f"{root}: which folder of test holds the good parts? found {_listing(root / 'test')}; "
            f"call it good (or {', '.join(sorted(w for w in _GOOD_WORDS if w.isalpha() and w != 'good'))}); "
            "without good test images make an empty folder test/good"
        )
    samples = _samples(root, kinds, good, notes)
    if not samples:
        raise InputError(f"{root}: no images in test/<good|defect>/; found {_listing(root / 'test')}")
    notes += _unread(root, kinds)
    if any(f.name != "good" for f in good):
        bad = [f.name for f in kinds if f not in good]
        notes.append(
            f"read as good: {few([f.name for f in good], _NAMED)}; as defective: {few(bad, _NAMED) or 'nothing'}"
        )
    notes += _without_mask(samples)
    leaks = _same_content(train, [s.path for s in samples])
    if leaks:
        notes.append(f"{len(leaks)} test images are also in train/good (same bytes): {few(leaks, _NAMED)}")
    return DataSet(
        name=root.resolve().name,
        format="mvtec",
        root=root,
        train=tuple(train),
        test=tuple(samples),
        notes=tuple(notes),
    )


def read_parts(root: Path) -> tuple[list[Path], list[Sample], list[str]]:
    """What a network learns from in the `mvtec` layout: images of `train/good`, defective ones of `test`, which may be
    missing, and notes on what was left out. A folder without `train` and `test` holds good ones only."""
    notes: list[str] = []
    if not (root / "train").is_dir() and not (root / "test").is_dir():
        good = _good_folders(root)  # beside folders of defective ones
        if others := [f.name for f in _folders(root) if good and f not in good]:
            notes.append(f"not read as good, and left out: {few(others, _NAMED)}")
        return [path for folder in good or [root] for path in _images(folder, notes)], [], notes
    train = [path for folder in _good_folders(root / "train") for path in _images(folder, notes)]
    kinds, good = _folders(root / "test"), _good_folders(root / "test")
    bad = _samples(root, [k for k in kinds if k not in good], [], notes)
    return train, bad, notes + _unread(root, kinds)


def read_pairs(root: Path) -> DataSet:
    """`pairs.csv` with reference, query, label, mask[, split]; paths relative to `root`, mask may be empty.

    label: 0 or 1, good or bad (and their usual synonyms), or the name of the defect. split: empty or `test`, or
    `calibrate` for good pairs that are set apart for the calibration.
    """
    rows = _csv_rows(root / "pairs.csv")
    notes: list[str] = []
    test: list[Sample] = []
    calibrate: list[Sample] = []
    named: set[str] = set()
    for line, row in rows:
        where = f"{root / 'pairs.csv'} line {line}"
        kind = _label(row["label"], where)
        if kind not in ("good", "defect"):
            named.add(kind)
        query = file_below(root, row["query"], "query", where)
        sample = Sample(
            path=query,
            name=row["query"].replace("\\", "/"),
            id=f"{line:05d}_{query.stem}",
            defective=kind != "good",
            kind=kind,
            masks=(file_below(root, row["mask"], "mask", where),) if row["mask"] else (),
            reference=file_below(root, row["reference"], "reference", where),
        )
        split = row.get("split", "").lower()
        if split in ("", "test"):
            test.append(sample)
        elif split == "calibrate" and not sample.defective:
            calibrate.append(sample)
        elif split == "calibrate":
            raise InputError(f"{where}: split calibrate with label {row['label']!r}; only good pairs calibrate")
        else:
            raise InputError(f"{where}: split {split!r}; use calibrate, test or nothing")
    if not test:
        raise InputError(f"{root / 'pairs.csv'}: no pair to test; found {len(calibrate)} to calibrate")
    if named:
        notes.append(f"labels read as names of defects: {few(sorted(named), _NAMED)}")
    notes += _without_mask(test)
    leaks = _same_content([s.path for s in calibrate], [s.path for s in test])
    if leaks:
        raise InputError(f"{root / 'pairs.csv'}: to calibrate and to test (same bytes): {few(leaks, _NAMED)}; keep one")
    return DataSet(
        name=root.resolve().name,
        format="pairs",
        root=root,
        test=tuple(test),
        calibrate=tuple(calibrate),
        notes=tuple(notes),
    )


def read_deeppcb(root: Path, split: str | None = None) -> DataSet:
    """`PCBData/<split>.txt`, lines `group/ID/NAME.jpg group/ID_not/NAME.txt`; the template is the reference.

    The images are NAME_temp.jpg and NAME_test.jpg. split: default `test` where it is there, else the only one.
    """
    base = root / "PCBData"
    if not base.is_dir():
        raise InputError(f"{root}: no folder PCBData; deeppcb needs PCBData/<split>.txt; found {_listing(root)}")
    splits = sorted(p.stem for p in base.glob("*.txt"))
    if split is None:
        if not splits or ("test" not in splits and len(splits) > 1):
            raise InputError(f"{base}: splits found: {few(splits, _NAMED) or 'none'}; say which with --split")
        split = "test" if "test" in splits else splits[0]
    if split not in splits:
        raise InputError(f"--split {split}: no {base / split}.txt; splits found: {few(splits, _NAMED) or 'none'}")
    samples = [
        Sample(
            path=pair.tested,
            name=pair.tested.relative_to(root).as_posix(),
            id=pair.id,
            defective=bool(pair.boxes),
            kind="defect" if pair.boxes else "good",
            boxes=pair.boxes,
            reference=pair.template,
        )
        for pair in read_split(base, split)
    ]
    return DataSet(
        name="deeppcb",
        format="deeppcb",
        root=root,
        split=split,
        test=tuple(samples),
        scale_mm_per_px=DEEPPCB_MM_PER_PX,
    )


def load_masks(paths: Sequence[Path], size: tuple[int, int]) -> tuple[NDArray[np.bool_], list[str]]:
    """The union of an image's masks as (H, W) bool at its `size` (H, W), and what had to be changed. Raises as load_mask."""
    loaded = [load_mask(path, size) for path in paths]
    return np.logical_or.reduce([mask for mask, _ in loaded]), [note for _, note in loaded if note]


def load_mask(path: Path, size: tuple[int, int]) -> tuple[NDArray[np.bool_], str | None]:
    """A mask as (H, W) bool at `size` (H, W) of its image, and a note if it had to be resized (nearest).

    Grey levels: defect from 128 up; where nothing reaches 128 (label ids), everything above 0. Raises InputError:
    not readable, or of another shape (aspect ratio more than 2 % off).
    """
    try:
        with Image.open(path) as image:
            # palette indices are labels, their colours mean nothing
            levels = np.asarray(image if image.mode == "P" else image.convert("L"))
            palette = image.mode == "P"
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as e:
        raise InputError(f"mask {path}: cannot be read ({type(e).__name__}); save it as PNG") from e
    mask = levels > 0 if palette or levels.max() < 128 else levels >= 128
    if mask.shape == size:
        return mask, None
    (height, width), (mask_height, mask_width) = size, mask.shape
    sizes = f"mask {path.name} is {mask_width} x {mask_height} px, its image {width} x {height} px"
    if abs(mask_width * height / (mask_height * width) - 1) > 0.02:
        raise InputError(f"{sizes}: different shapes; give the mask of this image")
    resized = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return resized.astype(np.bool_), f"{sizes}: resized by nearest neighbour"


# ---- pieces ----


def _folders(place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    return sorted(p for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def _good_folders(place: Path) -> list[Path]:
    """Folders in `place` whose names say that they hold good parts."""
    return [p for p in _folders(place) if p.name.strip().lower() in _GOOD_WORDS]


def _images(folder: Path, notes: list[str]) -> list[Path]:
    """The images in a folder and below it; what is left out is noted."""
    if not folder.is_dir():
        return []
    refused: list[Refusal] = []
    others: list[Path] = []
    images = [path for path in find_images([folder], refused, others, links=True) if isinstance(path, Path)]
    if others and images:  # of a folder without images the refusal says it
        where = f"{folder.parent.name}/{folder.name}"
        notes.append(f"{where}: skipped {len(others)} files that are not images; {left_out(others)}")
    notes += [f"{refusal.path}: {refusal.reason}" for refusal in refused]
    return images


def _samples(root: Path, kinds: Sequence[Path], good: Sequence[Path], notes: list[str]) -> list[Sample]:
    """The images of folders of `test`, those of defects with their masks."""
    samples = []
    for folder in kinds:
        images = _images(folder, notes)
        is_good = folder in good
        keys = [_key(path, folder) for path in images]
        masks = {} if is_good else _masks(root / "ground_truth", folder.name, set(keys), notes)
        for path, key in zip(images, keys, strict=True):
            samples.append(
                Sample(
                    path=path,
                    name=path.relative_to(root).as_posix(),
                    id=f"{folder.name}_{key.replace('/', '_')}",
                    defective=not is_good,
                    kind="good" if is_good else folder.name,
                    masks=masks.get(key, ()),
                )
            )
    return samples


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _masks(truth: Path, kind: str, keys: set[str], notes: list[str]) -> dict[str, tuple[Path, ...]]:
    """Key of the image (its path below its folder, without suffix) -> its masks."""
    masks: dict[str, tuple[Path, ...]] = {}
    strays: list[str] = []
    folders = [f for f in _folders(truth) if f.name.lower() == kind.lower()]
    for folder, path in ((f, p) for f in folders for p in _images(f, notes)):
        key = _key(path, folder)
        ends = [len(key), *(i for i in range(len(key) - 1, 0, -1) if key[i] in _MASK_SEPARATORS)]
        mine = next((key[:end] for end in ends if key[:end] in keys), None)  # the longest name of an image in it
        if mine is None:
            strays.append(path.relative_to(truth).as_posix())
        else:
            masks[mine] = (*masks.get(mine, ()), path)
    if strays:
        notes.append(f"{len(strays)} masks belong to no test image and are left out: {few(strays, _NAMED)}")
    return masks


def _without_mask(samples: Sequence[Sample]) -> list[str]:
    bare = [s.name for s in samples if s.defective and not s.masks]
    if not bare or not any(s.masks for s in samples):
        return []
    return [f"{len(bare)} defective images have no mask and are left out of the pixel metrics: {few(bare, _NAMED)}"]


def _unread(root: Path, kinds: Sequence[Path]) -> list[str]:
    """Images of the data set that lie where nothing reads them, a note for each folder."""
    names = {f.name.lower() for f in kinds if f not in _good_folders(root / "test")}
    good = _good_folders(root / "train")
    flat = [f for f in (root, root / "train", root / "test", root / "ground_truth") if f.is_dir()]
    whole = [f for f in _folders(root) if f.name not in ("train", "test", "ground_truth")]
    whole += [f for f in _folders(root / "train") if f not in good]
    whole += [f for f in _folders(root / "ground_truth") if f.name.lower() not in names]
    found = [(f, sorted(p for p in f.iterdir() if _is_image(p))) for f in flat]
    found += [(f, sorted(p for p in f.rglob("*") if _is_image(p))) for f in whole]
    return [
        f"{len(images)} images in {folder.relative_to(root).as_posix()} are not part of the layout and are left out: "
        f"{few([p.name for p in images], _NAMED)}"
        for folder, images in found
        if images
    ]


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.is_file() and may_be_image(path)


def _csv_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: not found; pairs needs a table {','.join(_PAIR_COLUMNS)}[,split]") from None
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path}: is not UTF-8 text ({e}); save it as CSV UTF-8") from e
    lines = text.splitlines()
    head = lines[0] if lines else ""
    delimiter = ";" if head.count(";") > head.count(",") else ","  # what Excel writes in half of Europe
    reader = csv.DictReader(lines, delimiter=delimiter)
    columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
    missing = [name for name in _PAIR_COLUMNS if name not in columns and name != "mask"]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)}; expected {','.join(_PAIR_COLUMNS)}[,split], found {head!r}"
        )
    reader.fieldnames = columns
    rows: list[tuple[int, dict[str, str]]] = []
    for row in reader:
        clean = {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
        if any(clean.values()):
            rows.append((reader.line_num, {"mask": "", **clean}))
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    return rows


def _label(text: str, where: str) -> str:
    """`good`, `defect`, or the name of a defect."""
    word = text.strip().lower()
    if word in _GOOD_WORDS or word in _BAD_WORDS:
        return "good" if word in _GOOD_WORDS else "defect"
    if not word or not any(c.isalpha() for c in word):
        raise InputError(f"{where}: label {text!r}; use 0 or good, 1 or bad, or the name of the defect")
    return word


def _same_content(first: Iterable[Path], second: Iterable[Path]) -> list[str]:
    """Names in `second` whose bytes are also in `first`; only files of equal length are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in first:
        by_size[path.stat().st_size].append(path)
    known: dict[int, set[bytes]] = {}
    found: list[str] = []
    for path in second:
        size = path.stat().st_size
        if size not in by_size:
            continue
        if size not in known:
            known[size] = {hashlib.sha256(p.read_bytes()).digest() for p in by_size[size]}
        if hashlib.sha256(path.read_bytes()).digest() in known[size]:
            found.append(path.name)
    return found


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()) if folder.is_dir() else []
    return few(names, 8) or "nothing"
