"""The golden bank: good samples in Qdrant, found by what they look like. Same code for embedded and server.

Embedded, the goldens are kept in a file (`bank_file.py`), from which an in-memory Qdrant is filled at opening.
One collection per encoder fingerprint, because vectors of different weights cannot be compared.
Named vectors: `global` (cosine, HNSW) to find candidates, `patches` (multivector, MaxSim) to rank them.
"""

from __future__ import annotations

import builtins
import contextlib
import itertools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client import models as qm
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from refdiff.memory.changes import GOLDEN, recorded
from refdiff.memory.database.database import Database
from refdiff.memory.golden_bank import collection
from refdiff.memory.golden_bank.bank_file import DamagedGolden, StoredGolden, Vectors, check_record
from refdiff.memory.golden_bank.connection import QdrantConnection
from refdiff.memory.golden_bank.defect_index import DefectIndex
from refdiff.memory.golden_bank.golden import (
    IN_USE,
    STATUSES,
    Golden,
    GoldenHit,
    GoldenStatus,
    golden_id_of,
    point_id,
)
from refdiff.memory.golden_bank.similarity import candidates_of, ranked, unit_rows
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import (
    InputError,
    RefDiffError,
    StorageError,
    UnavailableError,
    UnknownProductError,
    UnknownRecordError,
    no_goldens,
    other_encoder_note,
)

PREFIX = "refdiff_goldens_"
_PAGE = 1000
_SHOWN = 5  # damaged goldens that a message names
MAX_CACHED = 4096  # goldens whose patches stay in memory: 66 MB at 36 x 112
_MOST_PRODUCTS = 100_000
_CHANGING_S = 30.0  # that one waits for another who changes the same golden
_AGAIN_S = 0.5  # after which a write that a server did not answer is sent once more

log = logging.getLogger(__name__)


