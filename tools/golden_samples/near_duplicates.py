"""Finds several photos of one part by their thumbnails; they count as one group."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import Golden
from refdiff.model.errors import RefDiffError
from refdiff.model.files import atomic_path
from refdiff.model.images import F32, grey_thumbnail
from refdiff.tools.golden_samples.photos import storable
from refdiff.tools.workspace import Workspace

THUMBNAIL_PX = 64
MAX_GREY_DIFFERENCE = 0.5  # mean absolute difference of thumbnails, in grey levels of 0..255


class ThumbnailIndex:
    """Thumbnails (64, 64) float32 grey 0..255 of a product's goldens, to find photos of one part.

    Kept in `REFDIFF_CACHE` (8 KB a golden), because decoding a whole bank again takes minutes.
    """

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
            with contextlib.suppress(RefDiffError):  # its photo is lost: skip it
                self.keep(golden, grey_thumbnail(workspace.golden_image(golden), THUMBNAIL_PX))

    def twin(self, thumbnail: F32) -> Golden | None:
        """The golden that shows nearly the same pixels, the most similar one; None if there is none."""
        if not self._all:
            return None
        # |mean a - mean b| <= mean |a - b|, so few need the full comparison
        near = np.flatnonzero(np.abs(np.array(self._means) - float(thumbnail.mean())) <= MAX_GREY_DIFFERENCE)
        differences = [(float(np.abs(self._all[i].astype(np.float32) - thumbnail).mean()), i) for i in near]
        best = min(differences, default=(np.inf, -1))
        return self._goldens[best[1]] if best[0] <= MAX_GREY_DIFFERENCE else None

    def keep(self, golden: Golden, thumbnail: F32) -> None:
        """Add a golden, and its thumbnail to the cache on disk."""
        small = thumbnail.astype(np.float16)
        self._remember(golden, small)
        path = self._path(golden)
        with contextlib.suppress(OSError):  # a full or read-only cache only slows down the next enrolment
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path, private=False) as temporary, temporary.open("wb") as file:
                np.save(file, small)

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
        return kept if kept.shape == (THUMBNAIL_PX, THUMBNAIL_PX) and kept.dtype == np.float16 else None


def twin_note(path: Path, twin: Golden, group: str | None) -> str:
    """What to tell the person who enrols `path` about a golden with the same pixels. group: the part group they gave."""
    name, other = storable(path.name), f"{twin.golden_id} ({twin.filename})"
    if group and group != twin.part_group:
        return f"{name}: shows the same pixels as {other}, which is not in part group {group}; is it the same part?"
    return f"{name}: shows the same pixels as {other}; both count as photos of one part"
