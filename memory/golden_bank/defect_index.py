"""The named defects in Qdrant, found by what they look like: one collection per digest of weights, beside the goldens'.

The main database has names and vectors; this holds what a search needs of them, and is filled from there whenever it lags
behind. What it finds counts only as far as the database still says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import UnexpectedResponse

PREFIX = "refdiff_defects_"
_SPACE = uuid.UUID("9a0e7d0c-2f0b-5c39-8d0e-0d6a3a6f9b51")
_PAGE = 500


class DefectIndex:
    """The collection of one digest of weights. Every method raises as the bank's do where Qdrant fails."""

    def __init__(self, qdrant: Callable[[], AbstractContextManager[QdrantClient]], weights: str, dim: int) -> None:
        """qdrant: a turn with the bank's open client. dim: of the vectors."""
        self._qdrant, self._name, self._dim = qdrant, PREFIX + weights, dim
        self._held: dict[str, int] = {}  # product -> revision of its names that the collection holds

    def hold(
        self, product: str, revision: int, named: Mapping[str, tuple[str, NDArray[np.float32]]], gone: Collection[str]
    ) -> None:
        """Bring the collection to that revision of the product's names. named: key -> name, vector (D,). gone: keys that no
        longer have a name."""
        if self._held.get(product) == revision:
            return
        points = [
            qm.PointStruct(
                id=_point(key), vector=vector.tolist(), payload={"product": product, "name": name, "key": key}
            )
            for key, (name, vector) in named.items()
        ]
        with self._qdrant() as client:
            self._ensure(client)
            for start in range(0, len(points), _PAGE):
                client.upsert(self._name, points=points[start : start + _PAGE], wait=True)
            if gone:
                client.delete(self._name, points_selector=qm.PointIdsList(points=[_point(k) for k in gone]), wait=True)
        self._held[product] = revision

    def nearest(self, product: str, vector: NDArray[np.float32], keys: Collection[str]) -> dict[str, float]:
        """Distances to the named findings of a product, nearest first: key -> distance. keys: those that have a name now."""
        if not keys:
            return {}
        wanted = qm.Filter(must=[qm.FieldCondition(key="product", match=qm.MatchValue(value=product)),
                                 qm.HasIdCondition(has_id=[_point(k) for k in keys])])  # fmt: skip
        with self._qdrant() as client:
            found = client.query_points(
                self._name, query=vector.tolist(), query_filter=wanted, limit=len(keys), with_payload=["key"]
            )
        return {str((p.payload or {})["key"]): float(p.score) for p in found.points}

    def _ensure(self, client: QdrantClient) -> None:
        if client.collection_exists(self._name):
            return
        try:
            client.create_collection(
                self._name,
                vectors_config=qm.VectorParams(size=self._dim, distance=qm.Distance.EUCLID),
                hnsw_config=qm.HnswConfigDiff(m=0),  # no index: all are few, and every distance counts
            )
        except UnexpectedResponse as e:
            if e.status_code != 409:  # another process made it at the same moment
                raise


def _point(key: str) -> str:
    return str(uuid.uuid5(_SPACE, key))
