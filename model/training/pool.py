"""A pool of training pairs on disk: encoded and matched once, read many times.

The encoder is frozen and matching has no parameters, so all that the network sees of a pair can be stored: training then
costs the network alone, and comparisons of networks see the same pairs. A pool is shards of 64 pairs, each made from its own
seed by any worker in any order; an interrupted run continues with the missing shards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from propcache.api import cached_property
from safetensors import safe_open
from torch import Tensor

from refdiff.model.difference.encoder import CHANNELS, WEIGHTS_SHA256
from refdiff.model.difference.matching import N_DISTANCES, STRIDES, Matched, ReferenceView, composite_reference, match
from refdiff.model.errors import InputError
from refdiff.model.files import remove_leftovers
from refdiff.model.images import grey_thumbnail
from refdiff.model.training.pairs import (
    NO_TYPE,
    PAIR_PX,
    Pair,
    Source,
    cell_targets,
    photo_pair,
    rendered_pair,
    surface_pair,
)
from refdiff.model.weights_file import need_space, save_tensors

SHARD = 64
PAIRS = ".safetensors"  # what the files of pairs end with
_RENDERED_SHARE = 0.4
_SURFACE_SHARE = 0.12
_MANY = 0.3  # part of the pairs with 2 to 4 references
_THUMB = 24


@dataclass(frozen=True)
class PoolPlan:
    """What a pool holds."""

    seed: int
    sources: tuple[Source, ...]
    encoder: str | None = None  # as in ModelSettings
    encoder_digest: str = WEIGHTS_SHA256  # of its weights
    channels: Mapping[int, int] = field(default_factory=lambda: CHANNELS)  # stride -> channels of its maps

    @cached_property
    def described(self) -> dict[str, object]:
        """What two pools must share to be one."""
        return {"seed": self.seed, "encoder": self.encoder_digest} | photos_of(self.sources)

    def bytes_per_pair(self) -> int:
        """What `_encoded` stores: maps and distances in half precision, two pictures, what is covered, mask and types."""
        maps = sum(2 * (2 * self.channels[s] + N_DISTANCES) * (PAIR_PX // s) ** 2 for s in STRIDES)
        return maps + 7 * PAIR_PX**2 + 2 * (PAIR_PX // 4) ** 2


@dataclass(frozen=True)
class Batch:
    """Network inputs and targets of B pairs."""

    matched: Matched
    query: Tensor  # (B, 3, H, W) uint8; of a pool 256 x 256
    reference: Tensor  # (B, 3, H, W) uint8
    covered: Tensor  # (B, H, W) bool
    mask: Tensor  # (B, H/4, W/4) 0/1
    types: Tensor  # (B, H/4, W/4), 255 = none
    label: Tensor  # (B,)
    known: Tensor  # (B,) 1 where the mask is the truth
    structural: Tensor  # (B,) 1/0, -1 = unknown
    source: Tensor  # (B,) index of source_names
    unsure: Tensor  # (B, H/4, W/4) bool: where the mask says nothing


class ByThumbnail:
    """Orders photos by how alike their thumbnails are."""

    def __init__(self, read: Callable[[Path], np.ndarray]) -> None:
        self._read = read
        self._known: dict[Path, np.ndarray] = {}

    def _thumb(self, path: Path) -> np.ndarray:
        if path not in self._known:
            small = grey_thumbnail(self._read(path), _THUMB).ravel()
            small -= small.mean()
            self._known[path] = small / (np.linalg.norm(small) + 1e-6)
        return self._known[path]

    def __call__(self, query: Path, candidates: Sequence[Path]) -> list[Path]:
        mine = self._thumb(query)
        return sorted(candidates, key=lambda p: -float(self._thumb(p) @ mine))


def source_names(sources: Sequence[Source]) -> list[str]:
    """What `Batch.source` counts."""
    return ["rendered", "surfaces", *(s.name for s in sources)]


def photos_of(sources: Sequence[Source]) -> dict[str, object]:
    """The names of sources, as `Batch.source` counts them, and a sha256 of all their photos and masks."""
    found = hashlib.sha256()
    for source in sources:
        for photo in (*source.good, *source.bad):
            for path in (photo.path, *photo.masks):
                try:
                    content = hashlib.sha256(path.read_bytes()).hexdigest()
                except OSError:  # what cannot be read is left out later, and named
                    content = "unreadable"
                found.update(f"{source.name} {path.name} {content}\n".encode("utf-8", "surrogateescape"))
    return {"sources": source_names(sources), "photos": found.hexdigest()}


def make_pair(plan: PoolPlan, rng: np.random.Generator, nearest: ByThumbnail) -> Pair:
    k = 1 if rng.random() >= _MANY else int(rng.integers(2, 5))
    draw = rng.random()
    if draw < _SURFACE_SHARE:
        return surface_pair(rng, k)
    if not plan.sources or draw < _SURFACE_SHARE + _RENDERED_SHARE:
        return rendered_pair(rng, k)
    weights = np.array([s.weight for s in plan.sources])
    source = plan.sources[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return photo_pair(source, rng, k, nearest)


def _make_shard(plan: PoolPlan, index: int, folder: Path, size: int) -> int:
    from refdiff.model.difference.encoder import Encoder
    from refdiff.model.settings import ModelSettings
    from refdiff.model.training.pairs import read_photo

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    encoder = Encoder(ModelSettings(working_px=256, threads=1, encoder=Path(plan.encoder) if plan.encoder else None))
    nearest = ByThumbnail(read_photo)
    names = source_names(plan.sources)
    rows: dict[str, list[Tensor]] = {}
    for i in range(size):
        pair = make_pair(plan, np.random.default_rng([plan.seed, index, i]), nearest)
        for name, value in _encoded(pair, encoder).items():
            rows.setdefault(name, []).append(value)
        rows.setdefault("source", []).append(torch.tensor(names.index(pair.source), dtype=torch.uint8))
    save_tensors({k: torch.stack(v) for k, v in rows.items()}, folder / f"{index:05d}.safetensors")
    return index


def _encoded(pair: Pair, encoder: object) -> dict[str, Tensor]:
    from refdiff.model.difference.encoder import Encoder

    assert isinstance(encoder, Encoder)
    images = [pair.query, *(r.image for r in pair.references)]
    features = encoder.embed_batch(images, pair.query.shape[:2])
    references = []
    for f, r in zip(features[1:], pair.references, strict=True):
        grid = f.maps[8].shape[-2:]
        cells = cv2.resize(r.covered.astype(np.float32), (grid[1], grid[0]), interpolation=cv2.INTER_AREA) > 0.5
        references.append(ReferenceView(f.maps, torch.from_numpy(cells), r.registered))
    matched = match(features[0].maps, references)
    pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    best = composite_reference(pictures[0], pictures[1:])
    covered = np.logical_and.reduce([r.covered for r in pair.references])
    covered &= all(r.registered for r in pair.references)
    row = network_row(matched, pictures[0].clone(), best, torch.from_numpy(covered))
    return row | target_row(pair.label, pair.mask, pair.types, pair.structural) | {"real": torch.tensor(pair.real)}


def network_row(matched: Matched, query: Tensor, reference: Tensor, covered: Tensor) -> dict[str, Tensor]:
    """What a network sees of one pair, as it is stored: query, reference (3, H, W) uint8, covered (H, W) bool."""
    parts = {"q": matched.query, "r": matched.reference, "d": matched.distances}
    maps = {f"{c}{s}": part[s][0].half() for c, part in parts.items() for s in STRIDES}
    return maps | {"query": query, "reference": reference, "covered": covered}


def target_row(
    label: bool, mask: NDArray[np.bool_] | None, types: NDArray[np.uint8], structural: bool | None
) -> dict[str, Tensor]:
    """The truth of one pair, as it is stored; see `Pair`."""
    cells, kinds = cell_targets(mask, types)
    return {
        "mask": torch.from_numpy(cells),
        "types": torch.from_numpy(kinds),
        "label": torch.tensor(label, dtype=torch.uint8),
        "known": torch.tensor(mask is not None, dtype=torch.uint8),
        "structural": torch.tensor(-1 if structural is None else int(structural), dtype=torch.int8),
    }


def describe_registered(folder: Path, sources: Sequence[Source], seed: int) -> None:
    """Say in a folder of registered pairs what they are of. Raises InputError where it holds pairs of something else."""
    wanted = {"registered": True, "seed": seed, "sizes": "tiles and whole"} | photos_of(sources)
    described = folder / "pool.json"
    if described.exists() and json.loads(described.read_text(encoding="utf-8")) != wanted:
        raise InputError(f"{folder} holds pairs of other photos or another seed; choose another --out or remove it")
    described.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


def registered_pairs(folder: Path, sources: Sequence[Source]) -> list[Path]:
    """Shards of registered pairs, each of one size. Raises InputError where there are none, or they are of other photos."""
    try:
        described = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
        found = sorted(folder.glob(f"*_*{PAIRS}"))
    except (OSError, ValueError):
        described, found = {}, []
    if not described.get("registered") or not found:
        raise InputError(f"{folder}: no registered pairs; make them with `refdiff train pairs --out {folder}`")
    if described["sources"] != source_names(sources) or described.get("photos") != photos_of(sources)["photos"]:
        raise InputError(
            f"{folder} holds pairs of other photos; give the same --research and --data as for `train pairs`, or make "
            "them again in another folder if photos have changed"
        )
    return found


def build_pool(
    plan: PoolPlan, folder: Path, pairs: int, workers: int, progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Make the shards that are missing. progress: shards done, in all. Raises StorageError where they do not fit."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    total = max(1, round(pairs / SHARD))
    (folder / "pool.json").write_text(json.dumps(plan.described, indent=1))
    missing = [i for i in range(total) if not (folder / f"{i:05d}.safetensors").exists()]
    done = total - len(missing)
    need_space(folder, len(missing) * SHARD * plan.bytes_per_pair(), f"{len(missing) * SHARD:,} pairs take")
    if progress:
        progress(done, total)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        try:
            for future in as_completed([executor.submit(_make_shard, plan, i, folder, SHARD) for i in missing]):
                future.result()
                done += 1
                if progress:
                    progress(done, total)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)  # the others would fail as this one did
            raise
    return [folder / f"{i:05d}.safetensors" for i in range(total)]


def read_shard(path: Path, rows: Sequence[int] | None = None) -> Batch:
    """Pairs of a shard (all, or some rows) as one batch."""
    with safe_open(path, "pt") as file:
        index = list(rows) if rows is not None else slice(None)
        return batch_of({k: file.get_tensor(k)[index] for k in file.keys()})  # noqa: SIM118 (no mapping)


def batch_of(t: Mapping[str, Tensor]) -> Batch:
    """A batch of stored rows, stacked."""
    matched = Matched(*({s: t[f"{c}{s}"].float() for s in STRIDES} for c in "qrd"))
    return Batch(
        matched, t["query"], t["reference"], t["covered"], t["mask"].float(), t["types"].long(), t["label"].float(),
        t["known"].float(), t["structural"].float(), t["source"].long(),
        t["unsure"].bool() if "unsure" in t else torch.zeros_like(t["mask"], dtype=torch.bool),
    )  # fmt: skip


def count_batches(shards: Sequence[Path], size: int, keep: Sequence[int] | None = None, real: bool = True) -> int:
    """How many batches one pass has."""
    return len(_plan(shards, size, np.random.default_rng(0), keep, real))


def batches(
    shards: Sequence[Path],
    size: int,
    rng: np.random.Generator,
    keep: Sequence[int] | None = None,
    real: bool = True,
    skip: int = 0,
) -> Iterator[Batch]:
    """Random batches for one pass: each from one shard, shards and rows shuffled. keep: source indices to use; real: real
    defects too; skip: how many batches of this pass an interrupted run has seen."""
    for path, rows in _plan(shards, size, rng, keep, real)[skip:]:
        yield read_shard(path, rows)


def _plan(
    shards: Sequence[Path], size: int, rng: np.random.Generator, keep: Sequence[int] | None, real: bool
) -> list[tuple[Path, list[int]]]:
    work: list[tuple[Path, list[int]]] = []
    for path in shards:
        with safe_open(path, "pt") as file:
            source, is_real = file.get_tensor("source").tolist(), file.get_tensor("real").tolist()
        rows = [
            i
            for i, (s, r) in enumerate(zip(source, is_real, strict=True))
            if (keep is None or s in keep) and (real or not r)
        ]
        order = [rows[j] for j in rng.permutation(len(rows))]
        # what is left over is a batch if it is more than half of one, or all there is: a small product trains, too
        starts = [i for i in range(0, len(order), size) if i == 0 or len(order) - i > size // 2]
        work += [(path, order[i : i + size]) for i in starts]
    return [work[j] for j in rng.permutation(len(work))]


__all__ = ["NO_TYPE", "SHARD", "Batch", "PoolPlan", "batches", "build_pool", "make_pair", "read_shard"]
