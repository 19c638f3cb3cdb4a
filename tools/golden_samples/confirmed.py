"""Defects of a product that people confirmed, with their outlines: what a network can learn from besides golden samples."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE, group_of_part
from refdiff.memory.records.adoptions import ConfirmedPart
from refdiff.model.errors import InputError, StorageError
from refdiff.model.progress import Progress, silent
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.workspace import Workspace

MOST = 64  # the newest
_LOOKED_AT = 4 * MOST  # not all can be learned from

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConfirmedDefect:
    """A photo of a part with a defect that a person confirmed."""

    inspection_id: str
    photo: str  # sha256
    part_id: str
    mask: NDArray[np.bool_]  # `map_size` of the photo: inside the outlines of its findings


def confirmed_defects(
    workspace: Workspace, product: str, progress: Progress = silent
) -> tuple[list[ConfirmedDefect], dict[str, list[str]]]:
    """Those of a product that can be learned from, newest first, 64 at most; and others of the newest 256, which cannot:
    why -> inspection ids.

    Never a photo that is a golden sample, nor of a part that one shows, nor one that a person found good.
    """
    goldens = workspace.bank.list(product, IN_USE)
    photos, groups = {g.sha256 for g in goldens}, {g.group for g in goldens}
    found: dict[str, ConfirmedDefect] = {}  # by photo
    left_out: dict[str, list[str]] = defaultdict(list)
    parts = workspace.stores.adoptions.confirmed_parts(product, _LOOKED_AT)
    for done, part in enumerate(parts, start=1):
        if len(found) == MOST:
            break
        if part.photo in found:
            continue
        if part.photo in photos or group_of_part(part.part_id) in groups:
            left_out["a golden sample shows the same part"].append(part.inspection_id)
            continue
        made = _outlined(workspace, product, part)
        if isinstance(made, str):
            left_out[made].append(part.inspection_id)
        else:
            found[part.photo] = ConfirmedDefect(part.inspection_id, part.photo, part.part_id, made)
        progress("confirmed defects", done, len(parts))
    return list(found.values()), dict(left_out)


def _outlined(workspace: Workspace, product: str, part: ConfirmedPart) -> NDArray[np.bool_] | str:
    """What is outlined in the findings of an inspection, or why nothing is known of that."""
    kept = workspace.stores.inspections.difference(part.inspection_id)
    if kept is None:
        return "an earlier version filed it, which kept no outlines"
    try:
        difference = KeptDifference.decode(kept)
        h, w = workspace.image(part.photo, product, f"photo of inspection {part.inspection_id}").shape[:2]
    except (InputError, StorageError) as e:
        log.warning("a confirmed defect cannot be learned from: %s", e)
        return "its photo or its anomaly map cannot be read"
    level = difference.anomaly_map
    inside = np.zeros(level.shape, bool)
    fy, fx = level.shape[0] / h, level.shape[1] / w
    for x0, y0, x1, y1 in part.boxes:
        inside[int(y0 * fy) : int(np.ceil(y1 * fy)), int(x0 * fx) : int(np.ceil(x1 * fx))] = True
    mask = inside & (level >= difference.threshold)
    return mask if mask.any() else "nothing is outlined in its findings"
