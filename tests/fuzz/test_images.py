"""Image files: the right shape or an ImageError, in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.model.errors import ImageError
from refdiff.model.images import MIN_SIDE_PX, decode_image, measure_window

from .driver import corpus, fuzz, in_time
from .image_files import as_bytes, images


def check(case: Any) -> None:
    data = as_bytes(case)
    for window in (None, (0.0, 60000.0)):
        with in_time():
            try:
                image = decode_image(data, name="photo", window=window)
            except ImageError:
                continue
        assert image.dtype == np.uint8
        assert image.ndim == image.shape[2] == 3
        assert min(image.shape[:2]) >= MIN_SIDE_PX
    with in_time():
        try:
            found = measure_window(data, name="photo")
        except ImageError:
            return
    assert found is None or found[0] < found[1]


@pytest.mark.parametrize("case", corpus("images"))
def test_kept_image_file_decodes_or_is_refused(case: Any) -> None:
    check(case)


@pytest.mark.fuzzing
@pytest.mark.timeout(0)
def test_generated_image_files_decode_or_are_refused() -> None:
    assert fuzz("images", images, check) > 0