class GoldenBank(contextlib.AbstractContextManager["GoldenBank"]):
    """An open bank; a context manager; safe to share between threads.

    Every method raises UnavailableError (server) or StorageError (embedded) where Qdrant fails.
    """

    def __init__(
        self,
        connection: QdrantConnection,
        fingerprint: str,
        global_dim: int,
        patch_dim: int,
        chain: Database | None = None,
    ) -> None:
        """The bank on an open connection, before its collection is checked; `open` does both."""
        self._connection = connection
        self._chain = chain
        self._client: QdrantClient = connection.client
        self._fingerprint = fingerprint
        self._name = PREFIX + fingerprint
        self._dims = (global_dim, patch_dim)
        # Embedded Qdrant is not made for threads; the server's client is.
        self._mutex: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if connection.file is None else threading.RLock()
        )
        # Embedded, evaluating a filter costs 60 us per golden (120 ms at 2000),
        # so the payloads are held here and filtering is a look-up. A server has indexes. What another process that shares
        # the file writes there is taken over before the next use.
        self._catalogue: dict[int, Golden] | None = None
        self._checksums: dict[int, tuple[int, int]] = {}  # of the file, as it was taken over last
        self._damaged: dict[str, DamagedGolden] = {}
        self._patch_cache: dict[int, Vectors] = {}
        self._defects: dict[str, DefectIndex] = {}
        self._search_params: qm.SearchParams | None = None
        self._shard_keys: set[str] | None = None  # products with shards of their own; None: shards are of no product
        self._differences: builtins.list[str] = []

    @classmethod
    def open(
        cls,
        settings: MemorySettings,
        encoder_fingerprint: str,
        global_dim: int,
        patch_dim: int,
        chain: Database | None = None,
        shared: bool = False,
    ) -> GoldenBank:
        """Open the bank of that encoder, created if new: under `settings.home`, or on the server `qdrant_url`.

        global_dim, patch_dim: sizes of the encoder's vectors. chain: the main database, whose audit chain records each
        change before the bank makes it; None for a bank that decides nothing. shared: beside other processes that share the
        embedded bank; each sees what the others change. Raises BankBusyError if another process still
        holds the embedded bank after `settings.bank_wait_s`, UnavailableError if the server does not answer,
        StorageError if the files cannot be read or written or hold vectors of other sizes.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", encoder_fingerprint):
            raise RefDiffError(f"encoder fingerprint {encoder_fingerprint!r} cannot name a collection")
        connection = QdrantConnection(settings, shared)
        try:
            bank = cls(connection, encoder_fingerprint, global_dim, patch_dim, chain)
            with bank._qdrant() as client:
                bank._ensure_collection(client)
                bank._read_file(client)
        except BaseException:
            connection.close()
            raise
        return bank

    def close(self) -> None:
        """Close the connection, and let another process have the embedded bank."""
        with self._mutex:
            self._connection.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- writing

    def add(self, golden: Golden, global_vec: Vectors, patches: Vectors, by: str = "") -> bool:
        """Enrol a golden, durably on return. False, and nothing changes, if it is there already, also as retired.

        global_vec: (Dg,) float32; patches: (N, Dp) float32, N >= 1. by: who does it; default: who enrolled it.
        """
        self._check_vectors(global_vec, patches)
        _check_status(golden.status)
        point = point_id(golden.golden_id)
        with self._qdrant() as client:
            earlier = self._find(client, point)
            if earlier is not None:
                if (earlier.product, earlier.sha256) != (golden.product, golden.sha256):
                    raise RefDiffError(f"golden id {golden.golden_id} is taken by {earlier.filename or earlier.sha256}")
                return False
            stored = StoredGolden(golden, unit_rows(global_vec), unit_rows(patches))
            with recorded(self._chain, GOLDEN, golden.golden_id, by or golden.enrolled_by, None, dict(vars(golden))):
                if self._connection.file is not None:
                    self._connection.file.put(self._fingerprint, stored)
                    self._hold(client, [stored])
                    self._damaged.pop(golden.golden_id, None)
                else:
                    # two processes may enrol the same photo on a server: the first one's payload stays, unless it is damaged
                    replaces = self._damaged.pop(golden.golden_id, None)
                    mode = qm.UpdateMode.UPSERT if replaces else qm.UpdateMode.INSERT_ONLY
                    shard, points = self._shard_of(client, golden.product, made=True), [_point(stored)]
                    _twice(
                        lambda: client.upsert(
                            self._name, points=points, wait=True, update_mode=mode, shard_key_selector=shard
                        )
                    )
        return True

    def flag(self, golden_id: str, note: str) -> Golden | None:
        """Flag a golden for a person to check; None for one that a person has looked at (it has a note), or that is not
        active. Raises UnknownRecordError."""
        with self._changing(golden_id) as (client, before):
            if before.status != "active" or before.note:
                return None
            return self._set_status(client, before, "flagged", note, "refdiff")

    def set_status(self, golden_id: str, status: GoldenStatus, note: str = "", by: str = "refdiff") -> Golden:
        """Flag, retire or reactivate a golden, saying why. by: who does it. Raises UnknownRecordError."""
        _check_status(status)
        with self._changing(golden_id) as (client, before):
            return self._set_status(client, before, status, note, by)

    @contextlib.contextmanager
    def _changing(self, golden_id: str) -> Iterator[tuple[QdrantClient, Golden]]:
        """A golden as it is, which nobody else changes until the block ends, in any process."""
        busy = UnavailableError(f"golden {golden_id} is being changed by somebody else; try again")
        alone = self._chain.lock(f"golden {golden_id}", busy, wait_s=_CHANGING_S) if self._chain else None
        with alone or contextlib.nullcontext(), self._qdrant() as client:
            yield client, self.get(golden_id)

    def _set_status(self, client: QdrantClient, before: Golden, status: GoldenStatus, note: str, by: str) -> Golden:
        golden = replace(before, status=status, note=note)
        with recorded(self._chain, GOLDEN, golden.golden_id, by, dict(vars(before)), dict(vars(golden))):
            self._write_status(client, golden)
        return golden

    def _write_status(self, client: QdrantClient, golden: Golden) -> None:
        if self._connection.file is not None:
            self._connection.file.set_record(self._fingerprint, golden)
        shard, point = self._shard_of(client, golden.product), point_id(golden.golden_id)
        payload = {"status": golden.status, "note": golden.note}
        _twice(
            lambda: client.set_payload(self._name, payload=payload, points=[point], wait=True, shard_key_selector=shard)
        )
        if self._catalogue is not None:
            self._catalogue[point] = golden

    # -- reading

    def nearest(
        self,
        product: str,
        global_vec: Vectors,
        patches: Vectors,
        k: int,
        exclude_ids: Iterable[str] = (),
        exclude_groups: Iterable[str] = (),
        statuses: Sequence[GoldenStatus] = IN_USE,
    ) -> builtins.list[GoldenHit]:
        """The k goldens of that product most similar to the query, best first; fewer if there are not enough.

        global_vec: (Dg,) float32; patches: (N, Dp) float32. Candidates are the max(32, 4k) nearest by
        `global`; they are ranked by MaxSim (ColBERT, arXiv:2004.12832, eq. 3) divided by N.
        """
        if k < 1:
            raise InputError(f"{k} references: ask for 1 or more")
        self._check_vectors(global_vec, patches)
        wanted = candidates_of(k)
        wish = _Wish(product, tuple(statuses), frozenset(point_id(i) for i in exclude_ids), frozenset(exclude_groups))
        with self._qdrant() as client:
            candidates = self._candidates if self._catalogue is None else self._candidates_embedded
            found = candidates(client, wish, global_vec, wanted)
            # Embedded Qdrant computes MaxSim over the whole collection, whatever the filter or prefetch (220 ms
            # at 2000 goldens), so only the candidates' patches are fetched, and ranked here.
            vectors = self._patches_of(client, list(found))
        return ranked([(*found[i], vectors[i]) for i in found if i in vectors], patches, k)

    def list(self, product: str | None = None, statuses: Sequence[GoldenStatus] | None = None) -> builtins.list[Golden]:
        """Goldens of that product and those statuses (None: any), oldest first."""
        wish = _Wish(product, None if statuses is None else tuple(statuses))
        with self._qdrant() as client:
            if self._catalogue is not None:
                goldens = [golden for point, golden in self._catalogue.items() if wish.fits(point, golden)]
            else:
                shard = self._shard_of(client, product)
                goldens = [golden for _, golden in self._scroll(client, wish.filter(), shard=shard)]
        return sorted(goldens, key=lambda g: (g.enrolled_at, g.golden_id))

    def get(self, golden_id: str) -> Golden:
        """The golden of that id, of any status. Raises UnknownRecordError."""
        with self._qdrant() as client:
            golden = self._find(client, point_id(golden_id))
        if golden is None:
            damaged = self._damaged.get(golden_id)
            raise UnknownRecordError(
                f"golden {damaged.name} is damaged ({damaged.reason}); restore it: refdiff goldens reenroll"
                if damaged
                else f"no golden {golden_id} in the bank; see `refdiff goldens list`"
            )
        return golden

    def vectors(self, golden_id: str) -> tuple[Vectors, Vectors]:
        """(global (Dg,), patches (N, Dp)) of a golden, float32 unit norm. Raises UnknownRecordError."""
        with self._qdrant() as client:
            records = client.retrieve(self._name, [point_id(golden_id)], with_payload=False, with_vectors=True)
        if not records:
            raise UnknownRecordError(f"no golden {golden_id} in the bank; see `refdiff goldens list`")
        return _vector(records[0], "global"), _vector(records[0], "patches")

    def count(self, product: str | None = None, statuses: Sequence[GoldenStatus] | None = None) -> int:
        """How many goldens that product has in those statuses (None: any product, any status)."""
        if self._catalogue is not None:
            return len(self.list(product, statuses))
        wish = _Wish(product, None if statuses is None else tuple(statuses))
        with self._qdrant() as client:
            shard = self._shard_of(client, product)
            return client.count(self._name, count_filter=wish.filter(), exact=True, shard_key_selector=shard).count

    def products(self) -> builtins.list[str]:
        """Names of the products that have goldens of any status, sorted."""
        with self._qdrant() as client:
            if self._catalogue is not None:
                return sorted({golden.product for golden in self._catalogue.values()})
            # readiness is asked for by this: a server counts in its index and does not read a million golden samples
            found = client.facet(self._name, "product", limit=_MOST_PRODUCTS, exact=True)
        return sorted(str(hit.value) for hit in found.hits)

    def differences(self) -> builtins.list[str]:
        """In words, how a server's collection differs from one that would be made now: it is used as it is."""
        return self._differences

    def damaged(self) -> builtins.list[DamagedGolden]:
        """Goldens that are kept and cannot be read, by id; they are in no list and not compared with."""
        return sorted(self._damaged.values(), key=lambda d: d.golden_id)

    def of_other_encoders(self, product: str | None = None) -> builtins.list[Golden]:
        """Goldens that were enrolled with other weights or another working size, and not with these; oldest first.

        Their vectors cannot be compared with those of this encoder, so no other method returns them. Enrolled with
        several encoders, a golden has the strictest of its statuses.
        """
        with self._qdrant() as client:
            if self._connection.file is not None:
                found = self._connection.file.records_of_others(self._fingerprint)
            else:
                names = [c.name for c in client.get_collections().collections]
                others = [n for n in names if n.startswith(PREFIX) and n != self._name]
                wanted = _Wish(product).filter()
                found = [golden for name in others for _, golden in self._scroll(client, wanted, name)]
        missing: dict[str, Golden] = {}
        here = {g.golden_id for g in self.list(product)}
        for golden in sorted(found, key=lambda g: STATUSES.index(g.status)):
            if golden.golden_id not in here and product in (None, golden.product):
                missing[golden.golden_id] = golden
        return sorted(missing.values(), key=lambda g: (g.enrolled_at, g.golden_id))

    def no_goldens(self, product: str, part_id: str | None = None) -> UnknownProductError:
        """The error for a product without goldens in use here: names the products that have some, or the way out."""
        return no_goldens(product, self.products(), part_id, len(self.of_other_encoders(product)))

    def notes(self, product: str | None = None) -> builtins.list[str]:
        """What people should know about goldens that are kept and not in use here, in words."""
        others = len(self.of_other_encoders(product))  # it reads all, so damage is known then
        damaged = [d for d in self.damaged() if product is None or d.golden is None or d.golden.product == product]
        return [*([damage_note(damaged)] if damaged else []), *([other_encoder_note(others)] if others else [])]

    def defects(self, weights: str, dim: int) -> DefectIndex:
        """The named defects as seen by those weights (their digest). dim: of their vectors."""
        with self._mutex:
            return self._defects.setdefault(weights, DefectIndex(self._qdrant, weights, dim))

    # -- inside

    @contextlib.contextmanager
    def _qdrant(self) -> Iterator[QdrantClient]:
        with self._mutex, self._connection.errors():
            self._follow()
            yield self._client

    def _follow(self) -> None:
        """Embedded and shared: take over what other processes have written since."""
        file = self._connection.file
        if file is None or not self._connection.shared or self._catalogue is None or not file.has_changed():
            return
        there = file.checksums(self._fingerprint)
        changed = [point for point, sums in there.items() if self._checksums.get(point) != sums]
        for entry in file.read_points(self._fingerprint, self._dims, changed):
            if isinstance(entry, StoredGolden):
                golden_id = entry.golden.golden_id
                self._damaged.pop(golden_id, None)
                # Qdrant writes into the vectors of a point that it replaces
                own = replace(entry, global_vec=entry.global_vec.copy(), patches=entry.patches.copy())
                self._hold(self._client, [own])
            else:
                golden_id = entry.golden_id
                self._damaged[golden_id] = entry
            point = point_id(golden_id)
            self._patch_cache = {i: v for i, v in self._patch_cache.items() if i != point}
        self._checksums = there

    def _read_file(self, client: QdrantClient) -> None:
        """Embedded: fill Qdrant from the file, without what is damaged there."""
        if self._connection.file is None:
            return
        if self._connection.shared:
            self._connection.file.has_changed()  # before it is read: what is written meanwhile is read again
            self._checksums = self._connection.file.checksums(self._fingerprint)
        self._catalogue = {}
        entries = self._connection.file.read(self._fingerprint, self._dims)
        while page := builtins.list(itertools.islice(entries, _PAGE)):
            self._hold(client, [e for e in page if isinstance(e, StoredGolden)])
            self._damaged.update({e.golden_id: e for e in page if isinstance(e, DamagedGolden)})
        if self._damaged:
            log.warning("%s: %s", self._connection.path, damage_note(self.damaged()))

    def _hold(self, client: QdrantClient, stored: builtins.list[StoredGolden]) -> None:
        """Put goldens of the file into Qdrant's memory and the catalogue."""
        if stored:
            client.upsert(self._name, points=[_point(s, as_arrays=True) for s in stored])
        if self._catalogue is not None:
            self._catalogue.update({point_id(s.golden.golden_id): s.golden for s in stored})

    def _ensure_collection(self, client: QdrantClient) -> None:
        settings = None if self._connection.file is not None else self._connection.settings
        if not client.collection_exists(self._name):
            vectors = collection.vectors_config(*self._dims, settings)
            shards = {} if settings is None else collection.shards_config(settings)
            try:
                client.create_collection(self._name, vectors_config=vectors, **shards)
            except UnexpectedResponse as e:
                if e.status_code != 409:  # 409: another process made it at the same moment
                    raise
        info = client.get_collection(self._name)
        dims = collection.dims_of(info)
        if dims != self._dims:
            raise StorageError(
                f"collection {self._name} holds vectors of sizes {dims}, this encoder makes {self._dims}; "
                "delete the collection and enrol the goldens again"
            )
        if settings is None:  # embedded Qdrant ignores payload indexes, and warns
            return
        for field in collection.INDEXED:
            if field not in info.payload_schema:
                schema = collection.index_config(field)
                client.create_payload_index(self._name, field_name=field, field_schema=schema, wait=True)
        self._search_params = collection.search_params(info)
        self._shard_keys = set() if collection.by_product(info) else None
        self._differences = collection.differences(settings, info)
        if self._differences:
            log.warning("%s: %s; see docs/operations.md, Qdrant server", self._name, "; ".join(self._differences))

    def _shard_of(self, client: QdrantClient, product: str | None, made: bool = False) -> str | None:
        """The key of a product's shards, for a collection that has such. None: ask all shards. made: made if it has none."""
        if self._shard_keys is None or product is None:
            return None
        if product not in self._shard_keys:
            self._shard_keys = self._kept_shards(client)
        if product not in self._shard_keys and made:
            try:
                client.create_shard_key(self._name, product)
            except UnexpectedResponse:
                if product not in self._kept_shards(client):  # else another process made it at the same moment
                    raise
            self._shard_keys = {*self._shard_keys, product}
        return product if product in self._shard_keys else None

    def _kept_shards(self, client: QdrantClient) -> set[str]:
        return {str(kept.key) for kept in client.list_shard_keys(self._name).shard_keys or []}

    def _find(self, client: QdrantClient, point: int) -> Golden | None:
        if self._catalogue is not None:
            return self._catalogue.get(point)
        records = client.retrieve(self._name, [point], with_payload=True)
        return self._sound(records[0]) if records else None

    def _sound(self, record: qm.Record | qm.ScoredPoint) -> Golden | None:
        """The golden of a server's point; None, and it is noted, where it is damaged."""
        golden_id = str(record.id)
        try:
            golden_id = golden_id_of(cast(int, record.id))
            golden = check_record(record.payload, golden_id)
        except (ValueError, TypeError) as e:
            self._damaged[golden_id] = DamagedGolden(golden_id, str(e))
            return None
        self._damaged.pop(golden_id, None)
        return golden

    def _scroll(
        self, client: QdrantClient, wanted: qm.Filter | None, name: str | None = None, shard: str | None = None
    ) -> Iterator[tuple[int, Golden]]:
        offset: Any = None
        while True:
            records, offset = client.scroll(
                name or self._name,
                scroll_filter=wanted,
                limit=_PAGE,
                offset=offset,
                with_payload=True,
                with_vectors=False,
                shard_key_selector=shard,
            )
            for record in records:
                golden = self._sound(record)
                if golden is not None:
                    yield cast(int, record.id), golden
            if offset is None:
                return

    def _candidates(
        self, client: QdrantClient, wish: _Wish, global_vec: Vectors, wanted: int
    ) -> dict[int, tuple[Golden, float]]:
        """{point id: (golden, cosine)} of the `wanted` nearest by `global`; Qdrant filters."""
        response = client.query_points(
            self._name,
            query=unit_rows(global_vec).tolist(),
            using="global",
            limit=wanted,
            query_filter=wish.filter(),
            search_params=self._search_params,
            with_payload=True,
            shard_key_selector=self._shard_of(client, wish.product),
        )
        found = [(cast(int, p.id), self._sound(p), p.score) for p in response.points]
        return {point: (golden, score) for point, golden, score in found if golden is not None}

    def _candidates_embedded(
        self, client: QdrantClient, wish: _Wish, global_vec: Vectors, wanted: int
    ) -> dict[int, tuple[Golden, float]]:
        """As `_candidates`, for embedded Qdrant: search unfiltered, filter in memory, widen the search if too few match."""
        catalogue = self._catalogue or {}
        found: dict[int, tuple[Golden, float]] = {}
        for limit in (4 * wanted + len(wish.skip), len(catalogue)):
            if not catalogue:
                break
            response = client.query_points(
                self._name, query=unit_rows(global_vec).tolist(), using="global", limit=limit, with_payload=False
            )
            hits = [(cast(int, p.id), p.score) for p in response.points]
            known = [(i, catalogue[i], score) for i, score in hits if i in catalogue]
            fitting = [(i, (golden, score)) for i, golden, score in known if wish.fits(i, golden)]
            found = dict(fitting[:wanted])
            if len(found) == wanted or limit >= len(catalogue):
                break
        return found

    def _patches_of(self, client: QdrantClient, ids: builtins.list[int]) -> dict[int, Vectors]:
        """{point id: (N, Dp) patches}. Patches of a golden never change, so those used lately stay in memory."""
        cache = self._patch_cache  # another thread may replace it meanwhile
        known = {i: cache[i] for i in ids if i in cache}
        missing = [i for i in ids if i not in known]
        if missing:
            records = client.retrieve(self._name, missing, with_payload=False, with_vectors=["patches"])
            fresh = {cast(int, r.id): _vector(r, "patches") for r in records}
            self._patch_cache = fresh if len(cache) + len(fresh) > MAX_CACHED else cache | fresh
            known |= fresh
        return known

    def _check_vectors(self, global_vec: Vectors, patches: Vectors) -> None:
        global_dim, patch_dim = self._dims
        if global_vec.shape != (global_dim,) or patches.ndim != 2 or patches.shape[1] != patch_dim:
            raise RefDiffError(
                f"vectors of shapes {global_vec.shape} and {patches.shape}; this bank holds ({global_dim},) "
                f"and (N, {patch_dim}): open it with the encoder's own sizes"
            )
        if not len(patches) or not (np.isfinite(global_vec).all() and np.isfinite(patches).all()):
            raise RefDiffError("vectors are empty or not finite: the image cannot have been encoded correctly")


