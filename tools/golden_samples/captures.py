"""Captures: the photo of one part, checked and kept. Loads no network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

from refdiff.memory.rows.captures import Capture, normalise_part_id
from refdiff.memory.rows.products import check_scale
from refdiff.memory.stores import Stores
from refdiff.model.errors import DamagedError, ImageError, UnknownRecordError
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.colour_pairs import is_photo_of, with_its_photo
from refdiff.tools.golden_samples.photos import Upload, read_photo, storable
from refdiff.tools.kinds.depth import states_colour
from refdiff.tools.kinds.readers import read_arriving, reader_of
from refdiff.tools.kinds.reading import How, Reading


def record_capture(
    stores: Stores,
    part_id: str,
    product: str,
    photo: Path | Upload,
    *,
    settings: ModelSettings,
    scale_mm_per_px: float | None = None,
    conditions: Mapping[str, float] | None = None,
    read: Callable[[str, How, Reading], None] = lambda *_: None,
) -> Capture:
    """Keep the photo of one part as its newest capture.

    scale_mm_per_px: None if unknown, or as the file says. conditions: stated with it, where the product's kind has any. The
    colour photo of a height map is the upload's, or lies beside the file (see `colour_pairs`).
    read: told the sha256 of the kept photo, how it was read, and what.
    Raises InputError (part, product, scale, conditions), ImageError (a photo that cannot be inspected), StorageError.
    """
    part_id, product = normalise_part_id(part_id), stores.products.name_of(product)
    stores.check_free()
    scale = check_scale(scale_mm_per_px)
    name = storable((photo.path if isinstance(photo, Upload) else photo).name)
    how = How.of(stores.products.get(product))
    if states_colour(how):
        pair = with_its_photo(photo, settings)
        if isinstance(photo, Path):
            _check_photo_is_new(stores, part_id, product, pair)
        photo = pair
    colour = photo.colour if isinstance(photo, Upload) else None
    data = reader_of(how.kind).join(read_photo(photo, settings), dict(conditions or {}), colour)
    reading = read_arriving(data, name=name, how=how, settings=settings)  # only what can be inspected is kept
    sha256 = stores.images.put(data)
    read(sha256, how, reading)
    return stores.captures.add(part_id, product, sha256, scale or reading.mm_per_px, name)


def _check_photo_is_new(stores: Stores, part_id: str, product: str, pair: Upload) -> None:
    """Raises ImageError where the photo beside a height map is that of the part's capture before, which has other heights:
    it stayed there, and the new one is not there yet."""
    before = stores.captures.list(part_id, product)[:1]
    with contextlib.suppress(UnknownRecordError, DamagedError):
        if pair.colour is not None and before and is_photo_of(pair, stores.images.get(before[0].sha256)):
            raise ImageError(
                f"{storable(pair.name)}: the colour photo beside it is the one of the height map of part {part_id} before; "
                "put its own photo there, or name this one if it is of both (`--colour FILE`)"
            )
