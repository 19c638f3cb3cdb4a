"""What the language model is trained on: recorded conversations, and judged pairs drawn as the difference network's are.

Pairs are encoded once (the seeing half is frozen) and kept as shards; an interrupted run continues with what is missing.
Zooms are cut as the agent's zoom does: a box and a quarter of its longer side round it, 48 px at least.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import safe_open

from refdiff.model.defect_types import DIFFERENCE_TYPES, NO_DEFECT, UNKNOWN
from refdiff.model.difference.encoder import load_efficientnet_lite0
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.difference.scorer import PACKAGED as DIFFERENCE
from refdiff.model.difference.scorer import read_network
from refdiff.model.errors import InputError
from refdiff.model.files import remove_leftovers
from refdiff.model.images import MIN_CROP_PX, Box, RgbImage, decode_image, widen
from refdiff.model.language.pair_tokens import PairFeatures, pair_features
from refdiff.model.language.processor import pair_pixels
from refdiff.model.training.pairs import NO_TYPE, Pair, Photo, Source, read_photo
from refdiff.model.training.pool import ByThumbnail, PoolPlan, make_pair
from refdiff.model.weights_file import need_space, save_tensors

PAIR_SIDE = 320
SHARD = 32
_ZOOMED = 0.5  # part of the drawn pairs that are zooms
_BOARDS = 0.4  # part of all pairs that are zooms of bare boards, where there are some
_MARGIN = 0.25


@dataclass(frozen=True)
class LabelledPair:
    """Reference and query on one grid, and the truth."""

    reference: RgbImage  # (H, W, 3) uint8
    query: RgbImage  # (H, W, 3) uint8
    defect: bool
    type: str  # NO_DEFECT if good, UNKNOWN if not known
    source: str


def seeing_half(weights: Path = DIFFERENCE) -> tuple[torch.nn.Module, DifferenceNetwork, str]:
    """Encoder, difference network, its sha256."""
    net, _, digest = read_network(weights)
    return load_efficientnet_lite0(), net, digest


# ---- drawing pairs ----


def judged_pair(sources: Sequence[Source], rng: np.random.Generator, nearest: ByThumbnail) -> LabelledPair:
    """A pair from any source, whole or zoomed."""
    boards = [s for s in sources if s.pixels_count]
    if boards and rng.random() < _BOARDS:
        return board_zoom(boards[int(rng.integers(len(boards)))], rng)
    plan = PoolPlan(0, tuple(sources))
    while True:
        pair = make_pair(plan, rng, nearest)
        pair = replace(pair, references=pair.references[:1])
        if pair.references[0].registered:
            break
    kind = _main_type(pair)
    image = pair.references[0].image
    if rng.random() >= _ZOOMED or (pair.label and pair.mask is None):
        return LabelledPair(image, pair.query, pair.label, kind, pair.source)
    if pair.mask is not None and pair.mask.any():
        box, kind = _defect_box(pair, rng)
        return _zoomed(image, pair.query, box, True, kind, pair.source)
    return _zoomed(image, pair.query, _loudest_box(image, pair.query, rng), False, NO_DEFECT, pair.source)


def _main_type(pair: Pair) -> str:
    if not pair.label:
        return NO_DEFECT
    known = pair.types[pair.types != NO_TYPE]
    return DIFFERENCE_TYPES[int(np.bincount(known).argmax())] if known.size else UNKNOWN


def _defect_box(pair: Pair, rng: np.random.Generator) -> tuple[Box, str]:
    """One connected defect of the mask, its box and type."""
    assert pair.mask is not None
    n, labels, stats, _ = cv2.connectedComponentsWithStats(
        cv2.dilate(pair.mask.astype(np.uint8), np.ones((5, 5), np.uint8))
    )
    i = 1 + int(rng.integers(n - 1))
    x, y, w, h = (int(v) for v in stats[i, :4])
    known = pair.types[(labels == i) & pair.mask]
    known = known[known != NO_TYPE]
    return (x, y, x + w, y + h), DIFFERENCE_TYPES[int(np.bincount(known).argmax())] if known.size else UNKNOWN


def _loudest_box(reference: RgbImage, query: RgbImage, rng: np.random.Generator) -> Box:
    """Where a good pair differs most (or anywhere): what a false alarm would look at."""
    h, w = query.shape[:2]
    if rng.random() < 0.6:
        apart = cv2.GaussianBlur(cv2.absdiff(reference, query).max(2).astype(np.float32), (0, 0), 4)
        y, x = divmod(int(apart.argmax()), w)
    else:
        y, x = int(rng.integers(h)), int(rng.integers(w))
    half = int(rng.integers(3, 30))
    return max(0, x - half), max(0, y - half), min(w, x + half), min(h, y + half)


def _zoomed(reference: RgbImage, query: RgbImage, box: Box, defect: bool, kind: str, source: str) -> LabelledPair:
    margin = round(_MARGIN * max(box[2] - box[0], box[3] - box[1]))
    x0, y0, x1, y1 = widen(box, margin, MIN_CROP_PX, query.shape[:2])
    return LabelledPair(reference[y0:y1, x0:x1], query[y0:y1, x0:x1], defect, kind, source)


def board_zoom(source: Source, rng: np.random.Generator) -> LabelledPair:
    """A labelled defect of a bare board close up, or as large a place without one; any quarter turn or mirror image."""
    photo = source.bad[int(rng.integers(len(source.bad)))]
    query = read_photo(photo.path)
    assert photo.partner is not None
    reference = read_photo(photo.partner)
    if rng.random() < 0.6:
        x0, y0, x1, y1, kind = photo.boxes[int(rng.integers(len(photo.boxes)))]
        (dx, dy), (gx, gy) = rng.integers(-4, 5, 2).tolist(), rng.integers(-3, 4, 2).tolist()
        box = (x0 + dx - gx, y0 + dy - gy, x1 + dx + gx, y1 + dy + gy)
        made = _zoomed(reference, query, box, True, kind, source.name)
    else:
        made = _zoomed(reference, query, _clean_box(photo, query.shape[:2], rng), False, NO_DEFECT, source.name)
    turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
    views = [np.rot90(i, turns)[:, :: -1 if mirrored else 1] for i in (made.reference, made.query)]
    return replace(made, reference=np.ascontiguousarray(views[0]), query=np.ascontiguousarray(views[1]))


def _clean_box(photo: Photo, size: tuple[int, int], rng: np.random.Generator) -> Box:
    while True:
        side = int(rng.integers(20, 60))
        x, y = int(rng.integers(size[1] - side)), int(rng.integers(size[0] - side))
        far = 30
        if all(x > b[2] + far or x + side < b[0] - far or y > b[3] + far or y + side < b[1] - far for b in photo.boxes):
            return x, y, x + side, y + side


# ---- pairs on disk ----


def _make_shard(sources: tuple[Source, ...], seed: int, index: int, folder: Path, weights: Path) -> int:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    encoder, difference, _ = seeing_half(weights)
    nearest = ByThumbnail(read_photo)
    pairs = [judged_pair(sources, np.random.default_rng([seed, index, i]), nearest) for i in range(SHARD)]
    found = [pair_features(encoder, difference, pair_pixels(p.reference, p.query, PAIR_SIDE)[None]) for p in pairs]
    _save(folder / f"{index:05d}.safetensors", PairFeatures.cat(found),
          [{"defect": p.defect, "type": p.type, "source": p.source} for p in pairs])  # fmt: skip
    return index


def _save(path: Path, seen: PairFeatures, truth: list[dict[str, Any]]) -> None:
    tensors = {k: v.half().contiguous() for k, v in seen.as_dict().items()}
    need_space(path.parent, sum(2 * t.numel() for t in tensors.values()), "a shard of pairs takes")
    save_tensors(tensors, path, {"truth": json.dumps(truth)})


def _load(path: Path) -> tuple[PairFeatures, list[dict[str, Any]]]:
    with safe_open(path, "pt") as file:
        seen = PairFeatures(**{f.name: file.get_tensor(f.name) for f in fields(PairFeatures)})
        return seen, json.loads(file.metadata()["truth"])


def build_pairs(
    sources: Sequence[Source],
    seed: int,
    n: int,
    folder: Path,
    workers: int,
    progress: Callable[[int, int], None],
    weights: Path = DIFFERENCE,
) -> tuple[PairFeatures, list[dict[str, Any]]]:
    """n judged pairs, encoded with the difference network of `weights`; shards that are there are read."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    described = {"seed": seed, "sources": [s.name for s in sources], "difference": read_network(weights)[2]}
    about = folder / "pairs.json"
    if about.exists() and json.loads(about.read_text()) != described:
        raise InputError(
            f"{folder} holds pairs of other sources, seed or difference weights; choose another --out or remove it"
        )
    about.write_text(json.dumps(described))
    total = max(1, round(n / SHARD))
    paths = [folder / f"{i:05d}.safetensors" for i in range(total)]
    missing = [i for i, p in enumerate(paths) if not p.exists()]
    done = total - len(missing)
    progress(done, total)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        jobs = [executor.submit(_make_shard, tuple(sources), seed, i, folder, weights) for i in missing]
        done += _collected(executor, jobs, lambda n: progress(done + n, total))
    return _joined([_load(p) for p in paths])


