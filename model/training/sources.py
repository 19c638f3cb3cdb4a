"""The photos that networks are trained and measured on: public research sets.

Every listing knows which physical thing a photo shows (`group`), and half of every public set is *held out* by a hash of
that group: recipes never see it, benchmarks use nothing else. (DeepPCB has a test split of its own instead.) Some products
are held out whole: they are the unseen test.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from refdiff.model.boards.deeppcb import read_split
from refdiff.model.defect_types import DefectType
from refdiff.model.errors import ImageError, InputError
from refdiff.model.images import decode_image
from refdiff.model.progress import Progress, silent
from refdiff.model.training.pairs import Photo, Source, file_at_fault, read_mask

UNSEEN = ("piped_brg01_rl", "piped_btn01_rl")  # never trained on
_HELD_OUT = 0.5
_IMPURITY = "impurity"
_SAME_TILE = 200  # photos of one tile are at most so far apart in number (most 10 to 40; tiles lie hundreds apart)
_TILE_TYPES: Mapping[str, DefectType] = {
    "blowhole": "hole",
    "break": "chip",
    "crack": "crack",
    "fray": "texture_change",
    "uneven": "discoloration",
}
_TRUTH_FOLDERS = ("GroundTruth", "GroundThruth")  # the data set spells it both ways


@dataclass(frozen=True)
class Listed:
    """One image of a public set."""

    path: Path
    kind: str  # "good" or the data set's name of the defect
    group: str  # one physical thing
    mask: Path | None = None
    mask_inverted: bool = False


def held_out(product: str, group: str) -> bool:
    """Is this thing kept for measuring? Stable across machines; whole groups go to one side."""
    if product in UNSEEN:
        return True
    digest = hashlib.sha256(f"{product}/{group}".encode()).digest()
    return digest[0] < 256 * _HELD_OUT


def kept_for_tests(product: str, image: Listed) -> bool:
    """Is this image held out? All impurities of the papers are: each of their few sheets is on several patches."""
    return image.kind == _IMPURITY or held_out(product, image.group)


def list_elpv(kind: str = "mono") -> list[Listed]:
    """Solar cells with defect probability 0 (good) or 1. Raises InputError where the package is not installed."""
    spec = find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise InputError("the images of package elpv-dataset (92 MB) are not installed; pip install 'refdiff[demo]'")
    data = Path(spec.origin).parent / "data"
    found = []
    for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines():
        name, probability, cell = line.split()
        if cell == kind and float(probability) in (0.0, 1.0):
            found.append(Listed(data / name, "good" if float(probability) == 0.0 else "defect", name))
    return found


def list_aliens(data: Path) -> list[Listed]:
    root = _folder(data, "aliens", "normal/ and anomaly/")
    found = [Listed(p, "good", p.stem) for p in sorted((root / "normal").glob("*.png"))]
    return found + [Listed(p, "defect", p.stem) for p in sorted((root / "anomaly").glob("*.png"))]


def list_magnetic_tile(data: Path) -> list[Listed]:
    """Tiles. A group holds the photos of one tile: it was taken several times in a row, and its photos have near numbers."""
    root = _folder(data, "magnetic_tile", "MT_Free/Imgs, MT_Crack/Imgs, ...")
    photos = []
    for folder in sorted(root.glob("MT_*")):
        kind = "good" if folder.name == "MT_Free" else folder.name.removeprefix("MT_").lower()
        photos += [(path, kind) for path in sorted((folder / "Imgs").glob("*.jpg"))]
    tiles = tiles_of([path for path, _ in photos])
    found = []
    for path, kind in photos:
        mask = path.with_suffix(".png")
        marked = kind != "good" and mask.is_file() and bool(defect_pixels(mask, False).any())
        found.append(Listed(path, kind, tiles[path], mask if marked else None))
    return found


def tiles_of(photos: Sequence[Path]) -> dict[Path, str]:
    """Which tile each photo of magnetic tile shows. photos: all that there are."""
    numbers = {path: _number(path) for path in photos}
    tiles: dict[int | None, str] = {}
    known = sorted(n for n in numbers.values() if n is not None)
    for before, number in zip([None, *known], known, strict=False):
        same = before is not None and number - before < _SAME_TILE
        tiles[number] = tiles[before] if same else str(number)
    return {path: tiles.get(number, path.stem) for path, number in numbers.items()}


def _number(path: Path) -> int | None:
    """`exp1_num_461.jpg` is photo 461."""
    found = re.search(r"num_(\d+)", path.stem)
    return int(found.group(1)) if found else None


def list_piped(data: Path) -> dict[str, list[Listed]]:
    """Six papers, each a product of its own; patches of one sheet are one group."""
    root = _folder(data, "piped/data", "PA_*/NoDefects and PA_*/Defects")
    products: dict[str, list[Listed]] = {}
    for folder in sorted(root.glob("PA_*")):
        found = [Listed(p, "good", _sheet(p)) for p in sorted((folder / "NoDefects").glob("*.bmp"))]
        truth = next((folder / "Defects" / n for n in _TRUTH_FOLDERS if (folder / "Defects" / n).is_dir()), None)
        for path in sorted((folder / "Defects").glob("*.bmp")):
            mask = truth / path.name.replace("_S_D_", "_S_GT_") if truth else None
            there = mask is not None and mask.is_file()
            found.append(Listed(path, _IMPURITY, _sheet(path), mask if there else None, mask_inverted=True))
        products[f"piped_{folder.name.removeprefix('PA_').lower()}"] = found
    return products


def defect_pixels(mask: Path, inverted: bool) -> np.ndarray:
    """(H, W) bool of a mask file."""
    from PIL import Image

    with Image.open(mask) as opened:
        bright = np.asarray(opened.convert("L")) >= 128
    return ~bright if inverted else bright


def deeppcb_groups(data: Path) -> dict[str, Source]:
    """Boards of the train/val split by board group. Raises InputError."""
    root = _folder(data, "deeppcb/PCBData", "trainval.txt and group*/")
    groups: dict[str, tuple[list[Photo], list[Photo]]] = {}
    for pair in read_split(root, "trainval"):
        boxes = tuple((b.x0, b.y0, b.x1, b.y1, b.type) for b in pair.boxes)
        good, bad = groups.setdefault(pair.group, ([], []))
        good.append(Photo(pair.template, partner=pair.template))
        bad.append(Photo(pair.tested, True, partner=pair.template, boxes=boxes))
    licence = "MIT file; read me: research only"
    return {
        name: Source(f"deeppcb_{name}", tuple(good), tuple(bad), licence, pixels_count=True)
        for name, (good, bad) in sorted(groups.items())
    }


def research_sources(data: Path) -> list[Source]:
    """Training halves of the public sets: elpv, aliens, magnetic tile, PIPED (four papers), DeepPCB train/val."""
    listed: list[tuple[str, list[Listed], str, bool, float]] = [
        ("elpv_mono", list_elpv("mono"), "CC BY-NC-SA 4.0", False, 2.0),
        ("elpv_poly", list_elpv("poly"), "CC BY-NC-SA 4.0", False, 2.0),
        ("aliens", list_aliens(data), "CC BY-SA 4.0", False, 0.8),
        ("magnetic_tile", list_magnetic_tile(data), "research use, cite Huang et al. 2018", True, 2.5),
    ]
    listed += [(name, images, "CC BY 4.0", True, 0.6) for name, images in list_piped(data).items()]
    sources = []
    for name, images, licence, textured, weight in listed:
        mine = [i for i in images if not kept_for_tests(name, i)]
        good = tuple(Photo(i.path) for i in mine if i.kind == "good")
        bad = tuple(
            Photo(i.path, True, (i.mask,) if i.mask else (), i.mask_inverted, _TILE_TYPES.get(i.kind, "contamination"))
            for i in mine
            if i.kind != "good"
        )
        if len(good) >= 2:
            sources.append(Source(name, good, bad, licence, textured=textured, weight=weight))
    boards = list(deeppcb_groups(data).values())
    return sources + [Source(**(vars(b) | {"weight": 2.0 / len(boards)})) for b in boards]


def usable(sources: Sequence[Source], progress: Progress = silent) -> tuple[list[Source], dict[str, list[str]]]:
    """The sources without the photos that cannot be used, and those: why -> photos, masks and sources, in words.

    Reads every photo once. Left out are photos and masks that cannot be read, masks that mark nothing, photos whose own
    reference is left out, and sources with fewer than two good photos. Raises InputError where no source is left.
    """
    left_out: dict[str, list[str]] = defaultdict(list)
    kept, done, total = [], 0, sum(len(s.good) + len(s.bad) for s in sources)

    def fine(photo: Photo) -> bool:
        nonlocal done
        done += 1
        progress("reading photos", done, total)
        if (problem := _problem(photo)) is None:
            return True
        file, why = problem
        left_out[why].append(str(file))
        return False

    for source in sources:
        good, bad = [p for p in source.good if fine(p)], [p for p in source.bad if fine(p)]
        lost = {p.path for p in source.good} - {p.path for p in good}
        left_out["its reference cannot be read"] += [str(p.path) for p in bad if p.partner in lost]
        bad = [p for p in bad if p.partner not in lost]
        if len(good) >= (1 if any(p.partner for p in good) else 2):
            kept.append(replace(source, good=tuple(good), bad=tuple(bad)))
        else:
            left_out["fewer than 2 good photos could be used"].append(f"{source.name} ({len(good)})")
    found = {why: sorted(names) for why, names in sorted(left_out.items()) if names}
    if sources and not kept:
        why = "; ".join(f"{names[0]}: {reason}" for reason, names in found.items())
        raise InputError(f"none of the photos can be trained on ({why}); save them as PNG or JPEG")
    return kept, found


def _problem(photo: Photo) -> tuple[Path, str] | None:
    """The file of a photo that cannot be used, and why; None if all of it can."""
    try:
        image = decode_image(photo.path.read_bytes(), name=str(photo.path))
        if photo.masks:
            read_mask(photo, image.shape[:2])
    except ImageError as e:
        file = file_at_fault(photo, e)
        return file, str(e).removeprefix(f"{file}: ")
    except OSError as e:
        return photo.path, f"cannot be read ({e.strerror})"
    return None


def _sheet(path: Path) -> str:
    """`PA_BRG01_RL_S_ND_10_2.bmp` is patch 2 of sheet 10; those with impurities (`S_D`) are other sheets."""
    found = re.search(r"_(N?D)_(\d+)_\d+$", path.stem)
    return f"{'' if found.group(1) == 'ND' else 'D'}{found.group(2)}" if found else path.stem


def _folder(data: Path, name: str, expected: str) -> Path:
    if not (data / name).is_dir():
        raise InputError(f"{data}: no folder {name} (with {expected})")
    return data / name
