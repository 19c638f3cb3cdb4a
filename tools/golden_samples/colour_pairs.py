"""Which colour photo belongs to which height map, by their names: of products that state that each has one.

`part.tiff` and `part.png` are a pair (the TIFF, else the PNG, is the height map); so are files of one name in a folder and
in the folder `rgb` beside it, as data sets lay them out (`xyz/000.tiff` and `rgb/000.png`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from refdiff.model.images import image_suffixes
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.photos import Upload, read_photo

COLOUR_FOLDER = "rgb"
_HEIGHTS = (".tiff", ".tif", ".png")  # of two files of one name, the first of these is the height map


def with_its_photo(height: Path | Upload, settings: ModelSettings, colour: Path | None = None) -> Upload:
    """A height map with its colour photo: `colour`, else what came with it or lies beside it; without one where there is
    none. Raises as `read_photo`."""
    if isinstance(height, Upload):
        return height
    height = height.absolute()
    photo = colour or _pairs([height, *_of_its_name(height)]).get(height)
    return Upload(height.name, read_photo(height, settings), None if photo is None else read_photo(photo, settings))


def height_maps(files: Iterable[Path | Upload]) -> list[Path | Upload]:
    """Of files that arrive together those that are height maps; uploads with their photos."""
    every = list(files)
    names = [file if isinstance(file, Path) else PurePath(file.name) for file in every]
    pairs, uploads = _pairs(names), {n: f for n, f in zip(names, every, strict=True) if isinstance(f, Upload)}
    photos, found = {*pairs.values()}, []
    for name, file in zip(names, every, strict=True):
        if name in photos:
            continue
        photo = uploads.get(pairs[name]) if name in pairs else None
        found.append(replace(file, colour=photo.data) if isinstance(file, Upload) and photo is not None else file)
    return found


def _pairs(names: Iterable[PurePath]) -> dict[PurePath, PurePath]:
    """Height map -> its colour photo."""
    found: dict[PurePath, PurePath] = {}
    known = sorted({*names}, key=_likelihood)
    for i, height in enumerate(known):
        for photo in known[i + 1 :] if height.parent.name != COLOUR_FOLDER else ():
            if photo.stem == height.stem and height not in found and photo not in found.values():
                beside = photo.parent == height.parent and photo.suffix.lower() != height.suffix.lower()
                if beside or photo.parent == height.parent.parent / COLOUR_FOLDER:
                    found[height] = photo
    return {height: photo for height, photo in found.items() if height not in found.values()}


def _likelihood(name: PurePath) -> tuple[bool, int, str]:
    """Sorts what is rather a height map first."""
    suffix = name.suffix.lower()
    rank = _HEIGHTS.index(suffix) if suffix in _HEIGHTS else len(_HEIGHTS)
    return name.parent.name == COLOUR_FOLDER, rank, str(name)


def _of_its_name(height: Path) -> Iterator[Path]:
    for folder in (height.parent, height.parent.parent / COLOUR_FOLDER):
        if folder.is_dir():
            for path in folder.iterdir():
                if path.stem == height.stem and path != height and path.suffix.lower() in image_suffixes():
                    yield path
