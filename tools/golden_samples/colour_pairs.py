"""Which colour photo belongs to which height map, by their names: of products that state that each has one.

`part.tiff` and `part.png` are a pair (the TIFF, else the PNG, is the height map); so are files of one name in a folder and
in the folder `rgb` beside it, as data sets lay them out (`xyz/000.tiff` and `rgb/000.png`).
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from refdiff.model.errors import ImageError
from refdiff.model.images import image_suffixes
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.photos import Upload, read_photo, storable

COLOUR_FOLDER = "rgb"
_HEIGHTS = (".tiff", ".tif", ".png")  # of two files of one name, the first of these is the height map


def with_its_photo(height: Path | Upload, settings: ModelSettings, colour: Path | None = None) -> Upload:
    """A height map with its colour photo: `colour`, else what came with it or lies beside it; without one where there is
    none. Raises as `read_photo`, and ImageError where several files may be its photo."""
    if isinstance(height, Upload):
        return height
    height = height.absolute()
    photos = [colour] if colour else _photos([height, *_of_its_name(height)]).get(height, [])
    if photos and not colour:
        _check_its_own(height, Path(photos[0]))
    if len(photos) > 1:
        names = ", ".join(storable(str(Path(*p.parts[-2:]))) for p in photos)
        raise ImageError(f"{storable(height.name)}: several files may be its colour photo ({names}); leave one of them")
    photo = read_photo(Path(photos[0]), settings) if photos else None
    return Upload(height.name, read_photo(height, settings), photo)


def _check_its_own(height: Path, photo: Path) -> None:
    """Raises ImageError where a photo of the folder `rgb` may as well be that of a height map in another folder."""
    if photo.parent.name != COLOUR_FOLDER:
        return
    with contextlib.suppress(OSError):
        for folder in photo.parent.parent.iterdir():
            others = (folder / f"{height.stem}{suffix}" for suffix in _HEIGHTS)
            if folder not in (height.parent, photo.parent) and any(other.is_file() for other in others):
                raise ImageError(
                    f"{storable(height.name)}: {COLOUR_FOLDER}/{storable(photo.name)} may be its colour photo or that of "
                    f"{storable(folder.name)}/{storable(height.stem)}; give each folder of height maps its own, or name it: "
                    "--colour FILE"
                )


def height_maps(files: Iterable[Path | Upload]) -> list[Path | Upload]:
    """Of files that arrive together those that are height maps; uploads with their photos, where it is clear which these
    are. Files on the disk get theirs when they are read."""
    every = list(files)
    names = [file if isinstance(file, Path) else PurePath(file.name) for file in every]
    uploads = {n: f for n, f in zip(names, every, strict=True) if isinstance(f, Upload)}
    photos, often = _photos(names), Counter(names)
    claimed = Counter(p for those in photos.values() for p in those)
    found: list[Path | Upload] = []
    for name, file in zip(names, every, strict=True):
        if name in claimed:
            continue
        those = photos.get(name, [])
        clear = len(those) == 1 and often[name] == often[those[0]] == claimed[those[0]] == 1 and those[0] in uploads
        if isinstance(file, Upload) and file.colour is None and clear:
            file = replace(file, colour=uploads[those[0]].data)
        found.append(file)
    return found


def _photos(names: Iterable[PurePath]) -> dict[PurePath, list[PurePath]]:
    """Height map -> the files that may be its colour photo."""
    named: dict[str, dict[PurePath, list[PurePath]]] = defaultdict(lambda: defaultdict(list))
    for name in {*names}:
        named[name.stem][name.parent].append(name)
    found = {}
    for folders in named.values():
        for folder, files in folders.items():
            if folder.name != COLOUR_FOLDER:
                height, *beside = sorted(files, key=_likelihood)
                found[height] = beside + sorted(folders.get(folder.parent / COLOUR_FOLDER, []))
    return found


def _likelihood(name: PurePath) -> tuple[int, str]:
    """Sorts what is rather a height map first."""
    suffix = name.suffix.lower()
    return (_HEIGHTS.index(suffix) if suffix in _HEIGHTS else len(_HEIGHTS)), str(name)


def _of_its_name(height: Path) -> Iterator[Path]:
    for folder in (height.parent, height.parent.parent / COLOUR_FOLDER):
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                if path.stem == height.stem and path != height and path.suffix.lower() in image_suffixes():
                    yield path
