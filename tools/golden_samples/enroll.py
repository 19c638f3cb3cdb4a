"""Enrolment: photos of good parts into the golden bank.

A refusal names its reason; a photo that looks odd is flagged for a person, never dropped. The image store comes first and
the bank second, so a golden in the bank always has its photo, even after a crash.
"""

from __future__ import annotations

import contextlib
import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from propcache.api import cached_property

from refdiff.memory.golden_bank.golden import IN_USE, Golden, GoldenSource, make_golden_id
from refdiff.memory.kinds import ProductKind
from refdiff.memory.records.products import check_kind
from refdiff.memory.rows.products import check_scale
from refdiff.model.errors import DamagedError, ImageError, InputError, UnavailableError, UnknownRecordError
from refdiff.model.images import grey_thumbnail
from refdiff.model.progress import Progress, silent
from refdiff.tools.framing.frames import found_place, place_goldens
from refdiff.tools.golden_samples.colour_pairs import height_maps, is_photo_of, with_its_photo
from refdiff.tools.golden_samples.near_duplicates import THUMBNAIL_PX, ThumbnailIndex, twin_note
from refdiff.tools.golden_samples.outliers import flag_outliers
from refdiff.tools.golden_samples.photos import Refusal, Upload, find_images, read_photo, storable, without_file_name
from refdiff.tools.inspection.frame_vectors import golden_vectors
from refdiff.tools.kinds.depth import states_colour
from refdiff.tools.kinds.readers import read_arriving, reader_of
from refdiff.tools.kinds.reading import How, Reading
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class EnrollResult:
    """The outcome of one enrolment."""

    product: str
    added: list[Golden] = field(default_factory=list)  # new in the bank
    already_there: list[Refusal] = field(default_factory=list)  # the same bytes were enrolled before
    refused: list[Refusal] = field(default_factory=list)  # cannot be read, or cannot be a golden
    flagged: list[Golden] = field(default_factory=list)  # in the bank, and a person should look
    others: list[Path] = field(default_factory=list)  # in folders, left out: no images by their names
    notes: list[str] = field(default_factory=list)  # further remarks in words
    n_in_bank: int = 0  # goldens of the product afterwards, of any status


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
    kind: str | None = None,
    conditions: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> EnrollResult:
    """Enrol image files, all images below folders, and uploads as goldens of a product. Idempotent by content.

    part_group: all these photos show one part; without it, photos with nearly the same pixels are grouped, because
    calibration counts parts. golden_source: where the photos come from. kind: of the product's files, one of
    `kinds.PRODUCT_KINDS`, said with its first golden sample; default: what it is, photo for a new one. conditions: stated
    with all these files, where the kind has any. progress: counts files.
    Raises InputError (product name, scale, group, kind, conditions); StorageError, BankBusyError, UnavailableError where the
    stores fail: what was added before stays, and the same call continues from there.
    """
    product, scale = workspace.stores.products.name_of(product), check_scale(scale_mm_per_px)
    files_are = _kind_of(workspace, product, kind)
    reader, stated = reader_of(files_are), dict(conditions or {})
    group = _check_label("part group", part_group)
    station = _check_label("station", station)
    result = EnrollResult(product)
    with _telling_how_many(result):
        files = list(find_images(paths, result.refused, result.others, more=reader.suffixes))
        in_colour = states_colour(How.of(workspace.stores.products.get(product), files_are))
        if in_colour:
            files = height_maps(files, result.refused, [p for p in paths if isinstance(p, Path) and p.is_dir()])
        own = _OwnPhotos(workspace, product)
        thumbnails: ThumbnailIndex | None = None
        known_ids: list[str] = []  # enrolled before, perhaps by a call that failed before it could look for outliers
        for done, source in enumerate(files):
            path = source.path if isinstance(source, Upload) else source
            try:
                if in_colour:
                    source = with_its_photo(source, workspace.model_settings)
                    own.check(source)
                colour = source.colour if isinstance(source, Upload) else None
                data = reader.join(read_photo(source, workspace.model_settings), stated, colour)
                known = _enrolled(workspace, product, data)
                if known is not None:
                    own.accepted(source)
                    result.already_there.append(Refusal(path, _present(known)))
                    known_ids.append(known.golden_id)
                    continue
                reading, how = _read_golden(workspace, product, data, path.name, enrolled_by, files_are)
                thumbnails = thumbnails or ThumbnailIndex(workspace, product)
                thumbnail = grey_thumbnail(reading.picture, THUMBNAIL_PX)
                twin = thumbnails.twin(thumbnail)
                if twin is not None:
                    result.notes.append(twin_note(path, twin, group))
                if not result.added:
                    place_goldens(workspace, product)  # those of earlier versions come first
                workspace.stores.check_free()
                sha256 = workspace.stores.images.put(data)
                workspace.keep_read(sha256, how, reading)
                golden = Golden(
                    make_golden_id(product, sha256),
                    product,
                    sha256,
                    filename=storable(path.name),
                    scale_mm_per_px=scale or reading.mm_per_px,
                    part_group=group or (twin.group if twin else None),
                    station=station,
                    enrolled_by=enrolled_by,
                    source=golden_source,
                )
                place = found_place(workspace, golden)  # what was measured is found where it lies in its frame
                if workspace.bank.add(golden, *golden_vectors(workspace, golden, place)):
                    result.added.append(golden)  # at once: it is in the bank, whatever fails from here on
                    own.accepted(source)
                    thumbnails.keep(golden, thumbnail)
                    workspace.stores.frames.put(place)  # only now: no place without its golden sample
                else:  # with a Qdrant server, another process may have enrolled it meanwhile
                    own.accepted(source)
                    result.already_there.append(Refusal(path, _present(golden)))
            except InputError as e:
                result.refused.append(Refusal(path, without_file_name(str(e), path)))
            finally:
                progress("enrolling", done + 1, len(files))
        if named := [*(g.golden_id for g in result.added), *known_ids]:
            result.flagged.extend(flag_outliers(workspace, product, named))
        result.notes.extend(workspace.bank.notes(product))
    return replace(result, n_in_bank=workspace.bank.count(product))


