"""Fit the difference network to one product, from its golden samples alone.

The parts are halved, and one network is trained on each half: a golden sample is only ever scored by the network that did
not see it, and photos by the mean of both. So the scores that calibrate are those of parts that the network does not know,
as photos are (cross-conformal prediction; Vovk, "Cross-conformal predictors", 2015).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.memory.records.networks import ProductNetworks
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.difference.patch_distance import anomaly_map, image_score
from refdiff.model.difference.scorer import (
    PACKAGED,
    SCORED_PART,
    Comparing,
    DifferenceScorer,
    FittedScorer,
    fuse,
    pack_networks,
    read_network,
    unpack_networks,
)
from refdiff.model.errors import InputError, StorageError
from refdiff.model.files import storage_error, write_atomic
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.model.training.product import Example, ProductRecipe, fit_network, spoiled
from refdiff.tools.feature_cache import Picture
from refdiff.tools.framing.frames import place_goldens
from refdiff.tools.inspection.calibration import calibration_key
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.comparison import pair_with
from refdiff.tools.inspection.difference import ReferenceViews
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.workspace import Workspace

MIN_PARTS = 20
_HALVES = 2
_MAX_EXAMPLES = 64  # of a half: more would only take memory
_MAX_TILES = 2  # of a golden sample
_CHECKED = 24  # parts of a half on which defects are looked for


@dataclass(frozen=True)
class Fitted:
    """What came of it."""

    networks: ProductNetworks
    kept: bool  # they find more synthetic defects than what was in use before


def fit_product(
    workspace: Workspace,
    product: str,
    by: str,
    recipe: ProductRecipe | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Fit networks to a product and keep them if they find more synthetic defects than the shared network.

    The next calibration measures with them. A half that was finished is not trained again after an interruption. by: who
    asked for it. Raises InputError with golden samples of fewer than 20 parts.
    """
    started, recipe = time.perf_counter(), recipe or ProductRecipe()
    place_goldens(workspace, product, progress)
    halves = _halved(workspace, product)
    nets, checks = [], []
    for i, half in enumerate(halves):
        others = {g.golden_id for j, other in enumerate(halves) if j != i for g in other}
        nets.append(_fitted(workspace, product, half, others, replace(recipe, seed=recipe.seed + i), progress))
    shared, weights = workspace.difference, pack_networks(nets)
    scorers = [DifferenceScorer(net, "", shared.encoder, workspace.model_settings) for net in
               unpack_networks(weights, shared.config)]  # fmt: skip
    for i, half in enumerate(halves):
        unseen = FittedScorer([scorer for j, scorer in enumerate(scorers) if j != i])
        checks.append(_found(workspace, product, half, (shared, unseen), recipe.seed + i, progress))
    by_shared, by_fitted, of = (sum(column) for column in zip(*checks, strict=True))
    networks = ProductNetworks(
        product=workspace.stores.products.name_of(product),
        sha256=hashlib.sha256(weights).hexdigest(),
        shared=shared.sha256,
        trained_on=[[g.golden_id for g in half] for half in halves],
        seconds=time.perf_counter() - started,
        found=(by_shared, by_fitted, of),
    )
    if kept := by_fitted > by_shared:
        workspace.stores.networks.save(networks, weights, by)
    return Fitted(networks, kept)


def check_parts(workspace: Workspace, product: str) -> None:
    """Raises InputError with golden samples of fewer than 20 parts."""
    _halved(workspace, product)


def _halved(workspace: Workspace, product: str) -> list[list[Golden]]:
    """The golden samples in use, all of one part in one half."""
    parts: dict[str, list[Golden]] = {}
    for golden in sorted(workspace.bank.list(product, IN_USE), key=lambda g: g.golden_id):
        parts.setdefault(golden.group, []).append(golden)
    if len(parts) < MIN_PARTS:
        raise InputError(
            f"product {product!r} has golden samples of {len(parts)} part(s); fitting needs {MIN_PARTS}. Add some: "
            f"refdiff enroll --product {product!r} FOLDER"
        )
    names = sorted(parts)
    return [[g for name in names[i::_HALVES] for g in parts[name]] for i in range(_HALVES)]


