"""How the golden samples lie on a Qdrant server: vectors, indexes, shards; and where a collection differs from the settings.

Every search asks for one product, so the graph of `global` has links within products alone (`m=0`, `payload_m`), and the
points of a product lie together (`is_tenant`). `patches` are never searched, only fetched for a few candidates: no graph,
and on disk.
"""

from __future__ import annotations

from typing import Any, cast

from qdrant_client import models as qm

from refdiff.memory.settings import MemorySettings

INDEXED = ("product", "status", "part_group", "sha256")
_LINKS = 16  # of a point, to others of its product: Qdrant's own default of `m`
_OVERSAMPLED = 2.0  # so many times the candidates are taken by their small copies, then compared exactly


def vectors_config(
    global_dim: int, patch_dim: int, settings: MemorySettings | None = None
) -> dict[str, qm.VectorParams]:
    """The named vectors. settings: those of a server; None: embedded, where nothing lies on a disk or in a graph."""
    on_disk = None if settings is None else settings.qdrant_on_disk
    return {
        # The dot product of unit vectors is their cosine; asked for COSINE, embedded Qdrant normalises all
        # vectors anew in every search.
        "global": qm.VectorParams(
            size=global_dim,
            distance=qm.Distance.DOT,
            on_disk=on_disk,
            hnsw_config=None if settings is None else qm.HnswConfigDiff(m=0, payload_m=_LINKS),
            quantization_config=None if settings is None else _quantization(settings),
        ),
        "patches": qm.VectorParams(
            size=patch_dim,
            distance=qm.Distance.COSINE,
            on_disk=None if settings is None else True,
            # never searched through an index: m=0 saves building one
            hnsw_config=qm.HnswConfigDiff(m=0),
            multivector_config=qm.MultiVectorConfig(comparator=qm.MultiVectorComparator.MAX_SIM),
        ),
    }


def shards_config(settings: MemorySettings) -> dict[str, Any]:
    """Keyword arguments of `create_collection` that spread a collection over a cluster; {} leaves it to the server."""
    wanted = {
        "shard_number": settings.qdrant_shards,
        "replication_factor": settings.qdrant_replicas,
        "sharding_method": qm.ShardingMethod.CUSTOM if settings.qdrant_shard_by_product else None,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def index_config(field: str) -> qm.KeywordIndexParams:
    """The index of a field of `INDEXED`. Only products get links in the graph: no search is for a status alone."""
    is_product = field == "product"
    return qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=is_product, enable_hnsw=is_product)


def search_params(info: qm.CollectionInfo) -> qm.SearchParams | None:
    """How `global` is searched in that collection: candidates of quantised vectors are compared exactly in the end."""
    kept = _vectors(info)["global"].quantization_config or info.config.quantization_config
    if kept is None:
        return None
    return qm.SearchParams(quantization=qm.QuantizationSearchParams(rescore=True, oversampling=_OVERSAMPLED))


def by_product(info: qm.CollectionInfo) -> bool:
    """Whether that collection has shards of its own for each product."""
    return info.config.params.sharding_method == qm.ShardingMethod.CUSTOM


def dims_of(info: qm.CollectionInfo) -> tuple[int, int]:
    """Sizes of `global` and `patches` in that collection; 0: there are none."""
    kept = _vectors(info)
    return tuple(kept[name].size if name in kept else 0 for name in ("global", "patches"))  # type: ignore[return-value]


def differences(settings: MemorySettings, info: qm.CollectionInfo) -> list[str]:
    """What of the settings that collection was not made with, in words, only those that somebody set; and what an earlier
    version laid out otherwise."""
    params, kept = info.config.params, _vectors(info)["global"]
    made = {
        "qdrant_quantization": _name_of(kept.quantization_config or info.config.quantization_config),
        "qdrant_on_disk": bool(kept.on_disk),
        "qdrant_shards": params.shard_number,
        "qdrant_replicas": params.replication_factor,
        "qdrant_shard_by_product": by_product(info),
    }
    return [
        f"REFDIFF_{name.upper()} is {_shown(wanted)}, it was made with {_shown(value)}"
        for name, value in made.items()
        if name in settings.model_fields_set and (wanted := getattr(settings, name)) not in (None, value)
    ] + _of_earlier_versions(info)


def _of_earlier_versions(info: qm.CollectionInfo) -> list[str]:
    kept, found = _vectors(info), list[str]()
    graph = kept["global"].hnsw_config
    if graph is None or graph.m != 0 or not graph.payload_m:
        found.append("its graph links golden samples of all products")
    if not kept["patches"].on_disk:
        found.append("its patches lie in memory")
    return found


def _quantization(settings: MemorySettings) -> qm.QuantizationConfig | None:
    if settings.qdrant_quantization == "none":
        return None
    return qm.ScalarQuantization(scalar=qm.ScalarQuantizationConfig(type=qm.ScalarType.INT8, always_ram=True))


def _name_of(kept: Any) -> str:
    if kept is None:
        return "none"
    return "int8" if isinstance(kept, qm.ScalarQuantization) else "another one"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _vectors(info: qm.CollectionInfo) -> dict[str, qm.VectorParams]:
    return cast(dict[str, qm.VectorParams], info.config.params.vectors)
