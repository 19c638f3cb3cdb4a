"""Defects of a product that people confirmed, with their outlines: what a network can learn from besides golden samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.records.adoptions import ConfirmedPart
from refdiff.model.errors import DamagedError, InputError, StorageError
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.workspace import Workspace

MOST = 64  # the newest


@dataclass(frozen=True)
class ConfirmedDefect:
    """A photo of a part with a defect that a person confirmed."""

    inspection_id: str
    photo: str  # sha256
    mask: NDArray[np.bool_]  # `map_size` of the photo: inside the outlines of its findings


def confirmed_defects(workspace: Workspace, product: str) -> tuple[list[ConfirmedDefect], dict[str, str]]:
    """Those of a product that can be learned from, newest first, 64 at most; and why others cannot: inspection id -> reason.

    Never a photo that is a golden sample, nor of a part that one shows, nor one that a person found good.
    """
    goldens = workspace.bank.list(product, IN_USE)
    photos, groups = {g.sha256 for g in goldens}, {g.group for g in goldens}
    found: dict[str, ConfirmedDefect] = {}  # by photo
    left_out = {}
    for part in workspace.stores.adoptions.confirmed_parts(product):
        if part.photo in found or len(found) == MOST:
            continue
        if part.photo in photos or f"part {part.part_id}"[:128] in groups:
            left_out[part.inspection_id] = "a golden sample shows the same part"
            continue
        try:
            mask = _outlined(workspace, product, part)
        except (InputError, StorageError) as e:
            left_out[part.inspection_id] = str(e)
            continue
        if mask is None:
            left_out[part.inspection_id] = "nothing is outlined in its findings"
            continue
        found[part.photo] = ConfirmedDefect(part.inspection_id, part.photo, mask)
    return list(found.values()), left_out


def _outlined(workspace: Workspace, product: str, part: ConfirmedPart) -> NDArray[np.bool_] | None:
    """What is outlined in the findings of an inspection; None if nothing is. Raises InputError, StorageError."""
    h, w = workspace.image(part.photo, product, f"photo of inspection {part.inspection_id}").shape[:2]
    kept = workspace.stores.inspections.difference(part.inspection_id)
    if kept is None:
        raise DamagedError("an earlier version filed it, which kept no outlines")
    difference = KeptDifference.decode(kept)
    level = difference.anomaly_map
    inside = np.zeros(level.shape, bool)
    fy, fx = level.shape[0] / h, level.shape[1] / w
    for x0, y0, x1, y1 in part.boxes:
        inside[int(y0 * fy) : int(np.ceil(y1 * fy)), int(x0 * fx) : int(np.ceil(x1 * fx))] = True
    mask = inside & (level >= difference.threshold)
    return mask if mask.any() else None