def _fitted(
    workspace: Workspace,
    product: str,
    half: Sequence[Golden],
    without: Collection[str],
    recipe: ProductRecipe,
    progress: Progress,
) -> DifferenceNetwork:
    """A network trained on one half; from the cache if it was finished before an interruption."""
    what = [calibration_key(workspace, product, workspace.settings.references), recipe.described(),
            [g.golden_id for g in half]]  # fmt: skip
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
    path = workspace.model_settings.cache / "fits" / f"{name}.safetensors"
    config = workspace.difference.config
    try:
        return unpack_networks(path.read_bytes(), config)[0]
    except (OSError, StorageError):
        pass  # not there, or damaged: a cache is made again
    examples = _examples(workspace, product, half, without, _MAX_EXAMPLES, progress)
    start, _, _ = read_network(workspace.model_settings.difference_weights or PACKAGED)
    net = fit_network(start, examples, partial(_maps, workspace), recipe, progress)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise storage_error(path.parent, e) from e
    write_atomic(path, pack_networks([net]))
    return net


def _maps(workspace: Workspace, picture: RgbImage) -> FeatureMaps:
    return workspace.encoder.embed(picture, (picture.shape[0], picture.shape[1])).maps


def _found(
    workspace: Workspace,
    product: str,
    half: Sequence[Golden],
    networks: Sequence[Comparing],
    seed: int,
    progress: Progress,
) -> tuple[int, ...]:
    """On how many samples of a half each network finds a synthetic defect, and on how many there is one.

    Found is what scores higher than all of these samples do without a defect.
    """
    examples = _examples(workspace, product, half, (), _CHECKED, progress)
    pictures = [e.picture for e in examples]
    rng = np.random.default_rng([seed, 1])
    good: list[list[float]] = [[] for _ in networks]
    bad: list[list[float]] = [[] for _ in networks]
    for done, example in enumerate(examples, start=1):
        for scores, share in ((good, 1.0), (bad, 0.0)):
            made = spoiled(example.picture, pictures, rng, share)
            if share == 0.0 and not made.mask.any():  # it would not have been visible
                continue
            maps, picture = _maps(workspace, made.picture), Picture.of(made.picture).pixels
            distance = anomaly_map(maps, example.references).numpy()
            for found, network in zip(scores, networks, strict=True):
                logits = network.compare(picture, maps, example.references).logits.numpy()
                cells = torch.from_numpy(fuse(distance, logits, network.power))
                found.append(image_score(cells, part=SCORED_PART))
        progress("checking", done, len(examples))
    return *(sum(s > max(without) for s in scores) for scores, without in zip(bad, good, strict=True)), len(bad[0])


def _examples(
    workspace: Workspace,
    product: str,
    half: Sequence[Golden],
    without: Collection[str],
    most: int,
    progress: Progress,
) -> list[Example]:
    """At most so many golden samples, evenly, beside their nearest neighbours of other parts; none of `without`."""
    chosen = half if len(half) <= most else [half[i * len(half) // most] for i in range(most)]
    found = []
    for done, golden in enumerate(chosen, start=1):
        found += _seen(workspace, product, golden, half, without)
        progress("registering", done, len(chosen))
    return found


def _seen(
    workspace: Workspace, product: str, golden: Golden, half: Sequence[Golden], without: Collection[str]
) -> list[Example]:
    """Tiles of a golden sample beside its nearest neighbours."""
    query, features = workspace.golden_image(golden), workspace.golden_features(golden)
    excluded = {*without, *(g.golden_id for g in half if g.group == golden.group)}
    k, clock = workspace.settings.references, Clock()
    hits = nearest_goldens(workspace, query, golden.sha256, features, product, k, excluded, clock)
    pair = pair_with(workspace, query, golden.sha256, features, product, hits, clock)
    views = [ReferenceViews(r, pair.grid) for r in pair.references]
    # other tiles of other golden samples, so that all places are seen
    first = int(hashlib.sha256(golden.golden_id.encode()).hexdigest(), 16)
    n = len(pair.grid.tiles)
    wanted = {(first + i) % n for i in range(min(n, _MAX_TILES))}
    tiles = (seen for i, seen in enumerate(pair.tiles) if i in wanted)
    return [Example(np.ascontiguousarray(seen.picture.image), [v.view(seen) for v in views]) for seen in tiles]
