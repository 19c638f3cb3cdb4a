"""Retrieval of golden samples from 1,000 to a million, in Qdrant's own engine (qdrant-edge-py) and in the embedded bank.

python tests/bench/golden_bank.py --goldens 1000 --goldens 100000
python tests/bench/golden_bank.py --goldens 1000000 --kept plain --kept int8+disk    # 17 GB of disk, an hour on two cores

The engine is the one of Qdrant's server, in this process: no HTTP and no cluster is measured. Collections are laid out as
`refdiff.memory.golden_bank.collection` has a server do it; `before` is as it was until then, `binary` is not offered.
Vectors: photos of rendered parts as the encoder sees them, and more of them drawn from their covariance: products from that
of designs, golden samples from that within designs. Sizes of products follow Zipf's law.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge
import qdrant_engine as engine
from numpy.typing import NDArray
from qdrant_client import models as qm

from refdiff.memory.golden_bank import collection
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.golden_bank.bank_file import BankFile, StoredGolden
from refdiff.memory.golden_bank.golden import IN_USE, Golden, make_golden_id, point_id
from refdiff.memory.golden_bank.similarity import candidates_of, max_sim, unit_rows
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.encoder import Encoder
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.materials import PART_KINDS
from refdiff.model.synthesis.render import random_light, random_pose, render

F32 = NDArray[np.float32]
KEPT = ("before", "plain", "int8", "int8+disk", "binary", "binary+disk", "embedded")
_DESIGNS, _PHOTOS = 24, 6  # of each kind of part
_PAGE = 5000
_WANTED = candidates_of(5)
_STATUSES: list[str] = list(IN_USE)


@dataclass(frozen=True)
class Cloud:
    """Where vectors lie: `global` (640) and `patches` (36 x 112) of a golden as one row."""

    mean: F32  # (D,)
    designs: F32  # (n, D) deviations of designs from the mean
    photos: F32  # (m, D) deviations of photos from their design's mean
    split: int  # where `patches` begin
    patch_dim: int

    @classmethod
    def rendered(cls) -> Cloud:
        """From the photos of rendered parts."""
        with tempfile.TemporaryDirectory() as cache:
            encoder = Encoder(ModelSettings(cache=Path(cache), working_px=320))
            rng = np.random.default_rng(0)
            rows = []
            for kind in PART_KINDS:
                for design in range(_DESIGNS):
                    for i in range(_PHOTOS):
                        photo = render(kind, design, i, pose=random_pose(rng), light=random_light(rng), noise_seed=i)
                        seen = encoder.embed(photo.image)
                        rows.append(np.concatenate([seen.global_vec, seen.patches.ravel()]))
            of_designs = np.array(rows, np.float32).reshape(-1, _PHOTOS, rows[0].size)
            means = of_designs.mean(1)
            within = (of_designs - means[:, None]).reshape(-1, rows[0].size) * np.sqrt(_PHOTOS / (_PHOTOS - 1))
            mean = means.mean(0)
            return cls(mean, means - mean, within, encoder.global_dim, encoder.patch_dim)

    def products(self, count: int) -> F32:
        """(count, D) means of products."""
        return self.mean + self._drawn(self.designs, np.random.default_rng(1), count)

    def goldens(self, means: F32, seed: int) -> tuple[F32, F32]:
        """`global` (n, Dg) and `patches` (n, N, Dp), unit norm, of a golden of each of those products. means: (n, D)."""
        rows = means + self._drawn(self.photos, np.random.default_rng((2, seed)), len(means))
        return unit_rows(rows[:, : self.split]), unit_rows(rows[:, self.split :].reshape(len(rows), -1, self.patch_dim))

    @staticmethod
    def _drawn(deviations: F32, rng: np.random.Generator, count: int) -> F32:
        weights = rng.standard_normal((count, len(deviations)), dtype=np.float32)
        drawn: F32 = (weights / np.float32(np.sqrt(len(deviations)))) @ deviations
        return drawn


@dataclass(frozen=True)
class Goldens:
    """`count` golden samples; any page of them is drawn anew whenever it is asked for."""

    cloud: Cloud
    count: int

    def __post_init__(self) -> None:
        products = max(10, round(self.count**0.5))
        share = 1 / np.arange(1, products + 1)
        of = np.random.default_rng(3).choice(products, self.count, p=share / share.sum())
        object.__setattr__(self, "of", of)  # (count,) product of each: in the order of enrolment, products mix
        object.__setattr__(self, "means", self.cloud.products(products))

    of: Any = None
    means: Any = None

    def pages(self) -> Iterator[tuple[NDArray[np.int64], F32, F32]]:
        """Numbers, `global` and `patches` of up to _PAGE golden samples at a time."""
        for page, start in enumerate(range(0, self.count, _PAGE)):
            numbers = np.arange(start, min(start + _PAGE, self.count))
            yield numbers, *self.cloud.goldens(self.means[self.of[numbers]], page)

    def golden(self, number: int) -> Golden:
        product, sha256 = f"product {self.of[number]}", f"{number:064x}"
        return Golden(make_golden_id(product, sha256), product, sha256, filename=f"{number}.png", enrolled_by="bench")

    def queries(self, count: int) -> list[tuple[int, F32, F32]]:
        """Product, `global` and `patches` of photos of parts; products as often as they have golden samples."""
        of = np.random.default_rng(4).choice(self.of, count)
        return [
            (int(p), g, patches)
            for p, g, patches in zip(of, *self.cloud.goldens(self.means[of], -1 % 2**32), strict=True)
        ]


class Memory:
    """MB that this process holds: its own, and of files; and the peak of its own while `watched`."""

    def __init__(self) -> None:
        self.peak = 0.0
        self._stop = threading.Event()

    @staticmethod
    def now() -> tuple[float, float]:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own, files = (int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
        return own, files

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self.peak = max(self.peak, self.now()[0])


class Exact:
    """The nearest by `global` of a product, by comparing with all of them."""

    def __init__(self, goldens: Goldens, queries: list[tuple[int, F32, F32]]) -> None:
        self._asked = {product for product, _, _ in queries}
        self._goldens, self._kept = goldens, {product: ([], []) for product in self._asked}  # type: ignore[var-annotated]

    def see(self, numbers: NDArray[np.int64], vectors: F32, points: list[int]) -> None:
        of = self._goldens.of[numbers]
        for product in np.unique(of):
            if product in self._asked:
                mine = np.flatnonzero(of == product)
                self._kept[product][0].extend(points[i] for i in mine)
                self._kept[product][1].append(vectors[mine])

    def nearest(self, product: int, vector: F32) -> set[int]:
        points, pages = self._kept[product]
        scores = np.concatenate([page @ vector for page in pages])
        return {points[i] for i in np.argsort(-scores)[:_WANTED]}


def measure_engine(goldens: Goldens, kept: str, folder: Path, count: int) -> dict[str, Any]:
    """In Qdrant's engine, kept that way."""
    queries = goldens.queries(count)
    exact = Exact(goldens, queries)
    how, _, disk = kept.partition("+")
    settings = MemorySettings(
        home=folder,
        qdrant_url="http://unused",
        qdrant_quantization="int8" if how == "int8" else "none",
        qdrant_on_disk=bool(disk),
    )
    vectors = collection.vectors_config(
        goldens.cloud.split, goldens.cloud.patch_dim, None if how == "before" else settings
    )
    if how == "binary":
        vectors["global"].quantization_config = qm.BinaryQuantization(
            binary=qm.BinaryQuantizationConfig(always_ram=True)
        )
    own = Memory.now()[0]
    with Memory() as memory:
        shard = edge.EdgeShard.create(str(folder), engine.config(vectors, wal_enabled=False))
        for field in collection.INDEXED:
            index = collection.index_config(field)
            if how == "before":
                index = qm.KeywordIndexParams(type=qm.KeywordIndexType.KEYWORD, is_tenant=field == "product")
            shard.update(edge.UpdateOperation.create_field_index(field, engine.index(index)))
        adding, building, since = 0.0, 0.0, 0
        for numbers, global_vecs, patches in goldens.pages():
            samples = [goldens.golden(int(n)) for n in numbers]
            points = [point_id(g.golden_id) for g in samples]
            exact.see(numbers, global_vecs, points)
            begun = time.perf_counter()
            shard.update(
                edge.UpdateOperation.upsert_points(
                    [
                        edge.Point(p, {"global": g, "patches": m}, vars(golden))
                        for p, golden, g, m in zip(points, samples, global_vecs, patches, strict=True)
                    ]
                )
            )
            adding += time.perf_counter() - begun
            since += len(numbers)
            if since >= 50_000 or numbers[-1] == goldens.count - 1:  # a server optimises while it takes in
                begun = time.perf_counter()
                shard.optimize()
                shard.close()  # only then are the files of segments that were built anew removed
                shard = edge.EdgeShard.load(str(folder))
                building += time.perf_counter() - begun
                since = 0
                say(f"{kept}: {numbers[-1] + 1} of {goldens.count}, {adding:.0f} s adding, {building:.0f} s building")
        shard.flush()
    segments = shard.info().segments_count
    shard.close()
    del shard
    gc.collect()
    drop_from_cache(folder)
    before = Memory.now()
    begun = time.perf_counter()
    shard = edge.EdgeShard.load(str(folder))
    opening = time.perf_counter() - begun

    info = qm.CollectionInfo.model_construct(
        config=qm.CollectionConfig.model_construct(
            params=qm.CollectionParams.model_construct(vectors=vectors), quantization_config=None
        )
    )
    params = collection.search_params(info)
    if how == "binary" and params and params.quantization:
        params.quantization.oversampling = 4.0

    def asked(product: int, vector: F32, patches: F32) -> tuple[set[int], list[float]]:
        """Points found; ms of finding them, of fetching their patches, and of ranking by these."""
        must = [
            qm.FieldCondition(key="product", match=qm.MatchValue(value=f"product {product}")),
            qm.FieldCondition(key="status", match=qm.MatchAny(any=_STATUSES)),
        ]
        laps = [time.perf_counter()]
        found = shard.query(engine.query(vector, "global", _WANTED, qm.Filter(must=must), params, True))
        laps.append(time.perf_counter())
        records = shard.retrieve([p.id for p in found], with_payload=False, with_vector=["patches"])
        fetched = [np.asarray(r.vector["patches"], np.float32) for r in records]
        laps.append(time.perf_counter())
        max_sim(patches, fetched)
        laps.append(time.perf_counter())
        return {p.id for p in found}, [1000 * lap for lap in np.diff(laps)]

    cold = [asked(*query)[1] for query in queries[: count // 4]]
    for query in queries:
        asked(*query)
    answers = [asked(*query) for query in queries]
    own_after, of_files = Memory.now()
    recalls, same_best = [], []
    for (found, _), (product, vector, patches) in zip(answers, queries, strict=True):
        right = exact.nearest(product, vector)
        recalls.append(len(found & right) / len(right))
        records = shard.retrieve(sorted(right), with_payload=False, with_vector=["patches"])
        best = np.argmax(max_sim(patches, [np.asarray(r.vector["patches"], np.float32) for r in records]))
        same_best.append(records[best].id in found)
    largest = [recall for recall, (product, _, _) in zip(recalls, queries, strict=True) if product == 0]
    return {
        "goldens": goldens.count,
        "kept": kept,
        "products": len(goldens.means),
        "largest product": int((goldens.of == 0).sum()),
        "adding, s": round(adding, 1),
        "building, s": round(building, 1),
        "segments": segments,
        "opening, s": round(opening, 2),
        "own memory while building, MB": round(memory.peak - own),
        "own memory, MB": round(own_after - before[0]),
        "of files, MB": round(of_files - before[1]),
        "disk, MB": round(engine.size_of(folder) / 2**20),
        **times("candidates", [laps[0] for _, laps in answers]),
        **times("patches fetched", [laps[1] for _, laps in answers]),
        **times("ranked", [laps[2] for _, laps in answers]),
        **times("in all", [sum(laps) for _, laps in answers]),
        **times("in all, cold", [sum(laps) for laps in cold]),
        "recall": round(float(np.mean(recalls)), 4),
        "same nearest golden": round(float(np.mean(same_best)), 4),
        "recall, largest product": round(float(np.mean(largest)), 4) if largest else None,
    }


def measure(goldens: Goldens, kept: str, folder: Path, count: int) -> dict[str, Any]:
    """One row. folder: an empty one. count: of photos asked for."""
    if kept == "embedded":
        return measure_embedded(goldens, folder, count)
    return measure_engine(goldens, kept, folder, count)


def measure_embedded(goldens: Goldens, folder: Path, count: int) -> dict[str, Any]:
    """The same of the embedded bank: the file, opened by the product."""
    queries = goldens.queries(count)
    settings = MemorySettings.of_folder(folder)

    def stored() -> Iterator[tuple[str, StoredGolden]]:
        for numbers, global_vecs, patches in goldens.pages():
            samples = [goldens.golden(int(n)) for n in numbers]
            for golden, vector, own in zip(samples, global_vecs, patches, strict=True):
                yield "bench", StoredGolden(golden, vector, own)

    file = BankFile(folder / "goldens.sqlite")
    file.take_over(stored())
    file.close()
    before = Memory.now()
    begun = time.perf_counter()
    with GoldenBank.open(settings, "bench", goldens.cloud.split, goldens.cloud.patch_dim) as bank:
        opening = time.perf_counter() - begun
        laps = []
        for again in (False, True):
            for product, vector, patches in queries:
                begun = time.perf_counter()
                bank.nearest(f"product {product}", vector, patches, 5)
                if again:
                    laps.append(1000 * (time.perf_counter() - begun))
        own = Memory.now()[0]
    return {
        "goldens": goldens.count,
        "kept": "embedded",
        "products": len(goldens.means),
        "largest product": int((goldens.of == 0).sum()),
        "opening, s": round(opening, 2),
        "own memory, MB": round(own - before[0]),
        "disk, MB": round(engine.size_of(folder) / 2**20),
        **times("in all", laps),
    }


def times(name: str, laps: list[float]) -> dict[str, float]:
    """Median and 95th percentile, ms."""
    p50, p95 = np.percentile(laps, [50, 95])
    return {f"{name}, ms": round(float(p50), 2), f"{name}, p95": round(float(p95), 2)}


def drop_from_cache(folder: Path) -> None:
    """Have the operating system forget the files, as after a restart; what is still mapped stays."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--goldens", type=int, action="append", required=True)
    parser.add_argument("--kept", choices=KEPT, action="append", help="default: all")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder of temporary files")
    parser.add_argument("--cloud", type=Path, help="file of the vectors to draw from; made if it is not there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # of a process that this one starts
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="refdiff-bank-") as made:
        folder = Path(made)
        if args.one:
            with np.load(args.cloud) as kept_cloud:
                cloud = Cloud(**{name: array[()] for name, array in kept_cloud.items()})
            print(json.dumps(measure(Goldens(cloud, args.goldens[0]), args.kept[0], folder, args.queries)), flush=True)
            return
        kept_in = args.cloud or folder / "cloud.npz"
        if not kept_in.exists():
            np.savez(kept_in, **vars(Cloud.rendered()))
        for count in args.goldens:
            for kept in args.kept or KEPT:  # each row in a process of its own: its memory is that of the row
                command = [sys.executable, __file__, "--one", "--goldens", str(count), "--kept", kept, "--folder", made]
                subprocess.run([*command, "--queries", str(args.queries), "--cloud", str(kept_in)], check=True)


if __name__ == "__main__":
    main()
