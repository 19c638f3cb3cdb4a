"""Photos from files into the stores: good samples into the golden bank, and the photo of one part as its capture.

What is refused is refused with the reason; what looks odd is flagged for a person, never dropped. The image store comes
first and the bank second, so that a golden in the bank always has its photo, whenever the process dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE, Golden, GoldenSource, make_golden_id
from refdiff.memory.records.captures import Capture, normalise_part_id
from refdiff.memory.records.products import check_product_name, check_scale
from refdiff.memory.stores import Stores
from refdiff.model.errors import (
    ImageError,
    InputError,
    RefDiffError,
    StorageError,
    UnknownRecordError,
)
from refdiff.model.images import RgbImage, decode_image, measure_window
from refdiff.model.settings import ModelSettings

if TYPE_CHECKING:  # torch loads in seconds, and a capture needs none
    from refdiff.tools.workspace import Workspace

Progress = Callable[[int, int], None]  # done, total

# the formats that cameras and people send; a file named explicitly is tried whatever its name
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".jp2", ".pgm", ".ppm"})

_THUMB_PX = 64
_SAME_PART_GREY = 0.5  # mean absolute difference of thumbnails, in grey levels of 0..255
_MIN_TO_FLAG = 8
_ODD_Z = 3.5  # Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993
_LEAST_SPREAD = 0.01  # of similarities: near-identical goldens would else make every ordinary one an outlier
_COMPARED_OTHERS = 256  # earlier goldens scored besides the new ones: enough for a median, flat in time

Thumbnail = NDArray[np.float32]  # (64, 64), 0..255


@dataclass(frozen=True)
class Upload:
    """A photo that arrived as bytes instead of as a file; `name` is only ever shown."""

    name: str
    data: bytes

    @property
    def path(self) -> Path:
        last = self.name.replace("\\", "/").rpartition("/")[2].encode("utf-8", "replace").decode()
        return Path(_storable(last)[:200].strip(". ") or "upload")


@dataclass(frozen=True)
class Refusal:
    """A file or folder that gave no new golden, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class EnrollResult:
    """What became of the files.

    added: new in the bank. already_there: the same bytes were enrolled before. refused: cannot be read, or cannot be a
    golden. flagged: in the bank, and a person should look. n_in_bank: goldens of the product afterwards, any status.
    """

    product: str
    added: list[Golden] = field(default_factory=list)
    already_there: list[Refusal] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    flagged: list[Golden] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_in_bank: int = 0


def enroll(
    workspace: Workspace,
    product: str,
    paths: Sequence[Path | Upload],
    *,
    scale_mm_per_px: float | None = None,
    part_group: str | None = None,
    station: str | None = None,
    enrolled_by: str = "",
    golden_source: GoldenSource = "enrolled",
    progress: Progress | None = None,
) -> EnrollResult:
    """Enrol image files, all images in folders below, and uploads as goldens of a product. Idempotent by content.

    part_group: all these photos show one part; without it, photos with nearly the same pixels are grouped, because
    calibration counts parts. golden_source: where the photos come from. progress: called with (files done, files in all).
    Raises InputError (product name, scale, group); StorageError, BankBusyError, UnavailableError where the stores fail:
    what was added before that stays, and the same call again goes on from there.
    """
    product, scale = check_product_name(product), check_scale(scale_mm_per_px)
    group = _check_label("part group", part_group)
    station = _check_label("station", station)
    result = EnrollResult(product)
    from refdiff.tools.inspection.calibration import group_of

    files = list(find_images(paths, result.refused))
    thumbnails: _Thumbnails | None = None
    for done, source in enumerate(files):
        path = source.path if isinstance(source, Upload) else source
        try:
            data = read_photo(source, workspace.model_settings)
            known = _enrolled(workspace, product, data)
            if known is not None:
                result.already_there.append(Refusal(path, _present(known)))
                continue
            image = _decode_golden(workspace, product, data, path.name)
            thumbnails = thumbnails or _Thumbnails(workspace, product)
            thumbnail = make_thumbnail(image)
            twin = thumbnails.twin(thumbnail)
            if twin is not None:
                result.notes.append(_twin_note(path, twin, group))
            sha256 = workspace.stores.images.put(data)
            golden = Golden(
                make_golden_id(product, sha256),
                product,
                sha256,
                filename=_storable(path.name),
                scale_mm_per_px=scale,
                part_group=group or (group_of(twin) if twin else None),
                station=station,
                enrolled_by=enrolled_by,
                source=golden_source,
            )
            features = workspace.golden_features(golden)
            if workspace.bank.add(golden, features.global_vec, features.patches):
                result.added.append(golden)
                thumbnails.keep(golden, thumbnail)
            else:  # on a server, somebody else enrolled it just now
                result.already_there.append(Refusal(path, _present(golden)))
        except StorageError as e:
            raise StorageError(
                f"{e} ({len(result.added)} photos were enrolled before; the same command goes on)"
            ) from e
        except InputError as e:
            result.refused.append(Refusal(path, _without_name(str(e), path)))
        finally:
            if progress:
                progress(done + 1, len(files))
    if result.added:
        result.flagged.extend(flag_odd(workspace, product, [g.golden_id for g in result.added]))
    return EnrollResult(**{**vars(result), "n_in_bank": workspace.bank.count(product)})


