"""Registrations of goldens to photos, computed once per pair."""

from __future__ import annotations

from refdiff.memory.golden_bank.bank import Golden
from refdiff.model.images import RgbImage
from refdiff.tools.vision.registration import Alignment, align
from refdiff.tools.workspace import Workspace


def align_cached(workspace: Workspace, query: RgbImage, query_key: str, golden: Golden) -> Alignment:
    """Registration of a golden to a photo; the same pair is registered once. query_key: sha256 of the photo."""
    key = f"{query_key}/{golden.sha256}/{golden.product}"
    known = workspace.alignments.recall(key)
    if known is None:
        known = align(query, workspace.golden_image(golden))
        workspace.alignments.keep(key, known)
    return known
