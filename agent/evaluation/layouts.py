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

Format = Literal["mvtec", "pairs", "deeppcb"]
FORMATS: tuple[Format, ...] = ("mvtec", "pairs", "deeppcb")
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
DEEPPCB_MM_PER_PX = 1 / 48  # "around 48 pixels per 1 millimetre", its readme

_GOOD_WORDS = frozenset({"0", "good", "ok", "pass", "normal", "false", "no", "no defect", "defect-free"})
_BAD_WORDS = frozenset({"1", "bad", "ng", "nok", "fail", "defect", "defective", "anomaly", "anomalous", "true", "yes"})
_PAIR_COLUMNS = ("reference", "query", "label", "mask")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One image to judge. `name` is its path below the data folder (POSIX), `id` names its detections file."""

    path: Path
    name: str
    id: str
    defective: bool
    kind: str
    mask: Path | None = None
    boxes: tuple[LabelledBox, ...] | None = None
    reference: Path | None = None

    @property
    def label(self) -> int:
        return int(self.defective)


@dataclass(frozen=True)
class DataSet:
    """What a layout holds. `train`: good images to enrol (mvtec); `calibrate`: good pairs set apart (pairs).

    notes: what the reader passed over or changed, for people. has_masks: pixel metrics apply.
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
        object.__setattr__(self, "has_masks", any(sample.mask for sample in self.test))


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
        "mvtec": (root / "train" / "good").is_dir(),
        "pairs": (root / "pairs.csv").is_file(),
        "deeppcb": (root / "PCBData").is_dir(),
    }
    found = [name for name, there in signs.items() if there]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{root} looks like {' and '.join(found)}; say which with --format")
    inside = sorted(p.name for p in root.iterdir() if p.is_dir() and (p / "train" / "good").is_dir())
    hint = f"; it holds data sets ({_few(inside)}): evaluate one of those" if inside else ""
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
    """`train/good/*`, `test/<good|defect>/*`, `ground_truth/<defect>/<stem>_mask.png` (or `<stem>.png`)."""
    notes: list[str] = []
    train = _images(root / "train" / "good", notes)
    if not train:
        raise InputError(f"{root}: no images in train/good; mvtec needs good samples there; found {_listing(root)}")
    if not (root / "test").is_dir():
        raise InputError(f"{root}: no folder test; mvtec needs test/good and test/<defect>; found {_listing(root)}")
    samples: list[Sample] = []
    for folder in sorted(p for p in (root / "test").iterdir() if p.is_dir() and not p.name.startswith(".")):
        masks = _masks(root / "ground_truth" / folder.name) if folder.name != "good" else {}
        for path in _images(folder, notes):
            name = path.relative_to(root).as_posix()
            samples.append(
                Sample(
                    path=path,
                    name=name,
                    id=f"{folder.name}_{path.stem}",
                    defective=folder.name != "good",
                    kind=folder.name,
                    mask=masks.get(path.stem),
                )
            )
    if not samples:
        raise InputError(f"{root}: no images in test/<good|defect>/; found {_listing(root / 'test')}")
    bare = sum(s.defective and s.mask is None for s in samples)
    if bare and any(s.mask for s in samples):
        notes.append(f"{bare} defective images have no mask and are left out of the pixel metrics")
    leaks = _same_content(train, [s.path for s in samples])
    if leaks:
        notes.append(f"{len(leaks)} test images are also in train/good (same bytes): {_few(leaks)}")
    return DataSet(
        name=root.resolve().name,
        format="mvtec",
        root=root,
        train=tuple(train),
        test=tuple(samples),
        notes=tuple(notes),
    )


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
            mask=file_below(root, row["mask"], "mask", where) if row["mask"] else None,
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
        notes.append(f"labels read as names of defects: {_few(sorted(named))}")
    leaks = _same_content([s.path for s in calibrate], [s.path for s in test])
    if leaks:
        raise InputError(f"{root / 'pairs.csv'}: to calibrate and to test (same bytes): {_few(leaks)}; keep one")
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
            raise InputError(f"{base}: splits found: {_few(splits) or 'none'}; say which with --split")
        split = "test" if "test" in splits else splits[0]
    if split not in splits:
        raise InputError(f"--split {split}: no {base / split}.txt; splits found: {_few(splits) or 'none'}")
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


def _images(folder: Path, notes: list[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    images = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    if len(images) < len(files):
        others = [p.name for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
        notes.append(f"{folder.name}: skipped {len(others)} files that are not images: {_few(others)}")
    return images


def _masks(folder: Path) -> dict[str, Path]:
    """Stem of the image -> its mask."""
    masks: dict[str, Path] = {}
    for path in _images(folder, []):
        masks.setdefault(path.stem.removesuffix("_mask"), path)
    return masks


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


def _few(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _listing(folder: Path) -> str:
    names = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()) if folder.is_dir() else []
    return _few(names, 8) or "nothing"