def record_capture(
    stores: Stores,
    part_id: str,
    product: str,
    photo: Path | Upload,
    *,
    scale_mm_per_px: float | None = None,
    settings: ModelSettings | None = None,
) -> Capture:
    """Keep the photo of one part as its newest capture. Raises InputError, ImageError, StorageError."""
    settings = settings or ModelSettings()
    part_id, product = normalise_part_id(part_id), check_product_name(product)
    scale = check_scale(scale_mm_per_px)
    name = _storable((photo.path if isinstance(photo, Upload) else photo).name)
    data = read_photo(photo, settings)
    known = stores.products.get(product)
    window = known.intensity_window if known else None
    decode_image(data, name=name, window=window, settings=settings)  # only what can be inspected is kept
    return stores.captures.add(part_id, product, stores.images.put(data), scale, name)


# ---- files ----


def find_images(paths: Iterable[Path | Upload], refused: list[Refusal]) -> Iterator[Path | Upload]:
    """Files as named, then in folders all images below, sorted; no hidden files; links only within the folder.

    What is named and gives no file is added to `refused`.
    """
    for path in paths:
        if isinstance(path, Upload):
            yield path
        elif path.is_dir():
            before, found = len(refused), 0
            for file in _walk(path, refused):
                found += 1
                yield file
            if not found and len(refused) == before:
                refused.append(Refusal(path, f"no image in this folder (looked for {', '.join(sorted(SUFFIXES))})"))
        elif not os.path.lexists(path):
            refused.append(Refusal(path, "no such file or folder"))
        else:
            yield path


def _walk(folder: Path, refused: list[Refusal]) -> Iterator[Path]:
    root = folder.resolve()

    def unreadable(error: OSError) -> None:
        refused.append(Refusal(Path(str(error.filename)), f"cannot be read ({error.strerror})"))

    for place, subfolders, names in os.walk(folder, onerror=unreadable):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        here = Path(place)
        # links to folders are not walked: inside the folder their images come anyway, outside is not what was named
        for name in subfolders:
            if (here / name).is_symlink() and not (here / name).resolve().is_relative_to(root):
                refused.append(Refusal(here / name, "a link to a folder elsewhere; name that folder itself"))
        for name in sorted(names):
            file = here / name
            if name.startswith(".") or file.suffix.lower() not in SUFFIXES:
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                refused.append(Refusal(file, "a link to a file elsewhere; name that file itself"))
            else:
                yield file