def _collected(executor: ProcessPoolExecutor, jobs: Sequence[Future[Any]], progress: Callable[[int], None]) -> int:
    """Wait for all jobs; the first that fails cancels the others, which would fail as it did."""
    n = 0
    try:
        for n, future in enumerate(as_completed(jobs), start=1):
            future.result()
            progress(n)
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    return n


def _joined(parts: list[tuple[PairFeatures, list[dict[str, Any]]]]) -> tuple[PairFeatures, list[dict[str, Any]]]:
    return PairFeatures.cat([p for p, _ in parts]), [t for _, truth in parts for t in truth]


# ---- recordings ----


@dataclass(frozen=True)
class Recordings:
    """Recorded conversations."""

    lines: list[dict[str, Any]]  # of the JSONL files
    seen: PairFeatures | None  # features of their pairs, None without pairs
    rows: dict[tuple[str, str], int]  # (reference, query) -> row of `seen`


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Raises InputError, naming the line."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise InputError(
            f"{folder}: no recordings (*.jsonl) in it; make some with: refdiff train record --out {folder}"
        )
    lines = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as e:
            raise InputError(f"{path}: cannot be read ({e.strerror}); record again") from e
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                lines.append(json.loads(line))
            except ValueError as e:
                raise InputError(f"{path} line {number}: no JSON; remove the file and record again") from e
    return lines