class _OwnPhotos:
    """Tells colour photos that belong to other height maps: of this enrolment, or to the last golden sample of the same
    name, whose photo may have stayed where the next one was expected."""

    def __init__(self, workspace: Workspace, product: str) -> None:
        self._workspace, self._product = workspace, product
        self._given: dict[bytes, tuple[str, bytes]] = {}  # photo -> name and digest of the height map that it came with

    @cached_property
    def _named(self) -> dict[str, Golden]:
        return {golden.filename: golden for golden in self._workspace.bank.list(self._product, IN_USE)}  # oldest first

    def check(self, pair: Upload) -> None:
        """Raises ImageError where the colour photo of a height map is that of another one."""
        if pair.colour is None:
            return
        name, height = pair.path.name, hashlib.sha256(pair.data).digest()
        other, its_height = self._given.get(hashlib.sha256(pair.colour).digest(), (name, height))
        if its_height != height:
            raise ImageError(f"{name}: its colour photo is identical to that of {other}; give each height map its own")
        golden = self._named.get(storable(name))
        with contextlib.suppress(UnknownRecordError, DamagedError):
            if golden is not None and is_photo_of(pair, self._workspace.stores.images.get(golden.sha256)):
                raise ImageError(
                    f"{name}: its colour photo is that of golden sample {golden.golden_id}, a height map of the same name "
                    "with other heights; give it its own photo, or if it replaces that golden sample, retire that first: "
                    f"refdiff goldens retire {golden.golden_id}"
                )

    def accepted(self, pair: Path | Upload) -> None:
        """The photo of this height map, which is in the bank, is no other one's from now on."""
        if isinstance(pair, Upload) and pair.colour is not None:
            height = hashlib.sha256(pair.data).digest()
            self._given[hashlib.sha256(pair.colour).digest()] = pair.path.name, height


@contextlib.contextmanager
def _telling_how_many(result: EnrollResult) -> Iterator[None]:
    """Say with the failure of a store how many photos are in the bank by then."""
    try:
        yield
    except UnavailableError as e:
        told = f"{len(result.added)} photos were enrolled before that; run the same command to continue"
        raise type(e)(f"{e} ({told})") from e


def _check_label(what: str, text: str | None) -> str | None:
    if text is None:
        return None
    label = text.strip()
    if not label or len(label) > 128 or not label.isprintable():
        raise InputError(f"{what} {text[:40]!r}: give 1 to 128 printable characters")
    return label


def _enrolled(workspace: Workspace, product: str, data: bytes) -> Golden | None:
    """The golden of exactly these bytes, if there is one; a photo that was lost or damaged meanwhile is restored."""
    sha256 = hashlib.sha256(data).hexdigest()
    with contextlib.suppress(UnknownRecordError):
        golden = workspace.bank.get(make_golden_id(product, sha256))
        workspace.stores.images.put(data)
        return golden
    return None


def _present(golden: Golden) -> str:
    retired = f", retired ({golden.note}); to use it again: refdiff goldens activate {golden.golden_id}"
    return f"already enrolled as {golden.golden_id}" + (retired if golden.status == "retired" else "")


def _kind_of(workspace: Workspace, product: str, kind: str | None) -> ProductKind:
    """Of what kind the files are that are enrolled. Raises InputError where the product's are of another kind."""
    known = workspace.stores.products.get(product)
    if kind is None:
        return known.kind if known else "photo"
    wanted = check_kind(kind)
    if known is not None and known.kind != wanted and workspace.bank.count(product):
        raise InputError(
            f"product {product!r} is of kind {known.kind!r} and has golden samples; enrol files of kind {wanted!r} as a "
            f"product of their own: refdiff enroll --product {shlex.quote(f'{product} {wanted}')} --kind {wanted} ..."
        )
    return wanted


def _read_golden(
    workspace: Workspace, product: str, data: bytes, name: str, by: str, kind: ProductKind
) -> tuple[Reading, How]:
    """Read as the product's kind is read, with its window; the first golden that needs one fixes that window."""
    settings, products = workspace.model_settings, workspace.stores.products
    name = storable(name)
    known = products.get(product)  # created below: photos that are all refused make no product
    how, reader = How.of(known, kind), reader_of(kind)
    try:
        reading = read_arriving(data, name=name, how=how, settings=settings)
        products.set_kind(product, kind, by)
        return reading, how
    except ImageError:
        suggested = None if how.window else reader.suggest_window(data, name=name, how=how, settings=settings)
        # a window would make the 8-bit goldens that are there unreadable
        if suggested is None or workspace.bank.count(product):
            raise
    products.set_kind(product, kind, by)
    how = How.of(products.set_window_once(product, suggested, by))
    return reader.read(data, name=name, how=how, settings=settings), how