def read_photo(path: Path | Upload, settings: ModelSettings) -> bytes:
    """The bytes of an image file. Raises ImageError: absent, no regular file, unreadable, over `settings.max_bytes`."""
    if isinstance(path, Upload):
        return _check_size(path.path.name, path.data, settings)
    name = _storable(str(path))
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            about = os.fstat(file.fileno())
            if stat.S_ISDIR(about.st_mode):
                raise ImageError(f"{name}: a folder, not an image file")
            if not stat.S_ISREG(about.st_mode):
                raise ImageError(f"{name}: not a regular file; copy the photo to a file first")
            if about.st_size > settings.max_bytes:
                raise ImageError(
                    f"{name}: {about.st_size:,} bytes is over the limit of {settings.max_bytes:,}; "
                    "send a smaller file or raise REFDIFF_MAX_BYTES"
                )
            return file.read()
    except FileNotFoundError as e:
        raise ImageError(f"{name}: no such file") from e
    except IsADirectoryError as e:
        raise ImageError(f"{name}: a folder, not an image file") from e
    except (OSError, ValueError) as e:
        raise ImageError(f"{name}: cannot be read ({getattr(e, 'strerror', None) or e})") from e


def _check_size(name: str, data: bytes, settings: ModelSettings) -> bytes:
    if len(data) > settings.max_bytes:
        raise ImageError(
            f"{name}: {len(data):,} bytes is over the limit of {settings.max_bytes:,}; "
            "send a smaller file or raise REFDIFF_MAX_BYTES"
        )
    return data


def _open_at_once(path: str, flags: int) -> int:
    # a pipe without a writer would else be waited for
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _storable(name: str) -> str:
    """A file name as text: bytes that are no UTF-8 become U+FFFD, control characters blanks."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else " " for c in text)


def _without_name(message: str, path: Path) -> str:
    for name in (_storable(str(path)), _storable(path.name), path.name):
        message = message.removeprefix(f"{name}: ")
    return message


def _check_label(what: str, text: str | None) -> str | None:
    if text is None:
        return None
    label = text.strip()
    if not label or len(label) > 128 or not label.isprintable():
        raise InputError(f"{what} {text[:40]!r}: give 1 to 128 printable characters")
    return label


# ---- goldens ----


def _enrolled(workspace: Workspace, product: str, data: bytes) -> Golden | None:
    """The golden of exactly these bytes, if there is one; a photo that was lost or damaged meanwhile is mended."""
    sha256 = hashlib.sha256(data).hexdigest()
    with contextlib.suppress(UnknownRecordError):
        golden = workspace.bank.get(make_golden_id(product, sha256))
        workspace.stores.images.put(data)
        return golden
    return None


def _present(golden: Golden) -> str:
    retired = f", retired ({golden.note}); `refdiff goldens activate {golden.golden_id}` brings it back"
    return f"already there as {golden.golden_id}" + (retired if golden.status == "retired" else "")


def _decode_golden(workspace: Workspace, product: str, data: bytes, name: str) -> RgbImage:
    """Decode with the product's intensity window; the first deep golden fixes that window."""
    settings, products = workspace.model_settings, workspace.stores.products
    name = _storable(name)
    window = products.ensure(product).intensity_window
    try:
        return decode_image(data, name=name, window=window, settings=settings)
    except ImageError:
        suggested = None if window else measure_window(data, name=name, settings=settings)
        if suggested is None:
            raise
    window = products.set_window_once(product, suggested).intensity_window
    return decode_image(data, name=name, window=window, settings=settings)


