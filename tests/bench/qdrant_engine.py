"""Qdrant's own engine as a library (qdrant-edge-py), asked with the models of its HTTP API: for tests and measurements.

The models are those that qdrant-client generates from Qdrant's OpenAPI. Whatever of them the golden bank does not use is
refused by name, so a new call of the bank is noticed here and not passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from pydantic import BaseModel
from qdrant_client import models as qm

Vectors = dict[str, qm.VectorParams] | qm.VectorParams
_DISTANCES = {
    qm.Distance.COSINE: edge.Distance.Cosine,
    qm.Distance.DOT: edge.Distance.Dot,
    qm.Distance.EUCLID: edge.Distance.Euclid,
}
_MODES = {
    None: edge.UpdateMode.Upsert,
    qm.UpdateMode.UPSERT: edge.UpdateMode.Upsert,
    qm.UpdateMode.INSERT_ONLY: edge.UpdateMode.InsertOnly,
}
_FULL_SCAN_KB = 10_000  # Qdrant's default


class Unsupported(Exception):
    """The golden bank asks for something that is not translated here; str(): what."""


def config(vectors: Vectors, hnsw: qm.HnswConfigDiff | None = None, **more: Any) -> edge.EdgeConfig:
    """That of a shard with these vectors. hnsw: of the collection. more: as of EdgeConfig."""
    if isinstance(vectors, qm.VectorParams):
        vectors = {"": vectors}
    return edge.EdgeConfig(
        vectors={name: _params(params) for name, params in vectors.items()},
        hnsw_config=None if hnsw is None else _hnsw(hnsw),
        **more,
    )


def condition(wanted: qm.Filter | None) -> edge.Filter | None:
    """A filter of the HTTP API."""
    if wanted is None:
        return None
    _only(wanted, "must", "must_not")
    parts = {name: [_condition(c) for c in getattr(wanted, name) or []] or None for name in ("must", "must_not")}
    return edge.Filter(**parts)


def search_params(params: qm.SearchParams | None) -> edge.SearchParams | None:
    """How to search."""
    if params is None:
        return None
    _only(params, "quantization", "exact", "hnsw_ef")
    how = params.quantization
    if how is not None:
        how = edge.QuantizationSearchParams(ignore=bool(how.ignore), rescore=how.rescore, oversampling=how.oversampling)
    return edge.SearchParams(hnsw_ef=params.hnsw_ef, exact=bool(params.exact), quantization=how)


def index(params: qm.KeywordIndexParams) -> edge.KeywordIndexParams:
    """An index of a payload field."""
    _only(params, "type", "is_tenant", "enable_hnsw")
    return edge.KeywordIndexParams(is_tenant=params.is_tenant, enable_hnsw=params.enable_hnsw)


def upsert(points: Sequence[Any], mode: qm.UpdateMode | None = None) -> edge.UpdateOperation:
    """Add points, anything with id, vector and payload."""
    return edge.UpdateOperation.upsert_points(
        [edge.Point(p.id, p.vector, p.payload) for p in points], update_mode=_MODES[mode]
    )


def query(
    vector: Any, using: str | None, limit: int, wanted: qm.Filter | None, params: qm.SearchParams | None, payload: Any
) -> edge.QueryRequest:
    """The nearest points."""
    return edge.QueryRequest(
        limit=limit,
        query=edge.Query.Nearest(vector, using=using),
        filter=condition(wanted),
        params=search_params(params),
        with_payload=selected(payload),
    )


def selected(what: Any) -> Any:
    """Which fields of the payload, or which vectors."""
    return False if what is None else what


def size_of(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _params(params: qm.VectorParams) -> edge.EdgeVectorParams:
    _only(params, "size", "distance", "on_disk", "hnsw_config", "quantization_config", "multivector_config")
    several = params.multivector_config
    return edge.EdgeVectorParams(
        size=params.size,
        distance=_DISTANCES[params.distance],
        on_disk=params.on_disk,
        multivector_config=several and edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        hnsw_config=params.hnsw_config and _hnsw(params.hnsw_config),
        quantization_config=params.quantization_config and _quantization(params.quantization_config),
    )


def _hnsw(diff: qm.HnswConfigDiff) -> edge.HnswIndexConfig:
    """With Qdrant's defaults for what is not said."""
    _only(diff, "m", "payload_m", "ef_construct", "full_scan_threshold", "max_indexing_threads")
    return edge.HnswIndexConfig(
        m=16 if diff.m is None else diff.m,
        ef_construct=diff.ef_construct or 100,
        full_scan_threshold=diff.full_scan_threshold or _FULL_SCAN_KB,
        max_indexing_threads=diff.max_indexing_threads or 0,
        payload_m=diff.payload_m,
    )


def _quantization(kept: qm.QuantizationConfig) -> edge.ScalarQuantizationConfig | edge.BinaryQuantizationConfig:
    match kept:
        case qm.ScalarQuantization(scalar=how):
            _only(how, "type", "always_ram")
            return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, always_ram=how.always_ram)
        case qm.BinaryQuantization(binary=how):
            _only(how, "always_ram")
            return edge.BinaryQuantizationConfig(always_ram=how.always_ram)
        case _:
            raise Unsupported(type(kept).__name__)


def _condition(wanted: qm.Condition) -> Any:
    match wanted:
        case qm.HasIdCondition(has_id=ids):
            return edge.HasIdCondition(set(ids))
        case qm.FieldCondition(key=key, match=qm.MatchValue(value=value)):
            _only(wanted, "key", "match")
            return edge.FieldCondition(key, match=edge.MatchValue(value))
        case qm.FieldCondition(key=key, match=qm.MatchAny(any=values)):
            _only(wanted, "key", "match")
            return edge.FieldCondition(key, match=edge.MatchAny(list(values)))
        case _:
            raise Unsupported(repr(wanted))


def _only(model: BaseModel, *translated: str) -> None:
    said = {name for name in type(model).model_fields if getattr(model, name) not in (None, False)}
    if said := said - set(translated):
        raise Unsupported(f"{type(model).__name__} with {', '.join(sorted(said))}")
