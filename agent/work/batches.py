"""Puts many parts on the queue together. What cannot be inspected is left out and named, and stops nothing else."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path

from refdiff.agent import telemetry
from refdiff.agent.request import Judge, prepare
from refdiff.memory.journals.batches import Batch, LeftOut
from refdiff.memory.journals.jobs import BATCH
from refdiff.model.errors import BusyError, InputError, RefDiffError
from refdiff.model.files import outage
from refdiff.tools.golden_samples.colour_pairs import height_maps
from refdiff.tools.golden_samples.photos import Refusal, Upload, find_images, left_out
from refdiff.tools.workspace import Workspace

_COLUMNS = ("part", "image", "product", "scale_mm_per_px")
MAX_PARTS = 100_000
_FILLING_S = 60.0  # longest wait for another request that fills the same batch


@dataclass(frozen=True)
class BatchPart:
    """A part to be inspected."""

    name: str  # as the batch calls it, for people
    part_id: str
    product: str | None = None
    photo: Path | Upload | None = None  # None: the newest one, or that of capture_id
    scale_mm_per_px: float | None = None
    capture_id: str | None = None


def fill(
    workspace: Workspace,
    source: str,
    parts: Iterable[BatchPart | LeftOut],
    *,
    by: str,
    judge: Judge = "on-anomaly",
    in_order: bool = False,
    origin: str | None = None,
    digest: str | None = None,
    origin_lasts: timedelta | None = None,
    moved: Callable[[str, int], None] = lambda batch_id, done: None,
) -> Batch:
    """Open a batch and put its parts on the queue, where they wait behind what people ask for; each is on the disk then.

    source: where the parts come from, for people. in_order: one is inspected after the other. moved: called with the id of
    the batch and how many parts it has taken or left out. Once somebody stops the batch, the rest is left out.
    origin, digest, origin_lasts: as of `BatchStore.begin`. A complete batch of that origin is returned as it is; one whose
    filling broke off gets the parts that it lacks, which must come in the same order again.
    Raises InputError, StorageError and UnavailableError; what was accepted before is inspected all the same. BusyError if
    another request fills that batch.
    """
    stores = workspace.stores
    parts = _to_the_end(iter(parts), source)
    parts = chain([next(parts, LeftOut(source, "there is nothing in it"))], parts)  # what is no batch opens none
    batch_id = stores.batches.begin(source, by, origin, digest, origin_lasts)
    busy = BusyError(f"{batch_id} is being filled by another request; repeat this one")
    with nullcontext() if origin is None else stores.db.lock(f"fill {batch_id}", busy, wait_s=_FILLING_S):
        if not stores.batches.get(batch_id).complete:
            _put(workspace, batch_id, parts, by, judge, in_order, origin is not None, moved)
        return stores.batches.get(batch_id)


def _put(
    workspace: Workspace, batch_id: str, parts: Iterable[BatchPart | LeftOut], by: str, judge: Judge, in_order: bool,
    again: bool, moved: Callable[[str, int], None],
) -> None:  # fmt: skip
    """Put the parts on the queue. again: it may have been done before, up to some part."""
    stores, accepted, missing = workspace.stores, 0, list[LeftOut]()
    for done, part in enumerate(parts):
        moved(batch_id, done)
        if isinstance(part, LeftOut):
            missing.append(part)
            continue
        # of the batch, not of the caller's key, which may be used for another batch a day later
        origin = f"{batch_id}:{done}" if again else None
        if origin is not None and stores.jobs.by_origin(origin) is not None:
            accepted += 1
            continue
        if stores.batches.is_stopped(batch_id):
            missing.append(LeftOut(part.name, "the batch was stopped"))
            continue
        try:
            if accepted >= MAX_PARTS:
                raise InputError(f"a batch has at most {MAX_PARTS:,} parts; put the rest into another one")
            stores.check_free()
            request = prepare(
                workspace, part.part_id, product=part.product, photo=part.photo, scale_mm_per_px=part.scale_mm_per_px,
                capture_id=part.capture_id, requested_by=by, judge=judge,
            )  # fmt: skip
        except RefDiffError as e:
            if outage(e) is not None:
                raise
            missing.append(LeftOut(part.name, str(e)))
            continue
        stores.jobs.add(
            request.inspection_id, asdict(request) | telemetry.carried(), origin, 0, priority=BATCH, batch=batch_id,
            line=batch_id if in_order else None,
        )  # fmt: skip
        accepted += 1
    stores.batches.complete(batch_id, accepted, missing)
    if stores.batches.is_stopped(batch_id):  # perhaps between the look and the last part
        stores.batches.stop(batch_id, by)


def _to_the_end(parts: Iterator[BatchPart | LeftOut], source: str) -> Iterator[BatchPart | LeftOut]:
    """The parts; if they cannot be read to the end, the rest is left out. Raises InputError at the first."""
    begun = False
    try:
        for part in parts:
            begun = True
            yield part
    except InputError as e:
        if not begun:
            raise
        yield LeftOut(source, f"what follows cannot be read: {e}")


def parts_of(
    path: Path, product: str | None = None, more: Collection[str] = (), in_colour: bool = False
) -> Iterator[BatchPart | LeftOut]:
    """The parts of a folder of photos, or of a CSV file.

    A photo's name without suffix is the id of its part. The file has a header with `part`, and `image` (relative to the
    file; none: the part's newest photo), `product` and `scale_mm_per_px` if wanted. product: where a part names none.
    more: suffixes of files in folders that are tried besides images. in_colour: they are height maps, each with a colour
    photo, see `colour_pairs`. Raises InputError.
    """
    return _in_folder(path, product, more, in_colour) if path.is_dir() else _in_file(path, product)


def _in_folder(
    folder: Path, product: str | None, more: Collection[str], in_colour: bool
) -> Iterator[BatchPart | LeftOut]:
    refused: list[Refusal] = []
    others: list[Path] = []
    found = find_images([folder], refused, others, more=more)
    for photo in height_maps(found, refused, [folder]) if in_colour else found:
        if isinstance(photo, Path):
            yield BatchPart(photo.relative_to(folder).as_posix(), photo.stem, product, photo)
    yield from (LeftOut(str(one.path), one.reason) for one in refused)
    yield from (LeftOut(one.relative_to(folder).as_posix(), left_out([one])) for one in others)


def _in_file(path: Path, product: str | None) -> Iterator[BatchPart | LeftOut]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            columns = rows.fieldnames or []
            if "part" not in columns or (unknown := [c for c in columns if c not in _COLUMNS]):
                said = f"unknown: {', '.join(map(str, unknown))}" if "part" in columns else "there is no `part`"
                raise InputError(f"{path}: its first line must name columns of {', '.join(_COLUMNS)}; {said}")
            for row in rows:
                yield _of_row(path, rows.line_num, row, product)
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}); name a folder of photos or a CSV file") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({e})") from e


def _of_row(path: Path, number: int, row: dict[str, str], product: str | None) -> BatchPart | LeftOut:
    name = f"line {number}"
    part, image, scale = ((row.get(c) or "").strip() for c in ("part", "image", "scale_mm_per_px"))
    if not part:
        return LeftOut(name, "it names no part")
    name = f"{name} (part {part})"
    try:
        size = float(scale) if scale else None
    except ValueError:
        return LeftOut(name, f"scale_mm_per_px {scale!r} is not a number")
    photo = path.parent / image if image else None
    if photo is not None and not photo.is_file():
        return LeftOut(name, f"no such photo: {photo}")
    return BatchPart(name, part, (row.get("product") or "").strip() or product, photo, size)