@dataclass(frozen=True)
class _Wish:
    """Which goldens to return."""

    product: str | None = None  # None: any
    statuses: tuple[GoldenStatus, ...] | None = None  # None: any
    skip: frozenset[int] = frozenset()  # ids of points to leave out
    groups: frozenset[str] = frozenset()  # part groups to leave out

    def fits(self, point: int, golden: Golden) -> bool:
        return (
            self.product in (None, golden.product)
            and (self.statuses is None or golden.status in self.statuses)
            and point not in self.skip
            and golden.part_group not in self.groups
        )

    def filter(self) -> qm.Filter | None:
        """The wish as a Qdrant filter; None if any golden fits."""
        must: list[qm.Condition] = []
        must_not: list[qm.Condition] = []
        if self.product is not None:
            must.append(qm.FieldCondition(key="product", match=qm.MatchValue(value=self.product)))
        if self.statuses is not None:
            must.append(qm.FieldCondition(key="status", match=qm.MatchAny(any=[str(s) for s in self.statuses])))
        if self.skip:
            must_not.append(qm.HasIdCondition(has_id=sorted(self.skip)))
        if self.groups:
            must_not.append(qm.FieldCondition(key="part_group", match=qm.MatchAny(any=sorted(self.groups))))
        return qm.Filter(must=must or None, must_not=must_not or None) if must or must_not else None


