"""Fit the difference network to one product, from its golden samples and from defects that people confirmed.

The parts are halved, and one network is trained on each half: a golden sample is only ever scored by the network that did
not see it, and photos by the mean of both. So the scores that calibrate are those of parts that the network does not know,
as photos are (cross-conformal prediction; Vovk, "Cross-conformal predictors", 2015).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.memory.records.networks import FitAttempt
from refdiff.memory.rows.networks import LearnedDefect, ProductNetworks
from refdiff.model.difference.comparing import MAP_STRIDE, SCORED_PART, Comparing, FittedScorer, fuse
from refdiff.model.difference.feature_maps import GRID_STRIDE, FeatureMaps
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.difference.patch_distance import anomaly_map, image_score, reached_cells
from refdiff.model.difference.scorer import DifferenceScorer, pack_networks, unpack_networks
from refdiff.model.errors import BusyError, InputError, RefDiffError, StorageError, UnavailableError
from refdiff.model.files import make_room, mark_used, write_atomic
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.model.training.pairs import cell_targets, marked_cells
from refdiff.model.training.product import Confirmed, Example, ProductRecipe, fit_network, spoiled
from refdiff.tools.caches.feature_cache import Picture
from refdiff.tools.framing.frames import place_goldens
from refdiff.tools.framing.photos import Query
from refdiff.tools.framing.tiles import Tile
from refdiff.tools.golden_samples.confirmed import ConfirmedDefect, confirmed_defects
from refdiff.tools.inspection.calibration import calibration_key, current_calibration
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import OnPhoto, ReferenceViews
from refdiff.tools.inspection.methods import check_networks
from refdiff.tools.inspection.pairs import RegisteredPair, pair_with
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.zones import place_zones
from refdiff.tools.vision.regions import map_size
from refdiff.tools.workspace import Workspace

MIN_PARTS = 20
_HALVES = 2
_MAX_EXAMPLES = 64  # of a half, tiles counted: more would only take memory
_MAX_TILES = 1  # of a golden sample, besides the whole
_CHECKED = 24  # samples of a half, tiles counted, on which defects are looked for
_GROWN = 2  # fits begin anew with so many times the golden samples
_HALVES_BYTES = 64_000_000  # of trained halves that are kept in case of an interruption, of all products
_MAX_VAIN = 2  # tries that failed or ended with the process
INTERNAL = "an error of the program; its log says more, please report it"

log = logging.getLogger(__name__)


class FitStopped(UnavailableError):
    """A fit that ends without having failed: its `progress` says so, a person ended it, or what it learns from changed. The
    next one goes on where it was, or begins anew where its golden samples changed."""


@dataclass(frozen=True)
class Fitted:
    """What came of it."""

    networks: ProductNetworks
    kept: bool  # they find more synthetic defects than the shared network, and no fewer than those in use before
    by_replaced: int | None  # how many of them the networks in use before find; None if there were none
    left_out: dict[str, list[str]]  # confirmed defects that they did not learn from: why -> inspection ids


def fit_product(
    workspace: Workspace,
    product: str,
    by: str,
    recipe: ProductRecipe | None = None,
    references: int | None = None,
    progress: Progress = silent,
) -> Fitted:
    """Fit networks to a product and keep them, calibrated, if they find more synthetic defects than the shared network, and
    no fewer than those in use.

    Inspections use them from one moment to the next: nobody finds them without their calibration. A half that was finished
    is not trained again after an interruption. by: who asked for it. references: K, default from the settings. The process
    takes about 2.5 GB. Raises InputError with golden samples of too few parts, BusyError while the product is fitted
    elsewhere, FitStopped where some of them were retired meanwhile.
    """
    product = workspace.stores.products.name_of(product)
    _ = workspace.trained_difference  # without one there is nothing to begin with
    halves = _halved(workspace, product)
    with _alone(workspace, product):
        store = workspace.stores.networks
        attempt = store.begin(product, workspace.trained_difference.sha256, sum(map(len, halves)), by)
        try:
            made = _fit_product(workspace, attempt, halves, recipe or ProductRecipe(), references, progress)
        except (FitStopped, KeyboardInterrupt) as e:
            with contextlib.suppress(UnavailableError):
                store.end(attempt, "stopped", str(e))
            raise
        except Exception as e:
            with contextlib.suppress(UnavailableError):  # then it counts as one that ended with the process
                store.end(attempt, "failed", str(e) if isinstance(e, RefDiffError) else INTERNAL)
            raise
        if not made.kept:
            store.end(attempt, "not kept", found=made.networks.found)
    return made


@contextlib.contextmanager
def _alone(workspace: Workspace, product: str) -> Iterator[None]:
    """Nobody else fits the product meanwhile, in this process or another. Raises BusyError."""
    busy = BusyError(f"a network is being fitted to product {product!r}; try again when it is done", 60.0)
    with workspace.stores.db.lock(f"fit {product}", busy):
        yield


def is_fitting(workspace: Workspace, product: str) -> bool:
    """Whether a process fits the product at this moment."""
    try:
        with _alone(workspace, product):
            return False
    except BusyError:
        return True


def is_due(workspace: Workspace, product: str) -> bool:
    """Whether to fit a network to a product: none is in use, or half as many golden samples taught the one that is.

    Not with golden samples of too few parts, nor where a person stopped or removed the last one, nor where one was not kept,
    or failed twice, with the same shared network and more than half as many golden samples. False where something cannot be
    read: this is a hint.
    """
    try:
        last = workspace.stores.networks.last_attempt(product)
        if (last is not None and last.outcome == "declined") or workspace.bank.count(product, IN_USE) < MIN_PARTS:
            return False
        n, used = sum(map(len, _halved(workspace, product))), workspace.fitted(product)
        shared = workspace.trained_difference.sha256  # raises where there is none for this encoder
        tried = 0 if used is None else sum(map(len, used.trained_on))
        if last is not None and last.shared == shared:
            in_vain = last.outcome in ("begun", "failed") and last.vain >= _MAX_VAIN
            if last.outcome == "not kept" or in_vain:
                tried = max(tried, last.n)
        return n >= _GROWN * tried
    except RefDiffError as e:
        log.info("product %s is left without a fit: %s", product, e)
        return False


def _fit_product(
    workspace: Workspace,
    attempt: FitAttempt,
    halves: Sequence[Sequence[Golden]],
    recipe: ProductRecipe,
    references: int | None,
    progress: Progress,
) -> Fitted:
    started, shared = time.perf_counter(), workspace.trained_difference
    product, by = attempt.product, attempt.by
    place_goldens(workspace, product, progress)
    confirmed, left_out = confirmed_defects(workspace, product, progress)
    fit = _Fit(workspace, product, references or workspace.settings.references, progress, confirmed)
    kept_halves, seen = [], set[str]()
    for i, half in enumerate(halves):
        defects = fit.defects(half)
        seen |= defects.keys()
        kept_halves.append(fit.trained(half, replace(recipe, seed=recipe.seed + i), list(defects.values())))
        del defects  # before those of the next half are there
    if beside := [d.inspection_id for d in confirmed if d.inspection_id not in seen]:
        left_out |= {"its defect lies beside what the golden samples show": beside}
    weights = pack_networks([net for net, _ in kept_halves])
    nets = unpack_networks(weights, shared.config)  # as they will be read again
    scorers = [DifferenceScorer(net, "", shared.encoder, workspace.model_settings) for net in nets]
    checks, replaces = [], workspace.fitted(product) is not None
    for i, half in enumerate(halves):
        unseen = FittedScorer([scorer for j, scorer in enumerate(scorers) if j != i])
        checks.append(fit.found(half, (shared, unseen), recipe.seed + i, replaces))
    by_shared, by_fitted, *by_replaced, of = (sum(column) for column in zip(*checks, strict=True))
    networks = ProductNetworks(
        product=product,
        sha256=hashlib.sha256(weights).hexdigest(),
        shared=shared.sha256,
        trained_on=[[g.golden_id for g in half] for half in halves],
        seconds=time.perf_counter() - started,
        found=(by_shared, by_fitted, of),
        confirmed=[LearnedDefect(d.inspection_id, d.photo, d.part_id) for d in confirmed if d.inspection_id in seen],
    )
    if why := workspace.outdated(networks):
        raise FitStopped(f"product {product!r} changed while its network was fitted ({why})")
    if kept := by_fitted > by_shared and all(by_fitted >= n for n in by_replaced):
        # inspections go on with the former network and its calibration until both of the new one are there
        current_calibration(workspace.trying(networks, scorers), product, references, progress, by)
        if not workspace.stores.networks.save(networks, weights, by, attempt):
            raise FitStopped(f"the fit of product {product!r} was ended by a person; nothing was kept")
    for _, path in kept_halves:
        path.unlink(missing_ok=True)
    return Fitted(networks, kept, next(iter(by_replaced), None), left_out)


def check_parts(workspace: Workspace, product: str) -> None:
    """Raises InputError with golden samples of too few parts, and without a network trained on the encoder in use."""
    _ = workspace.trained_difference
    _halved(workspace, product)


def _halved(workspace: Workspace, product: str) -> list[list[Golden]]:
    """The active golden samples, all of one part in one half. What is flagged may be a defect: it is not learned from."""
    check_networks(workspace, product, "fitting a network")
    active: dict[str, list[Golden]] = {}
    in_use = sorted(workspace.bank.list(product, IN_USE), key=lambda g: g.golden_id)
    for golden in in_use:
        if golden.status == "active":
            active.setdefault(golden.group, []).append(golden)
    parts = len({g.group for g in in_use})
    if parts < MIN_PARTS or len(active) < MIN_PARTS // 2:
        raise InputError(
            f"product {product!r} has golden samples of {parts} part(s), {len(active)} of them active; fitting needs "
            f"{MIN_PARTS}, half of them active. Add some: refdiff enroll --product {product!r} FOLDER"
        )
    names = sorted(active)
    return [[g for name in names[i::_HALVES] for g in active[name]] for i in range(_HALVES)]


@dataclass(frozen=True)
class _Sample:
    """A good sample, or a tile of it, beside its nearest neighbours."""

    example: Example
    whole: bool
    keep: NDArray[np.bool_]  # (H/4, W/4): what is scored
    golden_id: str


@dataclass(frozen=True)
class _Fit:
    workspace: Workspace
    product: str
    references: int
    progress: Progress
    confirmed: Sequence[ConfirmedDefect] = ()

    def trained(
        self, half: Sequence[Golden], recipe: ProductRecipe, defects: Sequence[Sequence[Confirmed]]
    ) -> tuple[DifferenceNetwork, Path]:
        """A network trained on one half, and where it is kept in case of an interruption."""
        workspace = self.workspace
        what = [calibration_key(workspace, self.product, self.references), recipe.described(),
                [g.golden_id for g in half], [workspace.fitted(self.product) is not None],
                [defect.inspection_id for defect in self.confirmed]]  # fmt: skip
        name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]
        path = workspace.model_settings.cache / "fits" / f"{name}.safetensors"
        with contextlib.suppress(OSError, StorageError):  # not there, or damaged: a cache is made again
            net = unpack_networks(path.read_bytes(), workspace.trained_difference.config)[0]
            mark_used(path)
            return net, path
        examples = [s.example for s in self._samples(half, _MAX_EXAMPLES)]
        net = fit_network(
            workspace.network_as_trained(), examples, partial(_maps, workspace), recipe, self.progress, defects
        )
        with contextlib.suppress(OSError, StorageError):  # then an interruption costs this half
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, pack_networks([net]))
            # fits that failed, or that nobody took up again, leave theirs
            make_room(path.parent, _HALVES_BYTES)
        return net, path

    def found(
        self, half: Sequence[Golden], networks: Sequence[Comparing], seed: int, in_use: bool = False
    ) -> tuple[int, ...]:
        """On how many samples of a half each network finds a synthetic defect, and on how many there is one.

        in_use: also by the network in use that has not seen the sample. Found is what scores higher than 95 % of these
        samples do without a defect.
        """
        samples = self._samples(half, _CHECKED)
        pictures = [s.example.picture for s in samples]
        rng = np.random.default_rng([seed, 1])
        n = len(networks) + in_use
        # of whole photos and of tiles apart: their scores differ
        good: dict[bool, list[list[float]]] = {whole: [[] for _ in range(n)] for whole in (True, False)}
        bad: dict[bool, list[list[float]]] = {whole: [[] for _ in range(n)] for whole in (True, False)}
        for done, sample in enumerate(samples, start=1):
            asked = [*networks, self.workspace.network(self.product, [sample.golden_id])] if in_use else networks
            for scores, share in ((good, 1.0), (bad, 0.0)):
                made = spoiled(sample.example.picture, pictures, rng, share)
                if share == 0.0 and not (cell_targets(made.mask, made.types)[0] & sample.keep).any():
                    continue  # it would not have been visible, or lies where nothing is scored
                for found, score in zip(scores[sample.whole], self._scores(sample, made.picture, asked), strict=True):
                    found.append(score)
            self.progress("checking", done, len(samples))
        counts = [0] * n
        for whole, of_networks in bad.items():
            for i, scores_of in enumerate(of_networks):
                if scores_of:
                    limit = float(np.quantile(good[whole][i], 0.95))
                    counts[i] += sum(score > limit for score in scores_of)
        return *counts, sum(len(of_networks[0]) for of_networks in bad.values())

    def _scores(self, sample: _Sample, picture: RgbImage, networks: Sequence[Comparing]) -> Iterator[float]:
        maps, pixels = _maps(self.workspace, picture), Picture.of(picture).pixels
        distance = np.asarray(anomaly_map(maps, sample.example.references))
        for network in networks:
            logits = np.asarray(network.compare(pixels, maps, sample.example.references).logits)
            yield image_score(fuse(distance, logits, network.power), sample.keep, SCORED_PART)

    def _samples(self, half: Sequence[Golden], most: int) -> list[_Sample]:
        """At most so many golden samples or tiles of them, evenly, beside their nearest neighbours of other parts of the
        same half."""
        mine = {g.golden_id for g in half}
        others = {g.golden_id for g in self.workspace.bank.list(self.product)} - mine
        chosen = list(half) if len(half) <= most else [half[i * len(half) // most] for i in range(most)]
        found: list[_Sample] = []
        for done, golden in enumerate(chosen[::2] + chosen[1::2], start=1):
            if len(found) >= most:
                break
            found += self._beside(golden, others | {g.golden_id for g in half if g.group == golden.group})
            self.progress("registering", done, len(chosen))
        return found

    def _beside(self, golden: Golden, without: Collection[str]) -> list[_Sample]:
        """Tiles of a golden sample beside its nearest neighbours."""
        workspace = self.workspace
        query = Query(workspace.golden_image(golden), golden.sha256, workspace.golden_features(golden))
        shape = query.image.shape
        pair = self._pair(query, without, self._tiles_of(golden))
        ignored, _ = place_zones(workspace, query, self.product, "ignore")
        ignore = np.logical_or.reduce(list(ignored.values())) if ignored else np.zeros(map_size(shape), bool)
        found = []
        for sized in pair.sizes:
            views = [ReferenceViews(r, sized.grid) for r in pair.references]
            scored = OnPhoto(shape, sized.grid).onto(ignore) <= 0.5
            for seen in sized.tiles:
                here, tile = [v.view(seen) for v in views], seen.tile
                reached = np.asarray(reached_cells(here, (tile.h // GRID_STRIDE, tile.w // GRID_STRIDE)), np.uint8)
                size = (tile.w // MAP_STRIDE, tile.h // MAP_STRIDE)
                keep = cv2.resize(reached, size, interpolation=cv2.INTER_NEAREST) > 0
                keep &= tile.of(scored, MAP_STRIDE)
                example = Example(np.ascontiguousarray(seen.picture.image), here)
                found.append(_Sample(example, sized.grid.whole, keep, golden.golden_id))
        return found

    def defects(self, half: Sequence[Golden]) -> dict[str, list[Confirmed]]:
        """Tiles of confirmed defects beside their nearest golden samples of a half, by inspection id.

        Of each, at each working size, those that hold most of it, the fullest first.
        """
        mine = {g.golden_id for g in half}
        others = {g.golden_id for g in self.workspace.bank.list(self.product)} - mine
        found = {}
        for done, defect in enumerate(self.confirmed, start=1):
            photo = self.workspace.image(defect.photo, self.product)
            pair = self._pair(Query(photo, defect.photo, self.workspace.encoder.embed(photo)), others)
            tiles = []
            for sized in pair.sizes:
                views = [ReferenceViews(r, sized.grid) for r in pair.references]
                cells = marked_cells(OnPhoto(photo.shape, sized.grid).onto(defect.mask))
                at_scale = []
                for seen in sized.tiles:
                    here = seen.tile.of(cells, MAP_STRIDE)
                    if here.any():
                        picture = np.ascontiguousarray(seen.picture.image)
                        mask = here.repeat(MAP_STRIDE, 0).repeat(MAP_STRIDE, 1)
                        at_scale.append(Confirmed(Example(picture, [v.view(seen) for v in views]), mask))
                tiles += sorted(at_scale, key=lambda t: -int(t.mask.sum()))[:_MAX_TILES]
            if tiles:
                found[defect.inspection_id] = tiles
            self.progress("registering defects", done, len(self.confirmed))
        return found

    def _pair(
        self,
        query: Query,
        without: Collection[str],
        tiles_of: Callable[[Sequence[Tile]], list[Tile]] | None = None,
    ) -> RegisteredPair:
        """A photo beside its nearest golden samples."""
        workspace, product, clock = self.workspace, self.product, Clock()
        hits = nearest_goldens(workspace, query, product, self.references, without, clock)
        return pair_with(workspace, query, product, hits, clock, tiles_of)

    @staticmethod
    def _tiles_of(golden: Golden) -> Callable[[Sequence[Tile]], list[Tile]]:
        """Two tiles of a grid of several; other ones of other golden samples, so that all places are seen."""
        first = int(hashlib.sha256(golden.golden_id.encode()).hexdigest(), 16)
        return lambda tiles: [tiles[i] for i in sorted({(first + i) % len(tiles) for i in range(_MAX_TILES)})]


def _maps(workspace: Workspace, picture: RgbImage) -> FeatureMaps:
    return workspace.encoder.embed(picture, (picture.shape[0], picture.shape[1])).maps
