"""Training pairs of the difference network as the tools register them.

`model.training.pairs` draws where a registration would leave a reference; here products are enrolled in a temporary home,
and their photos retrieved, registered and tiled as in an inspection, so that the network meets what registration really
leaves over, at the sizes of real tiles. A product is a design of the renderer, or photos of a source. Its pairs are photos
with known truth, and its golden samples beside one another with a synthetic defect or none.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import DIFFERENCE_TYPES, RENDERED_TYPES, STRUCTURAL_TYPES
from refdiff.model.difference.comparing import MAP_STRIDE, reference_picture
from refdiff.model.difference.features import Features
from refdiff.model.difference.matching import match
from refdiff.model.errors import ImageError
from refdiff.model.files import remove_leftovers
from refdiff.model.images import RgbImage, decode_image, encode_png
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import (
    PART_KINDS,
    Pose,
    Scene,
    applicable_types,
    random_defect,
    random_light,
    random_pose,
    render,
)
from refdiff.model.training.pairs import NO_TYPE, Photo, Source, file_at_fault, marked_cells, read_mask, type_index
from refdiff.model.training.pool import PAIRS, describe_registered, network_row, source_names, target_row
from refdiff.model.training.product import spoiled
from refdiff.model.weights_file import save_tensors
from refdiff.tools.framing.photos import Query
from refdiff.tools.framing.tiles import TILE_PX
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload, read_photo, without_file_name
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import OnPhoto, ReferenceViews, SizedPhoto
from refdiff.tools.inspection.pairs import RegisteredPair, pair_with
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.workspace import Workspace

_PRODUCT = "product"
_RENDERED = 0.62  # part of the products that are rendered
_SIDES = (320, 384, 512, 640)  # of rendered photos, px
_TURNED = 0.65  # part of the rendered products whose parts lie at any angle
_VARIANTS = 0.15  # part of them with three designs
_GOLDENS, _GOOD, _DEFECTIVE = 16, 6, 16  # photos of a rendered product
_MOST_GOLDENS, _MOST_GOOD, _MOST_DEFECTIVE = 24, 4, 26  # of a source
_TILES = 0.3  # part of the products that are seen in four tiles
_REFERENCES = (1, 2, 4, 4, 4)
_EMPTY_TILES = 0.4  # part of the tiles of a defective photo without the defect that are kept
_LEAST_GOLDENS = 2  # each is compared with another
_STRUCTURAL = [DIFFERENCE_TYPES.index(t) for t in STRUCTURAL_TYPES]


@dataclass(frozen=True)
class _Photo:
    """A photo with its truth. masks: (H, W) bool and index of the type, of each defect; None: a defect somewhere."""

    image: RgbImage
    masks: list[tuple[NDArray[np.bool_], int]] | None


@dataclass(frozen=True)
class _Product:
    source: str
    goldens: Sequence[Path | Upload]
    photos: Sequence[_Photo | Photo]  # those of a source are read once its golden samples have fixed how


@dataclass(frozen=True)
class MadePairs:
    """What is below `out` now."""

    pairs: int
    products: int  # that have pairs
    left_out: dict[str, list[str]]  # why -> photos, masks and sources, in words


def make_pairs(
    sources: Sequence[Source], out: Path, *, products: int, seed: int, workers: int, progress: Progress = silent
) -> MadePairs:
    """Write the pairs of so many products below `out`, one file for each size of tile.

    Products that are there are not made again. Photos that cannot be used are left out, and so is a product with fewer than
    two good ones. Raises InputError (`out` holds pairs of other photos or another seed),
    StorageError (disk full).
    """
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    describe_registered(out, sources, seed)
    missing = [i for i in range(products) if not _marker(out, i).exists()]
    done = products - len(missing)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        try:
            for future in as_completed([executor.submit(_make, tuple(sources), out, seed, i) for i in missing]):
                future.result()
                done += 1
                progress("products", done, products)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    made = [json.loads(_marker(out, i).read_text(encoding="utf-8")) for i in range(products)]
    left_out: dict[str, dict[str, None]] = defaultdict(dict)  # a source may be drawn several times
    for one in made:
        for why, names in one.get("left_out", {}).items():
            left_out[why] |= dict.fromkeys(names)
    found = {why: sorted(names) for why, names in sorted(left_out.items())}
    return MadePairs(sum(one["pairs"] for one in made), sum(one["pairs"] > 0 for one in made), found)


def _marker(out: Path, index: int) -> Path:
    return out / f"{index:05d}.json"


def _make(sources: Sequence[Source], out: Path, seed: int, index: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rng = np.random.default_rng([seed, index])
    product = _rendered(rng) if not sources or rng.random() < _RENDERED else _of_source(sources, rng)
    with tempfile.TemporaryDirectory() as scratch:
        tiles = 4 if rng.random() < _TILES else 1
        # whatever the environment says: training on these pairs expects the packaged encoder
        settings = ModelSettings(
            cache=Path(scratch) / "cache", tiles=tiles, threads=1, encoder=None, working_px=TILE_PX, engine="torch"
        )
        memory = MemorySettings.of_folder(Path(scratch) / "home")
        with Workspace.open(memory, settings) as workspace:
            rows, left_out = _rows(workspace, product, int(rng.choice(_REFERENCES)), rng)
    source = torch.tensor(source_names(sources).index(product.source), dtype=torch.uint8)
    by_size: dict[tuple[int, ...], list[dict[str, Tensor]]] = {}
    for row in rows:
        by_size.setdefault(tuple(row["query"].shape), []).append(row | {"source": source})
    for (_, h, w), of_size in by_size.items():
        stacked = {name: torch.stack([row[name] for row in of_size]).contiguous() for name in of_size[0]}
        save_tensors(stacked, out / f"{index:05d}_{h}x{w}{PAIRS}")
    about = {"source": product.source, "pairs": len(rows), "left_out": left_out}
    _marker(out, index).write_text(json.dumps(about), encoding="utf-8")


# ---- what a product is ----


def _rendered(rng: np.random.Generator) -> _Product:
    kind = PART_KINDS[int(rng.integers(len(PART_KINDS)))]
    side = int(rng.choice(_SIDES))
    turned = kind != "bottle" and rng.random() < _TURNED
    still = not turned and rng.random() < 0.3
    designs = rng.integers(2**31, size=3 if rng.random() < _VARIANTS else 1)
    strength, noise = float(rng.choice([0.1, 0.3, 0.3, 0.5])), float(rng.uniform(0.5, 3))
    structural = [t for t in applicable_types(kind) if RENDERED_TYPES[t] in STRUCTURAL_TYPES]
    share = 0.7 if rng.random() < 0.35 else 0.3  # of the defects that are structural

    def photo(number: int, defective: bool) -> Scene:
        while True:  # a defect may fall out of the frame of a turned part
            only = structural if structural and rng.random() < share else None
            wanted = (1 + int(rng.random() < 0.15)) if defective else 0
            defects = [random_defect(rng, kind, (side, side), types=only) for _ in range(wanted)]
            pose = Pose() if still else random_pose(rng, max_angle_deg=180.0 if turned else 3.0, size=(side, side))
            scene = render(
                kind, int(designs[number % len(designs)]), int(rng.integers(2**31)), size=(side, side), defects=defects,
                pose=pose, light=random_light(rng, strength=strength), noise_sigma=noise,
                noise_seed=int(rng.integers(2**31)),
            )  # fmt: skip
            if not defective or scene.defect_mask.any():
                return scene

    goldens = [Upload(f"{i:02d}.png", encode_png(photo(i, False).image)) for i in range(_GOLDENS)]
    scenes = [photo(i, i >= _GOOD) for i in range(_GOOD + _DEFECTIVE)]
    photos = [_Photo(s.image, [(t.mask, type_index(t.type)) for t in s.defects]) for s in scenes]
    return _Product("rendered", goldens, photos)


def _of_source(sources: Sequence[Source], rng: np.random.Generator) -> _Product:
    weights = np.array([s.weight for s in sources])
    source = sources[int(rng.choice(len(sources), p=weights / weights.sum()))]
    good = [source.good[i] for i in rng.permutation(len(source.good))]
    n = min(_MOST_GOLDENS, max(_LEAST_GOLDENS, len(good) - _MOST_GOOD))
    bad = [source.bad[i] for i in rng.permutation(len(source.bad))[:_MOST_DEFECTIVE]]
    return _Product(source.name, [p.path for p in good[:n]], [*good[n : n + _MOST_GOOD], *bad])


def _read(workspace: Workspace, photo: Photo) -> _Photo:
    """A photo of a source, as one of its product is read. Raises ImageError, also where its mask cannot be used."""
    known = workspace.stores.products.get(_PRODUCT)
    data, settings = read_photo(photo.path, workspace.model_settings), workspace.model_settings
    window = known.intensity_window if known else None
    image = decode_image(data, name=str(photo.path), window=window, settings=settings)
    if not photo.defective:
        return _Photo(image, [])
    if not photo.masks:
        return _Photo(image, None)
    return _Photo(image, [(read_mask(photo, image.shape[:2]), type_index(photo.type) if photo.type else NO_TYPE)])


# ---- its pairs ----


def _rows(
    workspace: Workspace, product: _Product, references: int, rng: np.random.Generator
) -> tuple[list[dict[str, Tensor]], Mapping[str, list[str]]]:
    """The pairs of a product, and what of it was left out: why -> names."""
    left_out: dict[str, list[str]] = defaultdict(list)
    enrolled = enroll(workspace, _PRODUCT, product.goldens)
    for refused in enrolled.refused:
        left_out[refused.reason].append(str(refused.path))
    for twin in enrolled.already_there:
        left_out["the same photo as another good one"].append(str(twin.path))
    if (n := len(enrolled.added)) < _LEAST_GOLDENS:
        left_out[f"fewer than {_LEAST_GOLDENS} good photos could be used"].append(f"{product.source} ({n})")
        return [], left_out
    rows: list[dict[str, Tensor]] = []
    for shown in product.photos:
        try:
            photo = shown if isinstance(shown, _Photo) else _read(workspace, shown)
        except ImageError as e:
            assert isinstance(shown, Photo)
            named = file_at_fault(shown, e)
            left_out[without_file_name(str(e), named)].append(str(named))
            continue
        key = hashlib.sha256(photo.image.tobytes()).hexdigest()
        pair = _registered(workspace, photo.image, key, workspace.encoder.embed(photo.image), references)
        known = product.source == "rendered"
        rows += _photographed(pair, photo, known, rng)
    pictures: list[RgbImage] = []
    for golden in sorted(workspace.bank.list(_PRODUCT, IN_USE), key=lambda g: g.golden_id):
        image, features = workspace.golden_image(golden), workspace.golden_features(golden)
        pair = _registered(workspace, image, golden.sha256, features, references, (golden.golden_id,))
        rows += _painted(workspace, pair, pictures, rng)
    return rows, left_out


def _registered(
    workspace: Workspace, image: RgbImage, key: str, features: Features, references: int, without: Sequence[str] = ()
) -> RegisteredPair:
    query = Query(image, key, features)
    hits = nearest_goldens(workspace, query, _PRODUCT, references, without, Clock())
    return pair_with(workspace, query, _PRODUCT, hits, Clock())


def _photographed(
    pair: RegisteredPair, photo: _Photo, structure_known: bool, rng: np.random.Generator
) -> list[dict[str, Tensor]]:
    """The tiles of a photo with its own truth, at all its working sizes."""
    return [row for sized in pair.sizes for row in _at_size(pair, sized, photo, structure_known, rng)]


def _at_size(
    pair: RegisteredPair, sized: SizedPhoto, photo: _Photo, structure_known: bool, rng: np.random.Generator
) -> list[dict[str, Tensor]]:
    views, back = [ReferenceViews(r, sized.grid) for r in pair.references], OnPhoto(photo.image.shape, sized.grid)
    planes = [(marked_cells(back.onto(mask)), kind) for mask, kind in photo.masks or []]
    rows = []
    for seen in sized.tiles:
        here = [v.view(seen) for v in views]
        size = seen.tile.h // MAP_STRIDE, seen.tile.w // MAP_STRIDE
        cells, kinds = np.zeros(size, bool), np.full(size, NO_TYPE, np.uint8)
        for plane, kind in planes:
            marked = seen.tile.of(plane, MAP_STRIDE)
            cells |= marked
            kinds[marked] = kind
        if photo.masks is None and not sized.grid.whole:
            continue  # nobody knows on which tile the defect is
        if planes and not cells.any() and rng.random() > _EMPTY_TILES:
            continue
        defective = photo.masks is None or bool(cells.any())
        picture = torch.from_numpy(seen.picture.pixels)
        reference, covered = reference_picture(picture, here)
        rows.append(
            network_row(match(seen.maps, here), picture, reference, covered)
            | {
                "mask": torch.from_numpy(cells.astype(np.uint8)),
                "types": torch.from_numpy(kinds),
                "label": torch.tensor(defective, dtype=torch.uint8),
                "known": torch.tensor(photo.masks is not None, dtype=torch.uint8),
                "structural": torch.tensor(
                    int(np.isin(kinds, _STRUCTURAL).any()) if structure_known else -1, dtype=torch.int8
                ),
                "real": torch.tensor(defective and not structure_known),
            }
        )
    return rows


def _painted(
    workspace: Workspace, pair: RegisteredPair, pictures: list[RgbImage], rng: np.random.Generator
) -> list[dict[str, Tensor]]:
    """Two tiles of a golden sample, each with a synthetic defect or none. pictures: of earlier ones, what foreign matter is
    cut from; these are added."""
    number = sum(len(sized.grid.tiles) for sized in pair.sizes)
    chosen = set(rng.permutation(number)[:2].tolist())
    rows = []
    shown = ((sized, seen) for sized in pair.sizes for seen in sized.tiles)
    for i, (sized, seen) in enumerate(shown):
        if i not in chosen:
            continue
        here = [ReferenceViews(r, sized.grid).view(seen) for r in pair.references]
        picture = np.ascontiguousarray(seen.picture.image)
        made = spoiled(picture, [p for p in pictures if p.shape == picture.shape] or [picture], rng)
        pictures.append(picture)
        maps = workspace.encoder.embed(made.picture, (picture.shape[0], picture.shape[1])).maps
        planes = torch.from_numpy(made.picture).permute(2, 0, 1).contiguous()
        reference, covered = reference_picture(planes, here)
        rows.append(
            network_row(match(maps, here), planes, reference, covered)
            | target_row(bool(made.mask.any()), made.mask, made.types, made.structural)
            | {"real": torch.tensor(False)}
        )
    return rows
