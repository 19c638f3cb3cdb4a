"""Retrieval of the nearest golden samples of a photo."""

from __future__ import annotations

from collections.abc import Iterable

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.model.difference.encoder import Features
from refdiff.tools.workspace import Workspace


def retrieve_reference(
    workspace: Workspace,
    features: Features,
    product: str,
    k: int = 1,
    exclude_ids: Iterable[str] = (),
) -> list[GoldenHit]:
    """The k nearest goldens in use (fewer if there are fewer), best first. Raises UnknownProductError if there is none."""
    hits = workspace.bank.nearest(product, features.global_vec, features.patches, k, exclude_ids=exclude_ids)
    if not hits:
        raise workspace.bank.no_goldens(product)
    return hits
