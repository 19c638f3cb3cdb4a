"""Which colour photo belongs to which height map, by their names: of products that state that each has one.

`part.tiff` and `part.png` are a pair (the TIFF, else the PNG, is the height map); so are files of one name in a folder and
in the folder `rgb` beside it, as data sets lay them out (`xyz/000.tiff` and `rgb/000.png`).
"""

from __future__ import annotations

import contextlib
import stat
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath

from refdiff.model.errors import ImageError
from refdiff.model.height.colour_file import split_colour
from refdiff.model.images import image_suffixes
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.photos import Refusal, Upload, read_photo, storable

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


def is_photo_of(pair: Upload, before: bytes) -> bool:
    """Whether a height map has the very colour photo of another one, `before` (both as one file): no camera takes the same
    photo twice, so it stayed there, and its own is not there yet."""
    height, photo = split_colour(before)
    return photo is not None and photo == pair.colour and height != pair.data


def _check_its_own(height: Path, photo: Path) -> None:
    """Raises ImageError where a photo of the folder `rgb` may as well be that of a height map in another folder."""
    for folder in _folders_of_heights(photo.parent) if photo.parent.name == COLOUR_FOLDER else ():
        if folder != height.parent and _named(folder, height.stem, _HEIGHTS):
            raise ImageError(
                f"{storable(height.name)}: {COLOUR_FOLDER}/{storable(photo.name)} may be its colour photo or that of "
                f"{storable(folder.name)}/{storable(height.stem)}; give each folder of height maps its own, or name it: "
                "--colour FILE"
            )


def height_maps(
    files: Iterable[Path | Upload], refused: list[Refusal], folders: Collection[Path] = ()
) -> list[Path | Upload]:
    """Of files that arrive together those that are height maps; uploads with their photos, where it is clear which these
    are. Files on the disk get theirs when they are read.

    Photos in a folder `rgb` that belong to no height map are added to `refused`: those among the files, and where height
    maps come from one of `folders` (all that are in it), those in the folder beside that.
    """
    every = list(files)
    names = [file if isinstance(file, Path) else PurePath(file.name) for file in every]
    uploads = {n: f for n, f in zip(names, every, strict=True) if isinstance(f, Upload)}
    photos, often = _photos(names), Counter(names)
    claimed = Counter(p for those in photos.values() for p in those)
    found: list[Path | Upload] = []
    alone: list[Path] = []
    for name, file in zip(names, every, strict=True):
        if name in claimed:
            continue
        sent_with = file.colour if isinstance(file, Upload) else None
        if name.parent.name == COLOUR_FOLDER and sent_with is None:
            alone.append(file.path if isinstance(file, Upload) else file)
            continue
        those = photos.get(name, [])
        clear = len(those) == 1 and often[name] == often[those[0]] == claimed[those[0]] == 1 and those[0] in uploads
        if isinstance(file, Upload) and sent_with is None and clear:
            file = replace(file, colour=uploads[those[0]].data)
        found.append(file)
    here = {file.absolute() for file in every if isinstance(file, Path)}
    whole = {folder.absolute() for folder in folders}
    beside = {h.absolute().parent.parent / COLOUR_FOLDER for h in found if isinstance(h, Path) and not photos.get(h)
              and h.absolute().parent in whole}  # fmt: skip
    alone += [photo for folder in sorted(beside) for photo in _alone(folder) if photo not in here]
    why = f"a colour photo (folder {COLOUR_FOLDER}) without a height map of its name; add that, or remove it"
    refused += [Refusal(photo, why) for photo in alone]
    return found


def _alone(folder: Path) -> Iterator[Path]:
    """The photos in a folder `rgb` that belong to no height map in the folders beside it."""
    with contextlib.suppress(OSError):
        photos = sorted(p for p in folder.iterdir() if p.suffix.lower() in image_suffixes() and p.name[0] != ".")
        heights = _folders_of_heights(folder)
        yield from (p for p in photos if not any(_named(beside, p.stem, _HEIGHTS) for beside in heights))


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
        for path in _named(folder, height.stem, image_suffixes()):
            if not (height.exists() and path.samefile(height)):
                yield path


def _folders_of_heights(photos: Path) -> list[Path]:
    """The folders beside a folder `rgb`, which may hold its height maps."""
    with contextlib.suppress(OSError):
        return [folder for folder in photos.parent.iterdir() if folder != photos and folder.is_dir()]
    return []


def _named(folder: Path, stem: str, suffixes: Iterable[str]) -> list[Path]:
    """The files of a name in a folder, by their suffixes in small or capital letters: asked for one by one, since a folder
    that is listed for each of its files takes as long as all of them squared."""
    found: dict[tuple[int, int], Path] = {}  # each once, where capital and small letters are the same
    for suffix in suffixes:
        for written in (suffix, suffix.upper(), f".{suffix[1:].capitalize()}"):
            path = folder / f"{stem}{written}"
            with contextlib.suppress(OSError, ValueError):
                about = path.stat()
                if stat.S_ISREG(about.st_mode):
                    found.setdefault((about.st_dev, about.st_ino), path)
    return [*found.values()]
