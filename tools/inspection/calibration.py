"""Calibration of a product from its good samples alone: what scores do good parts get?

Every golden goes through exactly the inspection path, with all photos of its own part left out. One score per part: a new
part is photographed once, so one photo represents each group, and n counts parts, not photos. Of more than 400 parts an
even sample of 400 is measured.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.memory.rows.calibrations import Calibration, Component
from refdiff.model.difference import patch_distance
from refdiff.model.errors import InputError, UnavailableError
from refdiff.model.images import RgbImage
from refdiff.model.progress import Progress, silent
from refdiff.tools.framing.frames import place_goldens
from refdiff.tools.framing.photos import Query
from refdiff.tools.inspection.colour import as_photo, joint_scores, maps_of, raw_scores
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.component_names import names_of
from refdiff.tools.inspection.components import VERSION as COMPONENTS_VERSION
from refdiff.tools.inspection.components import Count, Learned, Look, Mask, count, learn, look_of
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.frame_vectors import VERSION as FOUND_BY_VERSION
from refdiff.tools.inspection.methods import method_of
from refdiff.tools.inspection.robust import MAX_Z, MIN_VALUES, modified_z_scores
from refdiff.tools.inspection.specification import ProductSpec
from refdiff.tools.inspection.zones import ignored, product_spec
from refdiff.tools.vision.registration import align
from refdiff.tools.workspace import Workspace

MIN_PARTS = 2
MIN_PARTS_TO_FAIL = 20
MAX_PARTS = 400  # more would only take longer: alpha 0.01 needs 99
_CLEARLY_BETTER = 0.7  # of what a registration leaves unexplained, what a better one may leave at most
_UNSUSPICIOUS_P = 0.05  # above this p-value a score that fails no part raises no suspicion
_PIXEL_QUANTILE = 0.95
_MEASURED = 4  # part of every calibration key: raise when something else is kept of each part
_CALIBRATING_S = 900.0  # how long to wait for another process that calibrates the same product
_WAITING_S = 1.0  # between two words that it still waits
_MAX_TRIES = 3  # of a measurement during which the golden samples change


def software_fingerprint(workspace: Workspace, network: str | None = None) -> str:
    """What scores depend on besides goldens: encoder and difference weights, working size, version (hex).

    network: sha256 of the networks fitted to the product, if any.
    """
    key = f"{workspace.encoder.fingerprint}:{workspace.difference.sha256}:{patch_distance.VERSION}"
    key = key if network is None else f"{key}:{network}"
    return hashlib.sha256(key.encode()).hexdigest()


def weights_in_use(workspace: Workspace, network: str | None = None) -> dict[str, str]:
    """sha256 of all weights that scores depend on, as their cards have it.

    network: of those fitted to the product, if any.
    """
    shared = {"encoder": workspace.encoder.digest, "difference": workspace.difference.sha256}
    return shared if network is None else shared | {"product": network}


def calibrates(golden: Golden) -> bool:
    """Whether a golden's score may calibrate. Parts that people rescued from a verdict are a biased sample of good parts:
    they were selected *because* they scored high, and counting them would let defects pass."""
    return golden.source != "disposition"


def calibration_key(workspace: Workspace, product: str, references: int) -> str:
    """Hash of all that the calibration depends on; another key means that it is stale."""
    in_use = workspace.bank.list(product, IN_USE)
    goldens = sorted((g.golden_id, g.group) for g in in_use)
    spec = product_spec(workspace, product)
    known = workspace.stores.products.get(product)
    parts: dict[str, Any] = {
        "measured": _MEASURED,
        "goldens": goldens,
        "references": references,
        "software": software_fingerprint(workspace),
        "components": COMPONENTS_VERSION,
        "window": known.intensity_window if known else None,
        **of_specification(spec),
    }
    tiles = workspace.model_settings.tiles
    if tiles > 1 and not parts.keys() & {"smallest_defect_mm", "smallest_defect_px"}:
        parts["tiles"] = tiles
    if known is not None and known.kind != "photo":
        parts |= {"kind": known.kind, "found_by": FOUND_BY_VERSION, "rules": method_of(workspace, product).rules(spec)}
    if (fitted := workspace.fitted(product)) is not None:
        parts["networks"] = fitted.sha256
    if "scale" in parts:
        parts["scale"] += sorted({str(g.scale_mm_per_px) for g in in_use})
    if uncounted := sorted(g.golden_id for g in in_use if not calibrates(g)):
        parts["uncounted"] = uncounted
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def of_specification(spec: ProductSpec) -> dict[str, Any]:
    """What of a specification the scores of photos depend on; those of other kinds have rules beside it."""
    parts: dict[str, Any] = {
        "frame": spec.frame,
        "ignore": [z.model_dump() for z in spec.zones if z.kind == "ignore"],
    }
    for name in ("smallest_defect_mm", "smallest_defect_px"):
        if (smallest := getattr(spec, name)) is not None:
            parts[name] = smallest
    if spec.smallest_defect_mm is not None:
        parts["scale"] = [spec.scale_mm_per_px]
    return parts


def calibrate(
    workspace: Workspace,
    product: str,
    references: int | None = None,
    progress: Progress = silent,
    alpha: float | None = None,
    by: str = "refdiff",
) -> Calibration:
    """Measure and keep the calibration of a product. Raises InputError with fewer than two parts.

    alpha: false-reject rate that inspections of this product shall ask for from now on; None keeps what was said before.
    by: who asked for it; an inspection that finds it stale does so by itself.
    If what it depends on changes meanwhile (someone enrols), it is measured again;
    after three tries UnavailableError is raised. Scores of one bank are never kept as those of another.
    """
    with _calibrating(workspace, product, progress):
        return _calibrate(workspace, product, references or workspace.settings.references, progress, alpha, by)


@contextmanager
def _calibrating(workspace: Workspace, product: str, progress: Progress) -> Iterator[None]:
    """Nobody else calibrates the product meanwhile, in any process. Waits for one that does, or raises UnavailableError."""
    busy = UnavailableError(
        f"another process has been calibrating product {product!r} for more than {_CALIBRATING_S:g} s; try again later"
    )
    deadline, lock = time.monotonic() + _CALIBRATING_S, workspace.stores.db.lock
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(f"calibrate {product}", busy, wait_s=_WAITING_S))
                break
            except UnavailableError as e:
                if e is not busy or time.monotonic() >= deadline:
                    raise
            progress("waiting for another process that calibrates", 0, 0)  # it does not hang
        yield


def _calibrate(
    workspace: Workspace, product: str, k: int, progress: Progress, alpha: float | None, by: str
) -> Calibration:
    for _ in range(_MAX_TRIES):
        key = calibration_key(workspace, product, k)
        calibration = _measure(workspace, product, k, key, progress, alpha)
        if calibration_key(workspace, product, k) == key:
            # what depends on the same is not found out again
            known = workspace.stores.calibrations.get(product, key)
            calibration = replace(calibration, marks=known.marks if known else [])
            workspace.stores.calibrations.save(calibration, by)
            _flag(workspace, calibration)
            return calibration
    raise UnavailableError(
        f"the golden samples of product {product!r} changed during calibration; try again when nobody enrols or retires any"
    )


def measured_again(
    workspace: Workspace, product: str, calibration: Calibration, progress: Progress = silent
) -> Calibration:
    """What `calibration`, the current one, would be if this workspace had measured it; not kept.

    Raises UnavailableError where the golden samples change meanwhile.
    """
    found = _measure(workspace, product, calibration.references, calibration.key, progress, calibration.alpha)
    if calibration_key(workspace, product, calibration.references) != calibration.key:
        raise UnavailableError(
            f"the golden samples of product {product!r} changed meanwhile; try again when nobody enrols or retires any"
        )
    return found


def count_parts(workspace: Workspace, product: str) -> int:
    """How many parts a calibration of the product has, as its golden samples are now (more than 400 are sampled)."""
    return len({g.group for g in workspace.bank.list(product, IN_USE) if calibrates(g)})


def _measure(
    workspace: Workspace, product: str, k: int, key: str, progress: Progress, alpha: float | None
) -> Calibration:
    """The calibration of the golden samples as they are found now, not kept."""
    started = time.perf_counter()
    place_goldens(workspace, product, progress)
    groups: dict[str, list[Golden]] = defaultdict(list)
    of_part: dict[str, list[str]] = defaultdict(list)  # also those out of use, which a network may have seen
    for golden in workspace.bank.list(product):
        of_part[golden.group].append(golden.golden_id)
        if golden.status in IN_USE:
            groups[golden.group].append(golden)
    groups = {name: members for name, members in groups.items() if any(map(calibrates, members))}
    if len(groups) < MIN_PARTS:
        raise InputError(
            f"product {product!r} has golden samples of {len(groups)} part(s); calibration needs at least {MIN_PARTS}, "
            f"FAIL verdicts {MIN_PARTS_TO_FAIL}. Add some: refdiff enroll --product {product!r} FOLDER"
        )
    ordered = [groups[name] for name in sorted(groups)]
    chosen = [ordered[i * len(ordered) // MAX_PARTS] for i in range(MAX_PARTS)] if len(ordered) > MAX_PARTS else ordered
    scores: list[tuple[float, str]] = []  # with the golden that was measured
    peaks, similarities, levels, edges = [], [], [], []
    looks: list[Look] = []
    maps: list[list[tuple[float, float]]] = []  # of each part, what its maps say, where there are two
    ignores: list[Mask | None] = []
    loose = 0  # golden samples that do not register to the nearest
    unregistered: list[str] = []  # nor to any other of those they were compared with
    for done, members in enumerate(chosen):
        golden = min(filter(calibrates, members), key=lambda g: g.golden_id)
        result = compare(
            workspace,
            workspace.golden_image(golden),
            product,
            query_key=golden.sha256,
            references=k,
            exclude_ids=of_part[golden.group],
            features=workspace.golden_features(golden),
        )
        scores.append((result.difference.score, golden.golden_id))
        peaks.append(result.difference.peak)
        maps.append(raw_scores(result.difference))
        similarities.append(result.hits[0].similarity)
        seen, _ = as_photo(result, None)
        levels.append(seen.difference.level)
        edges.append(edge_correlation(seen))
        looks.append(look_of(result.features))
        ignores.append(result.ignore if result.zones_placed else None)
        loose += not result.alignments[0].ok
        if not any(a.ok for a in result.alignments):
            unregistered.append(golden.golden_id)
        progress("calibrating", done + 1, len(chosen))
    of_maps = maps_of(maps)
    if of_maps:
        both, peaks = joint_scores(maps)
        scores = [(score, golden_id) for score, (_, golden_id) in zip(both, scores, strict=True)]
    counted = learned_parts(workspace, product, loose, looks, ignores)
    components = _uncontradicted(workspace, product, counted.components, {look.shape for look in looks})
    per_miscount = max(score for score, _ in scores)
    scores = sorted(
        (score + per_miscount * wrong, golden_id)
        for (score, golden_id), wrong in zip(scores, counted.wrong_by, strict=True)
    )
    return Calibration(
        product=product,
        key=key,
        scores=[score for score, _ in scores],
        # most good parts show no region at all
        pixel_threshold=1.0 if of_maps else float(np.quantile(peaks, _PIXEL_QUANTILE)),
        n=len(scores),
        references=k,
        seconds=time.perf_counter() - started,
        peaks=sorted(peaks),
        similarities=sorted(similarities),
        levels=sorted(levels),
        alpha=alpha or _alpha_before(workspace, product),
        golden_ids=[golden_id for _, golden_id in scores],
        components=components,
        per_miscount=per_miscount if components else 0.0,
        unregistered=sorted(unregistered + _alone(workspace, product)),
        edges=sorted(edges),
        maps=of_maps,
    )


def learned_parts(
    workspace: Workspace, product: str, loose: int, looks: Sequence[Look], ignores: Sequence[Mask | None]
) -> Learned:
    """The equal parts in the golden samples of a product, as `components.learn` finds them; none where they are not looked
    for. loose: see `is_counted`. looks, ignores: see `components.learn`."""
    if not (method_of(workspace, product).shapes and is_counted(loose, len(looks))):
        return Learned([], [0] * len(looks))
    return learn(looks, ignores)


def is_counted(loose: int, parts: int) -> bool:
    """Whether components of a product are looked for. loose: how many of its parts do not register to the nearest.

    What registers is compared place by place; and a number that few golden samples have in common may be chance.
    """
    return loose > parts / 2 and parts >= MIN_PARTS_TO_FAIL


def _uncontradicted(
    workspace: Workspace, product: str, components: list[Component], shapes: set[tuple[int, ...]]
) -> list[Component]:
    """Components without those of which a part that people rescued from a verdict shows another number.

    shapes: of the looks that are counted; photos of others are not counted.
    """
    rescued = [g for g in workspace.bank.list(product, IN_USE) if not calibrates(g)] if components else []
    for golden in rescued:
        features = workspace.golden_features(golden)
        look = look_of(features)
        if look.shape not in shapes:
            continue
        ignore, placed = ignored(workspace, Query(workspace.golden_image(golden), golden.sha256, features), product)
        counts = count(components, look, ignore if placed else None, (1, 1))
        components = [c for c, found in zip(components, counts, strict=True) if not found.wrong_by]
    return components


def _alone(workspace: Workspace, product: str) -> list[str]:
    """Parts that people rescued from a verdict and in whose frame no other good part is: they register to none."""
    frames, in_use = workspace.stores.frames.of(product), workspace.bank.list(product, IN_USE)
    good = {frames.get(g.golden_id) for g in in_use if calibrates(g)}
    return [
        g.golden_id for g in in_use if not calibrates(g) and g.golden_id in frames and frames[g.golden_id] not in good
    ]


def seldom_unregistered(calibration: Calibration) -> bool:
    """Whether so few of the good parts register to none of the others that a photo which does not is suspicious."""
    lost, n = calibration.unregistered, calibration.n
    return lost is not None and n >= MIN_PARTS_TO_FAIL and (1 + len(lost)) / (n + 1) <= _UNSUSPICIOUS_P


def edge_correlation(comparison: Comparison) -> float:
    """-1..1: how well the edges of a photo fall on those of the golden sample that it fits best, registered or not."""
    return max(a.ncc for a in comparison.alignments)


def unusual_level(calibration: Calibration, level: float) -> bool:
    """Whether a photo differs as a whole: its level is as far above the highest of the good parts as that is above their
    median."""
    known = calibration.levels
    return len(known) >= MIN_VALUES and level > 2 * float(known[-1]) - float(np.median(known))


@dataclass(frozen=True)
class Pose:
    """What follows from how a photo lies, or does not, on its golden samples; nothing where that is as in good parts."""

    said: list[str] = field(default_factory=list)  # what no good part shows, in words; part of the score
    problem: str = ""  # the same where some golden sample does not register, either: a person has to look
    mirrored: bool = False


def with_pose(query: RgbImage, comparison: Comparison, calibration: Calibration | None) -> tuple[Comparison, Pose]:
    """A comparison whose score says, too, that the photo (H, W, 3) is mirrored, or registers to none of its golden samples.

    Unregistered, only what the photo shows is compared, and not where: a mirrored label has all its patches. Where every
    golden sample registers to another, it adds their highest score, so that the photo counts for more than any of them.
    By this alone at most 1 / (e n) more good parts fail: they have to be the first, of n + 1, that does not register. Where
    some do not (a bank of left and right parts, too), a person has to look.
    """
    if calibration is None:
        return comparison, Pose()
    lost = not any(a.ok for a in comparison.alignments)
    if not lost and not unusual_level(calibration, comparison.difference.level):
        return comparison, Pose()
    mirrored = _is_mirrored(query, comparison)
    if not mirrored and not (lost and seldom_unregistered(calibration)):
        return comparison, Pose()
    said = "fits its golden samples only when mirrored" if mirrored else "registers to none of its golden samples"
    said = f"the photo {said}"
    if others := calibration.unregistered:
        which = f"{listed_ids(others)} {'does' if len(others) == 1 else 'do'} not register to the others, either"
        return comparison, Pose(problem=f"{said}; {which}", mirrored=mirrored)
    difference = comparison.difference
    # scores of height and colour together may be below 0
    added = max(calibration.scores) - min(0.0, difference.score)
    difference = replace(difference, score=difference.score + added, added=difference.added + added)
    return replace(comparison, difference=difference), Pose([said], mirrored=mirrored)


def _is_mirrored(query: RgbImage, comparison: Comparison) -> bool:
    """Whether a photo registers to its nearest golden sample clearly better when it is mirrored, than as it is to that one
    and to the others."""
    nearest = comparison.nearest
    if not method_of(nearest.workspace, nearest.golden.product).flat:
        return False
    golden = nearest.workspace.golden_image(nearest.golden)
    flipped = align(np.ascontiguousarray(query[:, ::-1]), golden)
    as_it_is = max(align(query, golden).ncc, *(a.ncc for a in comparison.alignments))
    return flipped.ok and 1 - flipped.ncc < _CLEARLY_BETTER * (1 - as_it_is)


def listed_ids(ids: Sequence[str]) -> str:
    """The first three of some golden ids, and how many more there are."""
    return f"{', '.join(ids[:3])}{f' and {len(ids) - 3} more' if len(ids) > 3 else ''}"


def with_counts(comparison: Comparison, calibration: Calibration | None) -> tuple[Comparison, list[Count], str]:
    """A comparison whose score says what is missing or extra, too; how many of each component the photo shows; and why
    nothing was counted though it should have been, "" if it was.

    One too many or too few adds the highest image score of the golden samples, so it counts for more than any difference
    that good parts show. The calibration's scores are made the same way (see `components.learn`), so the p-value holds.
    """
    if calibration is None or not calibration.components:
        return comparison, [], ""
    nearest, look = comparison.nearest, look_of(comparison.features)
    if look.shape != look_of(nearest.workspace.golden_features(nearest.golden)).shape:
        shape = "components were not counted: the photo has another shape than the golden samples (cropped?)"
        return comparison, [], shape
    counts = count(calibration.components, look, comparison.ignore if comparison.zones_placed else None, nearest.size)
    names, _ = names_of(nearest.workspace.stores, calibration.product, calibration.components)
    counts = [replace(c, name=name) for c, name in zip(counts, names, strict=True)]
    wrong = calibration.per_miscount * sum(c.wrong_by for c in counts)
    before = comparison.difference
    difference = replace(before, score=before.score + wrong, added=before.added + wrong)
    return replace(comparison, difference=difference), counts, ""


def _alpha_before(workspace: Workspace, product: str) -> float | None:
    known = workspace.stores.calibrations.latest(product)
    return known.alpha if known else None


def requested_alpha(workspace: Workspace, calibration: Calibration | None) -> float:
    """The false-reject rate to ask for: set explicitly for this run > said when calibrating the product > the default."""
    if "alpha" in workspace.settings.model_fields_set or calibration is None:
        return workspace.settings.alpha
    return calibration.alpha or workspace.settings.alpha


def current_calibration(
    workspace: Workspace,
    product: str,
    references: int | None = None,
    progress: Progress = silent,
    by: str = "refdiff",
) -> Calibration | None:
    """The calibration that fits the bank as it is now, redone if stale; None with fewer than two parts. by: who asked."""
    k = references or workspace.settings.references
    known = workspace.stores.calibrations.get(product, calibration_key(workspace, product, k))
    if known is not None:
        return known
    if count_parts(workspace, product) < MIN_PARTS:
        return None
    with _calibrating(workspace, product, progress):
        # by the one that was waited for
        known = workspace.stores.calibrations.get(product, calibration_key(workspace, product, k))
        return known or _calibrate(workspace, product, k, progress, None, by)


def attained_alpha(alpha: float, n: int, in_doubt: int = 0) -> float:
    """The smallest false-reject rate that n calibration parts can promise, not below the requested one.

    in_doubt: 1 if the highest score may be that of a defect, so that it must not set the limit: then the second highest
    does, which good parts exceed at a rate of at most 2 / (n + 1), whatever the highest is (see `in_doubt`).
    """
    return max(alpha, (1 + in_doubt) / (n + 1))


def score_threshold(scores: list[float], alpha: float, in_doubt: int = 0) -> float | None:
    """The score above which a part fails (p <= attained); None without calibration."""
    if not scores:
        return None
    k = int(attained_alpha(alpha, len(scores), in_doubt) * (len(scores) + 1) + 1e-9)
    return sorted(scores, reverse=True)[min(k, len(scores)) - 1]


@dataclass(frozen=True)
class StandingOut:
    """A golden whose score stands out from those of the others: a defect, or an unusual good part?"""

    golden_id: str
    score: float


def standing_out(calibration: Calibration) -> list[StandingOut]:
    """Goldens that score much higher than the others, highest first; [] for fewer than 8 parts, or if it was not kept which
    golden has which score."""
    if len(calibration.golden_ids) < MIN_VALUES:
        return []
    far = modified_z_scores(calibration.scores) > MAX_Z
    scored = zip(calibration.golden_ids, calibration.scores, far, strict=True)
    return [StandingOut(golden_id, score) for golden_id, score, is_far in scored if is_far][::-1]


def in_doubt(workspace: Workspace, calibration: Calibration | None) -> int:
    """1 while the golden sample with the highest score stands out and nobody has said that it is good, else 0.

    One overlooked defect among the golden samples would let all defects up to its own score pass. Of several, the others
    still do: with each left out, more good parts would fail. An unusual good part costs the same until somebody decides.
    """
    if calibration is None or not (found := standing_out(calibration)):
        return 0
    flagged = workspace.bank.list(calibration.product, ("flagged",))
    return int(found[0].golden_id in {g.golden_id for g in flagged})


def limit_without(calibration: Calibration, found: Sequence[StandingOut], alpha: float) -> float | None:
    """The score above which a part would fail if those goldens were retired, as far as the other scores stay the same."""
    return score_threshold(calibration.scores[: calibration.n - len(found)], alpha)


def said_of(
    calibration: Calibration,
    found: Sequence[StandingOut],
    alpha: float,
    in_doubt: int,
    decided: Collection[str] = (),
) -> str:
    """What stands out, for people: which goldens, and what the limit is with and without them.

    decided: those that a person has activated.
    """
    told = dict.fromkeys(decided, " (activated)")
    scores = ", ".join(f"{one.golden_id} scores {one.score:.3f}{told.get(one.golden_id, '')}" for one in found)
    limit, without = score_threshold(calibration.scores, alpha, in_doubt), limit_without(calibration, found, alpha)
    if_good, them = score_threshold(calibration.scores, alpha), "it" if len(found) == 1 else "them"
    said = f"golden samples stand out: {scores} (median {float(np.median(calibration.scores)):.3f}). A defect? "
    said += f"Parts {'fail' if calibration.n >= MIN_PARTS_TO_FAIL else 'go to REVIEW'} above {limit:.3f}"
    if if_good != limit:
        said += f" while {found[0].golden_id} is in doubt, above {if_good:.3f} once it is activated"
    return f"{said}; without {them} they would above {without:.3f}"


def _flag(workspace: Workspace, calibration: Calibration) -> None:
    """Flag what stands out for a person. A golden that a person has looked at (it has a note) is left alone."""
    middle = float(np.median(calibration.scores))
    for golden_id in (calibration.unregistered or []) if seldom_unregistered(calibration) else []:
        if calibrates(workspace.bank.get(golden_id)):
            workspace.bank.flag(golden_id, "registers to none of the other golden samples: mirrored, or another part?")
    for one in standing_out(calibration):
        said = f"scores {one.score:.3f} against the other golden samples, median {middle:.3f}; a defect?"
        workspace.bank.flag(one.golden_id, f"stands out: {said}")


def p_value(calibration: Calibration, score: float) -> float:
    """Conformal p-value of a score: (1 + #{calibration scores >= score}) / (n + 1), in (0, 1].

    Vovk et al., "Algorithmic Learning in a Random World", 2005.
    """
    return (1 + sum(s >= score for s in calibration.scores)) / (calibration.n + 1)


def peak_p_value(calibration: Calibration, peak: float) -> float:
    """The same of the strongest place of a region, against the strongest places of the good samples."""
    return (1 + sum(s >= peak for s in calibration.peaks)) / (calibration.n + 1)


def is_suspicious(calibration: Calibration, p: float, attained: float) -> bool:
    """Whether a score alone raises suspicion: it fails the part, or few good parts have one as high."""
    return p <= _UNSUSPICIOUS_P or (p <= attained and calibration.n >= MIN_PARTS_TO_FAIL)


def unlike_goldens(calibration: Calibration | None, p: float | None, similarity: float, attained: float) -> str:
    """The problem with a photo whose score is unsuspicious but which resembles no golden sample; "" if there is none.

    The score says how much differs from the reference; a photo without detail (too dark, wrong product) may hardly differ
    at all. Limit: as far below the least similar good part as that one is below the median.
    """
    if calibration is None or not (known := calibration.similarities):
        return ""
    if p is None or is_suspicious(calibration, p, attained):
        return ""
    least = float(known[0])
    if similarity >= least - (float(np.median(known)) - least):
        return ""
    return (
        f"the photo does not resemble any golden sample (similarity {similarity:.2f}; good parts have at least "
        f"{least:.2f}): wrong product or variant, or too dark?"
    )


def region_confidence(calibration: Calibration, peak: float) -> float:
    """Fraction of the good parts whose strongest place is weaker than this peak, 0..1 (never quite 1)."""
    return sum(p < peak for p in calibration.peaks) / (len(calibration.peaks) + 1)


def summary(calibration: Calibration, alpha: float, in_doubt: int = 0) -> dict[str, object]:
    """For people and --json: what was measured and which false-reject rate it can promise. components: how many of each."""
    attained = attained_alpha(alpha, calibration.n, in_doubt)
    hidden: tuple[str, ...] = (
        "scores",
        "peaks",
        "similarities",
        "levels",
        "edges",
        "alpha",
        "golden_ids",
        "marks",
        "components",
        "per_miscount",
        "maps",
    )
    odd: dict[str, object] = {}
    if found := standing_out(calibration):
        odd = {
            "stand_out": [asdict(one) for one in found],
            "in_doubt": in_doubt,
            "limit": score_threshold(calibration.scores, alpha, in_doubt),
            "limit_if_good": score_threshold(calibration.scores, alpha),
            "limit_without": limit_without(calibration, found, alpha),
        }
    counted: dict[str, object] = {}
    if calibration.components:
        counted["components"] = [c.count for c in calibration.components]
    if calibration.maps:
        counted["maps"] = [{k: v for k, v in asdict(of).items() if k != "scores"} for of in calibration.maps]
    if not seldom_unregistered(calibration):
        hidden = (*hidden, "unregistered")
    return (
        {k: v for k, v in asdict(calibration).items() if k not in hidden}
        | {
            "alpha": {"requested": alpha, "attained": attained},
            "score_range": [min(calibration.scores), max(calibration.scores)],
            "can_fail": calibration.n >= MIN_PARTS_TO_FAIL,
            # a tiny alpha makes it infinite
            "goldens_needed_for_alpha": int(min(np.ceil((1 + in_doubt) / alpha), 2.0**53)) - 1,
        }
        | counted
        | odd
    )
