"""Flags goldens that are unlike the others for a person to check; never drops one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.tools.inspection.robust import MAX_Z, MIN_VALUES, modified_z_scores
from refdiff.tools.workspace import Workspace

MIN_SIMILARITY_SPREAD = 0.01  # near-identical goldens would otherwise make every ordinary one an outlier
MAX_EARLIER_GOLDENS = 256  # scored besides the new ones: enough for a median, flat in time


def flag_outliers(workspace: Workspace, product: str, new_ids: Sequence[str]) -> list[Golden]:
    """Flag goldens that are much less like their nearest other golden than the product's goldens usually are.

    One-sided robust z-score (median and MAD) over the new goldens and up to 256 earlier ones, from 8 goldens on; photos
    of the same part do not vouch for each other. A golden that a person has looked at (it has a note) is left alone.
    """
    goldens = workspace.bank.list(product, IN_USE)
    if len(goldens) < MIN_VALUES:
        return []
    new = set(new_ids)
    others = [g for g in goldens if g.golden_id not in new]
    step = max(1, -(-len(others) // MAX_EARLIER_GOLDENS))
    members: dict[str, list[str]] = {}
    for golden in goldens:
        members.setdefault(golden.group, []).append(golden.golden_id)
    scored: list[tuple[Golden, float]] = []
    for golden in [g for g in goldens if g.golden_id in new] + others[::step]:
        vectors = workspace.bank.vectors(golden.golden_id)
        hits = workspace.bank.nearest(product, *vectors, 1, exclude_ids=members[golden.group])
        if hits:
            scored.append((golden, hits[0].similarity))
    if len(scored) < MIN_VALUES:
        return []
    values = [s for _, s in scored]
    middle = float(np.median(values))
    flagged = []
    for (golden, similarity), z in zip(scored, modified_z_scores(values, MIN_SIMILARITY_SPREAD), strict=True):
        if -z > MAX_Z:
            note = (
                f"outlier: similarity {similarity:.3f} to its nearest other golden sample, median here {middle:.3f}; "
                "wrong product, or a defect?"
            )
            flagged.append(workspace.bank.flag(golden.golden_id, note))
    return [golden for golden in flagged if golden is not None]