def read_tools(folder: Path) -> list[dict[str, Any]]:
    """The tools' schemas, which a recording keeps beside it. Raises InputError."""
    try:
        tools: list[dict[str, Any]] = json.loads((folder / "tools.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise InputError(
            f"{folder / 'tools.json'}: cannot be read ({e}); is this a folder of refdiff train record?"
        ) from e
    return tools


def pairs_of(line: dict[str, Any]) -> list[tuple[str, str]]:
    """(reference, query) of a line's pairs, in order."""
    if line["kind"] == "reading":
        return [(line["pair"][0], line["pair"][1])]
    found = []
    for message in line["messages"]:
        if isinstance(message["content"], list):
            shown = [b["image"] for b in message["content"] if b["type"] == "image"]
            found += [(shown[i], shown[i + 1]) for i in range(0, len(shown) - 1, 2)]
    return found


def _encode_pairs(images: Path, pairs: list[tuple[str, str]], path: Path, weights: Path) -> None:
    torch.set_num_threads(1)
    encoder, difference, _ = seeing_half(weights)
    found = []
    for reference, query in pairs:
        both = [decode_image((images / f"{sha}.png").read_bytes(), name=sha) for sha in (reference, query)]
        found.append(pair_features(encoder, difference, pair_pixels(both[0], both[1], PAIR_SIDE)[None]))
    _save(path, PairFeatures.cat(found), [{"pair": p} for p in pairs])


def read_recordings(
    folder: Path, cache: Path, workers: int, progress: Callable[[int, int], None], weights: Path = DIFFERENCE
) -> Recordings:
    """All conversations of `folder` with their pictures encoded, shards of the encoding kept in `cache`."""
    lines = read_lines(folder)
    wanted = sorted({p for line in lines for p in pairs_of(line)})
    if not wanted:
        return Recordings(lines, None, {})
    cache = cache / read_network(weights)[2][:16]  # what is seen depends on who looks
    cache.mkdir(parents=True, exist_ok=True)
    known: list[tuple[PairFeatures, list[dict[str, Any]]]] = [_load(p) for p in sorted(cache.glob("*.safetensors"))]
    have = {tuple(t["pair"]) for _, truth in known for t in truth}
    missing = [p for p in wanted if p not in have]
    parts = [missing[i : i + SHARD] for i in range(0, len(missing), SHARD)]
    progress(0, len(parts))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        # named by what is in them: a run that was stopped may have left any of them
        paths = [cache / f"{hashlib.sha256(json.dumps(p).encode()).hexdigest()[:16]}.safetensors" for p in parts]
        images = folder / "images"
        jobs = [executor.submit(_encode_pairs, images, p, at, weights) for p, at in zip(parts, paths, strict=True)]
        _collected(executor, jobs, lambda n: progress(n, len(parts)))
    seen, truth = _joined([*known, *(_load(p) for p in paths)])
    return Recordings(lines, seen, {(t["pair"][0], t["pair"][1]): i for i, t in enumerate(truth)})


def rows_of(seen: PairFeatures, rows: Sequence[int]) -> PairFeatures:
    index = torch.tensor(list(rows))
    return PairFeatures(**{k: v[index].float() for k, v in seen.as_dict().items()})


__all__ = ["LabelledPair", "Recordings", "build_pairs", "judged_pair", "read_recordings", "rows_of", "seeing_half"]
