"""The DeepPCB layout (Tang et al. 2019): `PCBData/<split>.txt`, templates, test images, boxes. Reads lists, no pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refdiff.model.defect_types import BOARD_TYPES
from refdiff.model.errors import InputError


@dataclass(frozen=True)
class LabelledBox:
    """A true defect: x0, y0, x1, y1 in px of the image, and its type."""

    x0: int
    y0: int
    x1: int
    y1: int
    type: str


@dataclass(frozen=True)
class BoardPair:
    """id: of the test image. group: of the board. boxes: empty for a good one."""

    id: str
    group: str
    tested: Path
    template: Path
    boxes: tuple[LabelledBox, ...]


def read_split(base: Path, split: str) -> list[BoardPair]:
    """Pairs of `base/<split>.txt`, lines `group/ID/NAME.jpg group/ID_not/NAME.txt`; the images are NAME_temp.jpg and
    NAME_test.jpg. Raises InputError naming file and line."""
    listing = base / f"{split}.txt"
    pairs = []
    for line, text in enumerate(_lines(listing), start=1):
        if not text.strip():
            continue
        where, parts = f"{listing} line {line}", text.split()
        if len(parts) != 2:
            raise InputError(f"{where}: {text!r}; expected 'group/ID/NAME.jpg group/ID_not/NAME.txt'")
        stem = parts[0].rsplit(".", 1)[0]
        tested = file_below(base, f"{stem}_test.jpg", "test image", where)
        boxes = _boxes(file_below(base, parts[1], "annotation", where))
        template = file_below(base, f"{stem}_temp.jpg", "template", where)
        pairs.append(BoardPair(Path(stem).name, Path(stem).parts[0], tested, template, boxes))
    if not pairs:
        raise InputError(f"{listing}: no lines; expected 'group/ID/NAME.jpg group/ID_not/NAME.txt'")
    return pairs


def file_below(root: Path, text: str, role: str, where: str) -> Path:
    """The file that a listing names. Raises InputError saying where it was named."""
    path = root / text.replace("\\", "/")
    if not text or not path.is_file():
        raise InputError(f"{where}: {role} {text!r} is no file below {root}")
    return path


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e


def _boxes(path: Path) -> tuple[LabelledBox, ...]:
    boxes: list[LabelledBox] = []
    for line, text in enumerate(_lines(path), start=1):
        fields = text.replace(",", " ").split()
        if not fields:
            continue
        try:
            x0, y0, x1, y1, kind = (int(f) for f in fields)
        except ValueError:
            raise InputError(f"{path} line {line}: {text!r}; expected x1 y1 x2 y2 type") from None
        if not 1 <= kind <= len(BOARD_TYPES):
            raise InputError(f"{path} line {line}: type {kind}; expected 1 to {len(BOARD_TYPES)}")
        boxes.append(LabelledBox(x0, y0, x1, y1, BOARD_TYPES[kind - 1]))
    return tuple(boxes)
