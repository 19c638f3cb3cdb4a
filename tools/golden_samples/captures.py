"""Captures: the photo of one part, checked and kept. Loads no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refdiff.memory.records.captures import Capture, normalise_part_id
from refdiff.memory.records.products import check_scale
from refdiff.memory.stores import Stores
from refdiff.model.images import RgbImage, decode_image
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.photos import Upload, read_photo, storable


def record_capture(
    stores: Stores,
    part_id: str,
    product: str,
    photo: Path | Upload,
    *,
    settings: ModelSettings,
    scale_mm_per_px: float | None = None,
    decoded: Callable[[str, tuple[float, float] | None, RgbImage], None] = lambda *_: None,
) -> Capture:
    """Keep the photo of one part as its newest capture.

    scale_mm_per_px: None if unknown. decoded: told the sha256 and the intensity window of the kept photo, and its pixels.
    Raises InputError (part, product, scale), ImageError (a photo that cannot be inspected), StorageError.
    """
    part_id, product = normalise_part_id(part_id), stores.products.name_of(product)
    stores.check_free()
    scale = check_scale(scale_mm_per_px)
    name = storable((photo.path if isinstance(photo, Upload) else photo).name)
    data = read_photo(photo, settings)
    known = stores.products.get(product)
    window = known.intensity_window if known else None
    image = decode_image(data, name=name, window=window, settings=settings)  # only what can be inspected is kept
    sha256 = stores.images.put(data)
    decoded(sha256, window, image)
    return stores.captures.add(part_id, product, sha256, scale, name)
