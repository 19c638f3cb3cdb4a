"""Photos from files, folders and uploads: found, checked and read; refusals are listed with the reason."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from refdiff.model.errors import ImageError
from refdiff.model.files import SHORTAGES, outage
from refdiff.model.images import check_bytes, may_be_image
from refdiff.model.settings import ModelSettings
from refdiff.model.wording import few


@dataclass(frozen=True)
class Upload:
    """A photo that arrived as bytes instead of as a file."""

    name: str  # as the sender called it; only ever shown, but that height maps and their photos are told by it
    data: bytes
    colour: bytes | None = None  # the colour photo that came with a height map, where it did

    @property
    def path(self) -> Path:
        """The name as a file name without folders, never empty."""
        last = self.name.replace("\\", "/").rpartition("/")[2].encode("utf-8", "replace").decode()
        return Path(storable(last)[:200].strip(". ") or "upload")


@dataclass(frozen=True)
class Refusal:
    """A file or folder that gave no new golden."""

    path: Path
    reason: str  # in words, for the person who enrols


def find_images(
    paths: Iterable[Path | Upload],
    refused: list[Refusal],
    others: list[Path] | None = None,
    *,
    links: bool = False,
    more: Collection[str] = (),
) -> Iterator[Path | Upload]:
    """The files named, and all images below the folders named, in sorted order.

    more: suffixes of files in folders that are tried besides images.
    Hidden files are skipped; links are followed only within the folder, with `links` also to files elsewhere. What is named
    and gives no file is added to `refused`; files in folders that are images neither by name nor by content to `others`.
    """
    others = [] if others is None else others
    for path in paths:
        if isinstance(path, Upload):
            yield path
        elif path.is_dir():
            before, found, passed = len(refused), 0, len(others)
            for file in _walk(path, refused, others, links, more):
                found += 1
                yield file
            if not found and len(refused) == before:
                there = others[passed:]
                reason = f": {left_out(there)}" if there else "; name the folder that holds the photos"
                refused.append(Refusal(path, f"no images in this folder{reason}"))
        elif not os.path.lexists(path):
            refused.append(Refusal(path, "no such file or folder"))
        else:
            yield path


def left_out(others: Sequence[Path]) -> str:
    """Files that are no images, counted and named for people, with the way out."""
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
    some = few(storable(path.name) for path in others)
    files = "1 file is" if len(others) == 1 else f"{len(others)} files are"
    return f"{files} not in an image format that can be read ({counted}: {some}); save photos as PNG or JPEG"


def _walk(
    folder: Path, refused: list[Refusal], others: list[Path], links: bool, more: Collection[str]
) -> Iterator[Path]:
    root = folder.resolve()

    def unreadable(error: OSError) -> None:
        refused.append(Refusal(Path(str(error.filename)), f"cannot be read ({error.strerror})"))

    for place, subfolders, names in os.walk(folder, onerror=unreadable):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        here = Path(place)
        # links to folders are not walked: inside the folder their images come anyway, outside is not what was named
        for name in subfolders:
            if (here / name).is_symlink() and not (here / name).resolve().is_relative_to(root):
                refused.append(Refusal(here / name, "links to a folder outside this one; name that folder directly"))
        for name in sorted(names):
            file = here / name
            if name.startswith("."):
                continue
            if file.suffix.lower() not in more and not may_be_image(file):
                others.append(file)
            elif not links and file.is_symlink() and not file.resolve().is_relative_to(root):
                refused.append(Refusal(file, "links to a file outside this folder; name that file directly"))
            else:
                yield file


def read_photo(path: Path | Upload, settings: ModelSettings) -> bytes:
    """The bytes of an image file, or of an upload, whose size its reader checks: of each part, where some were joined.

    Raises ImageError: absent, not a regular file, unreadable, over `settings.max_bytes`; UnavailableError where the machine
    has no file descriptor or memory left for it: nothing is wrong with the photo then.
    """
    if isinstance(path, Upload):
        return path.data
    name = storable(str(path))
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if stat.S_ISDIR(about.st_mode):
                raise ImageError(f"{name}: is a folder, not an image file")
            if not stat.S_ISREG(about.st_mode):
                raise ImageError(f"{name}: is not a regular file; copy the photo to a file first")
            check_bytes(about.st_size, name, settings)
            return file.read()
    except FileNotFoundError as e:
        raise ImageError(f"{name}: no such file") from e
    except IsADirectoryError as e:
        raise ImageError(f"{name}: is a folder, not an image file") from e
    except (OSError, ValueError) as e:
        if isinstance(e, OSError) and e.errno in SHORTAGES and (lacking := outage(e)) is not None:
            raise lacking from e
        raise ImageError(f"{name}: cannot be read ({getattr(e, 'strerror', None) or e})") from e


def _open_at_once(path: str, flags: int) -> int:
    # without O_NONBLOCK, opening a pipe that has no writer would wait for one
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def storable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 become U+FFFD, control characters become blanks."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)


def without_file_name(message: str, path: Path) -> str:
    """`message` without the file name it begins with, for lists that name the file anyway."""
    for name in (storable(str(path)), storable(path.name), path.name):
        message = message.removeprefix(f"{name}: ")
    return message