def make_thumbnail(image: RgbImage) -> Thumbnail:
    """(H, W, 3) uint8 RGB -> (64, 64) float32 grey 0..255, area-averaged: noise and compression fall away."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.resize(grey, (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA), np.float32)


class _Thumbnails:
    """Thumbnails of a product's goldens, to find photos of one part. Kept in `REFDIFF_CACHE` (8 KB a golden)."""

    def __init__(self, workspace: Workspace, product: str) -> None:
        self._folder = workspace.model_settings.cache / "thumbnails"
        self._goldens: list[Golden] = []
        self._all: list[NDArray[np.float16]] = []
        self._means: list[float] = []
        for golden in workspace.bank.list(product):
            thumbnail = self._cached(golden)
            if thumbnail is not None:
                self._remember(golden, thumbnail)
                continue
            with contextlib.suppress(RefDiffError):  # its photo is lost: it cannot be compared, nor stop the others
                self.keep(golden, make_thumbnail(workspace.golden_image(golden)))

    def twin(self, thumbnail: Thumbnail) -> Golden | None:
        """The golden that shows nearly the same pixels, the likest one; None if there is none."""
        if not self._all:
            return None
        # |mean a - mean b| <= mean |a - b|, so few need the full comparison
        near = np.flatnonzero(np.abs(np.array(self._means) - float(thumbnail.mean())) <= _SAME_PART_GREY)
        differences = [(float(np.abs(self._all[i].astype(np.float32) - thumbnail).mean()), i) for i in near]
        best = min(differences, default=(np.inf, -1))
        return self._goldens[best[1]] if best[0] <= _SAME_PART_GREY else None

    def keep(self, golden: Golden, thumbnail: Thumbnail) -> None:
        small = thumbnail.astype(np.float16)
        self._remember(golden, small)
        path = self._path(golden)
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(temporary, small)
            temporary.replace(path)
        except OSError:  # a full or read-only cache slows the next enrolment down, nothing else
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _remember(self, golden: Golden, thumbnail: NDArray[np.float16]) -> None:
        self._goldens.append(golden)
        self._all.append(thumbnail)
        self._means.append(float(thumbnail.astype(np.float32).mean()))

    def _path(self, golden: Golden) -> Path:
        return self._folder / f"{golden.golden_id}-{golden.sha256[:16]}.npy"

    def _cached(self, golden: Golden) -> NDArray[np.float16] | None:
        try:
            kept = np.load(self._path(golden), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return kept if kept.shape == (_THUMB_PX, _THUMB_PX) and kept.dtype == np.float16 else None


def _twin_note(path: Path, twin: Golden, group: str | None) -> str:
    name, other = _storable(path.name), f"{twin.golden_id} ({twin.filename})"
    if group and group != twin.part_group:
        return f"{name}: shows the same pixels as {other}, which is not in part group {group}; is it the same part?"
    return f"{name}: shows the same pixels as {other}; both count as photos of one part"


def flag_odd(workspace: Workspace, product: str, new_ids: Sequence[str]) -> list[Golden]:
    """Flag goldens that are much less like their nearest other golden than the product's goldens usually are.

    One-sided robust z-score (median and MAD) over the new goldens and up to 256 earlier ones, from 8 goldens on; photos
    of the same part do not vouch for each other. A golden that a person has looked at (it has a note) is left alone.
    """
    from refdiff.tools.inspection.calibration import group_of

    goldens = workspace.bank.list(product, IN_USE)
    if len(goldens) < _MIN_TO_FLAG:
        return []
    new = set(new_ids)
    others = [g for g in goldens if g.golden_id not in new]
    step = max(1, -(-len(others) // _COMPARED_OTHERS))
    members: dict[str, list[str]] = {}
    for golden in goldens:
        members.setdefault(group_of(golden), []).append(golden.golden_id)
    scored: list[tuple[Golden, float]] = []
    for golden in [g for g in goldens if g.golden_id in new] + others[::step]:
        vectors = workspace.bank.vectors(golden.golden_id)
        hits = workspace.bank.nearest(product, *vectors, 1, exclude_ids=members[group_of(golden)])
        if hits:
            scored.append((golden, hits[0].similarity))
    if len(scored) < _MIN_TO_FLAG:
        return []
    values = np.array([s for _, s in scored])
    middle = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), _LEAST_SPREAD)
    flagged = []
    for golden, similarity in scored:
        if (middle - similarity) / spread > _ODD_Z and golden.status == "active" and not golden.note:
            note = (
                f"odd: similarity {similarity:.3f} to its nearest other golden, usual here {middle:.3f}; "
                "another product, or a defect?"
            )
            flagged.append(workspace.bank.set_status(golden.golden_id, "flagged", note))
    return flagged