def _twice(write: Callable[[], object]) -> None:
    """Make a write that may be made twice. Where no answer came, a server may have made it or not: say it once more."""
    try:
        write()
    except (ResponseHandlingException, UnexpectedResponse) as e:
        if isinstance(e, UnexpectedResponse) and (e.status_code or 0) < 500:
            raise
        time.sleep(_AGAIN_S)
        write()


def damage_note(damaged: Sequence[DamagedGolden]) -> str:
    """What to tell people about goldens that cannot be read, and the way out."""
    shown = "; ".join(f"{d.name}: {d.reason}" for d in damaged[:_SHOWN])
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    counted = "1 damaged golden sample is" if len(damaged) == 1 else f"{len(damaged)} damaged golden samples are"
    return f"{counted} not in use ({shown}{more}); restore from the stored photos: refdiff goldens reenroll"


def _point(stored: StoredGolden, as_arrays: bool = False) -> qm.PointStruct:
    """as_arrays: for Qdrant in memory, which takes arrays (pydantic would refuse them) 5 times faster than lists."""
    point, payload = point_id(stored.golden.golden_id), dict(vars(stored.golden))
    arrays = {"global": stored.global_vec, "patches": stored.patches}
    if as_arrays:
        return qm.PointStruct.model_construct(id=point, vector=arrays, payload=payload)
    return qm.PointStruct(id=point, vector={k: v.tolist() for k, v in arrays.items()}, payload=payload)


def _vector(record: qm.Record, name: str) -> Vectors:
    return np.asarray(cast(dict[str, Any], record.vector)[name], dtype=np.float32)


def _check_status(status: str) -> None:
    if status not in STATUSES:
        raise InputError(f"status {status!r}: a golden is one of {', '.join(STATUSES)}")
