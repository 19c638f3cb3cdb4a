"""How each kind of product is compared and measured: the one table that inspection, calibration and tools look into.

A kind brings functions, no classes of its own. Every kind whose reader makes pictures is retrieved, placed in frames and
registered by these, as photos are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.memory.kinds import ProductKind
from refdiff.model.defect_types import MeasuredType
from refdiff.model.errors import InputError
from refdiff.model.images import F32, Mask, RgbImage
from refdiff.model.thermal.difference import from_own_healthy
from refdiff.tools.framing.photos import Query, alignments
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.colour import (
    FOUND_IN_COLOUR,
    as_one,
    colour_notes,
    compare_colour,
    found_in,
    measure_either,
    said_of_colour,
)
from refdiff.tools.inspection.difference import Comparison, Difference, RegisteredGolden, score_difference
from refdiff.tools.inspection.heat import compare_heat, heat_notes, heat_problems, measure_heat, said_of_heat
from refdiff.tools.inspection.height import (
    compare_height,
    height_notes,
    height_planes,
    height_problems,
    measure_height,
    said_of_height,
)
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.on_query import on_query, refined, turned
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.inspection.scan import (
    compare_scan,
    measure_scan,
    said_of_scan,
    scan_notes,
    scan_points,
    scan_problems,
    scan_signed,
    view_place,
)
from refdiff.tools.inspection.specification import ProductSpec
from refdiff.tools.inspection.zones import product_spec
from refdiff.tools.kinds.cloud import READ as READ_CLOUD
from refdiff.tools.kinds.cloud import CloudRules
from refdiff.tools.kinds.conditions import Stated
from refdiff.tools.kinds.depth import SCORED as SCORED_DEPTH
from refdiff.tools.kinds.depth import DepthRules, states_colour
from refdiff.tools.kinds.reading import Quantity, Reading
from refdiff.tools.kinds.thermal import SCORED, ThermalRules
from refdiff.tools.vision.measurement import Measurement, measure
from refdiff.tools.vision.regions import Region
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """A photo and the goldens to compare it with, nearest first.

    unseen: goldens (ids) that a network must not have been trained on. ignore: `map_size` of the photo, what does not count.
    """

    workspace: Workspace
    query: Query
    product: str
    hits: list[GoldenHit]
    clock: Clock
    unseen: Collection[str]
    ignore: Mask | None


@dataclass(frozen=True)
class Described:
    """A place in words and numbers. called: what it is, where the kind's measurement says that; None: a network guesses."""

    called: MeasuredType | None = None
    quantities: tuple[Quantity, ...] = ()
    place: str | None = None  # its name, where the kind has other names than those of a picture's parts
    found_in: tuple[str, ...] = ()  # "height", "colour" or both, where both are compared


@dataclass(frozen=True)
class Remarks:
    """What a report says about a comparison besides its numbers. problems: why a person has to look."""

    conditions: tuple[Stated, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Planes:
    """What is drawn of a comparison: (H, W) on the px of the photo, NaN where nothing is known."""

    query: F32  # what was measured
    reference: F32  # of the nearest golden sample
    signed: F32  # their difference
    own: F32 | None = None  # the difference from the part's own healthy places, where the kind knows such
    shaded: bool = (
        False  # the reading's picture shows more than its values, and findings are marked with the difference
    )


@dataclass(frozen=True)
class Method:
    """How products of one kind are compared and measured."""

    # the golden samples as they lie on the photo, nearest first, and how the photo differs from them
    compare: Callable[[Asked], tuple[list[RegisteredGolden], Difference]]
    measure: Callable[[RgbImage, Comparison, Region, ResolvedScale], Measurement]
    unit: str = ""  # of the image score and the anomaly map
    networks: bool = False  # networks compare: they can be fitted to a product, and another light changes the score
    # pictures are exposures: how they look as a whole, and what lies outside of the window, says something
    exposed: bool = False
    flat: bool = True  # files are pictures, registered in the plane: a part can be mirrored
    # Pictures show what is where: equal parts are counted, and edges and outlines compared. Not of what is measured: an edge
    # of warmth moves without any part moving, a part that is cold looks like one that is missing, and what has moved is
    # measured in mm. The score is in that unit, to which a wrong count would add something else.
    shapes: bool = False
    describe: Callable[[Comparison, str, Region, Measurement, ResolvedScale], Described] = lambda *_: Described()
    remarks: Callable[[Comparison, str], Remarks] = lambda *_: Remarks()
    # JSON: what scores depend on of the specification, besides zones and the smallest defect
    rules: Callable[[ProductSpec], dict[str, Any]] = lambda _: {}
    # (n, 4) x, y, z and deviation, mm, of what can be turned in space; None for pictures
    points: Callable[[Reading, Reading], F32 | None] = lambda *_: None
    # of photo and golden sample; None: they show themselves
    planes: Callable[[Reading, Reading, KeptDifference], Planes | None] = lambda *_: None


# ---- photos ----


def _compare_photo(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    pair = pair_with(asked.workspace, asked.query, asked.product, asked.hits, asked.clock)
    with asked.clock.stage("score"):
        network = asked.workspace.network(asked.product, asked.unseen)
        difference = score_difference(asked.query.image, pair.sizes, pair.references, asked.ignore, network)
    return pair.references, difference


def _measure_photo(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    nearest, difference = comparison.nearest, comparison.difference
    return measure(
        query,
        nearest.workspace.golden_image(nearest.golden),
        nearest.alignment,
        difference.anomaly_map,
        region.box,
        mask=region.mask,
        cell=difference.cell_of(query.shape),
        mm_per_px=scale.mm_per_px,
        scale_uncertainty=scale.uncertainty,
    )


# ---- thermal pictures ----


def _compare_heat(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    workspace = asked.workspace
    query = workspace.reading(asked.query.key, asked.product)
    rules = product_spec(workspace, asked.product).thermal or ThermalRules()
    references = _registered(asked, query)
    with asked.clock.stage("score"):
        return references, compare_heat(query, references, asked.ignore, rules)


def _registered(asked: Asked, query: Reading, *, turns: bool = False) -> list[RegisteredGolden]:
    """The golden samples as they lie on the photo, registered as photos are, then on what was measured. turns: also tried
    the other ways round, see `turned`."""
    workspace, size = asked.workspace, (asked.query.image.shape[0], asked.query.image.shape[1])
    with asked.clock.stage("align"):
        goldens = [h.golden for h in asked.hits]
        references = []
        for golden, found in zip(goldens, alignments(workspace, asked.query, goldens), strict=True):
            values = workspace.golden_reading(golden).values
            if found.ok and query.values is not None and values is not None:
                start = turned(query.values, values, found.matrix) if turns else found.matrix
                found = replace(found, matrix=refined(query.values, values, start))
            references.append(RegisteredGolden(workspace, golden, found, size))
    return references


def _measure_heat(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    assert comparison.difference.heat is not None, "compared as a thermal picture"
    return measure_heat(comparison.difference.heat, region, scale)


def _describe_heat(
    comparison: Comparison, query_key: str, region: Region, measurement: Measurement, scale: ResolvedScale
) -> Described:
    query, rules = _heat_of(comparison, query_key)
    left = comparison.nearest.alignment.residual_px
    return Described(*said_of_heat(query, comparison.difference, measurement, rules, left))


def _heat_remarks(comparison: Comparison, query_key: str) -> Remarks:
    query, rules = _heat_of(comparison, query_key)
    nearest = comparison.nearest
    golden = nearest.workspace.golden_reading(nearest.golden)
    notes = heat_notes(query, comparison.difference, golden, nearest.golden.golden_id)
    problems = heat_problems(comparison.difference, nearest.alignment.ok, rules)
    return Remarks(query.conditions, tuple(notes), tuple(problems))


def _heat_of(comparison: Comparison, query_key: str) -> tuple[Reading, ThermalRules]:
    workspace, product = comparison.nearest.workspace, comparison.nearest.golden.product
    return workspace.reading(query_key, product), product_spec(workspace, product).thermal or ThermalRules()


def _heat_planes(query: Reading, golden: Reading, kept: KeptDifference) -> Planes | None:
    assert query.values is not None, "a thermal picture has temperatures"
    assert golden.values is not None, "a thermal picture has temperatures"
    theirs = on_query(golden.values, kept.matrix, query.picture.shape[:2])
    signed = query.values - theirs - np.float32(kept.offset)
    return Planes(query.values, theirs, signed, from_own_healthy(query.values, theirs, signed))


# ---- height maps ----


def _compare_height(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    query = asked.workspace.reading(asked.query.key, asked.product)
    rules = product_spec(asked.workspace, asked.product).depth or DepthRules()
    references = _registered(asked, query, turns=True)
    with asked.clock.stage("score"):
        return references, compare_height(query, references, asked.ignore, rules)


def _measure_height(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    assert comparison.difference.height is not None, "compared as a height map"
    return measure_height(comparison.difference.height, region, scale)


def _describe_height(
    comparison: Comparison, query_key: str, region: Region, measurement: Measurement, scale: ResolvedScale
) -> Described:
    query, rules = _height_of(comparison, query_key)
    return Described(*said_of_height(query, comparison, measurement, scale, rules))


def _height_remarks(comparison: Comparison, query_key: str) -> Remarks:
    query, rules = _height_of(comparison, query_key)
    golden = comparison.nearest.workspace.golden_reading(comparison.nearest.golden)
    notes = height_notes(query, comparison, golden, rules)
    return Remarks((), tuple(notes), tuple(height_problems(query, comparison, golden, rules)))


def _height_of(comparison: Comparison, query_key: str) -> tuple[Reading, DepthRules]:
    workspace, product = comparison.nearest.workspace, comparison.nearest.golden.product
    return workspace.reading(query_key, product), product_spec(workspace, product).depth or DepthRules()


def _height_planes(query: Reading, golden: Reading, kept: KeptDifference) -> Planes | None:
    assert query.values is not None, "a height map has heights"
    return Planes(query.values, *height_planes(query, golden, kept))


# ---- height maps with colour photos ----


def _compare_both(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    references, difference = _compare_height(asked)
    photo = asked.workspace.reading(asked.query.key, asked.product).visible
    assert photo is not None, "read with its colour photo"
    colour = compare_colour(photo, asked.query.key, references, asked.ignore, asked.clock)
    return references, as_one(replace(difference, colour=colour), None)


def _measure_both(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    return measure_either(comparison, region, scale)


def _describe_both(
    comparison: Comparison, query_key: str, region: Region, measurement: Measurement, scale: ResolvedScale
) -> Described:
    where = found_in(comparison.difference, region)
    called, of_colour = said_of_colour(comparison.difference, measurement)
    if where == (FOUND_IN_COLOUR,):
        return Described(called, (of_colour,), found_in=where)
    height = _describe_height(comparison, query_key, region, measurement, scale)
    quantities = (*height.quantities, of_colour) if FOUND_IN_COLOUR in where else height.quantities
    return replace(height, quantities=quantities, found_in=where)


def _remarks_of_both(comparison: Comparison, query_key: str) -> Remarks:
    found = _height_remarks(comparison, query_key)
    return replace(found, notes=(*colour_notes(comparison.difference), *found.notes))


# ---- point clouds ----


def _compare_scan(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    workspace, size = asked.workspace, (asked.query.image.shape[0], asked.query.image.shape[1])
    query, window = workspace.reading(asked.query.key, asked.product), workspace.how(asked.product).window
    assert window is not None, "set with the first golden sample"
    with asked.clock.stage("align"):
        goldens = [h.golden for h in asked.hits]
        found = alignments(workspace, asked.query, goldens)
        references = [RegisteredGolden(workspace, g, a, size) for g, a in zip(goldens, found, strict=True)]
    with asked.clock.stage("score"):
        return references, compare_scan(query, references, window, asked.ignore)


def _measure_scan(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    assert comparison.difference.scan is not None, "compared as a cloud"
    return measure_scan(comparison.difference.scan, region, scale)


def _describe_scan(
    comparison: Comparison, query_key: str, region: Region, measurement: Measurement, scale: ResolvedScale
) -> Described:
    query, rules = _scan_of(comparison, query_key)
    return Described(*said_of_scan(query, comparison, measurement, rules), view_place(measurement))


def _scan_remarks(comparison: Comparison, query_key: str) -> Remarks:
    query, rules = _scan_of(comparison, query_key)
    return Remarks((), tuple(scan_notes(query, comparison)), tuple(scan_problems(query, comparison, rules)))


def _scan_of(comparison: Comparison, query_key: str) -> tuple[Reading, CloudRules]:
    workspace, product = comparison.nearest.workspace, comparison.nearest.golden.product
    return workspace.reading(query_key, product), product_spec(workspace, product).cloud or CloudRules()


def _scan_planes(query: Reading, golden: Reading, kept: KeptDifference) -> Planes | None:
    assert query.values is not None, "a cloud has depths"
    assert golden.values is not None, "a cloud has depths"
    return Planes(query.values, golden.values, scan_signed(query, golden), shaded=True)


METHODS: Mapping[ProductKind, Method] = {
    "photo": Method(_compare_photo, _measure_photo, networks=True, exposed=True, shapes=True),
    "thermal": Method(
        _compare_heat,
        _measure_heat,
        unit="K",
        exposed=True,
        describe=_describe_heat,
        remarks=_heat_remarks,
        rules=lambda spec: (spec.thermal or ThermalRules()).model_dump(mode="json", include=SCORED),
        planes=_heat_planes,
    ),
    "depth": Method(
        _compare_height,
        _measure_height,
        unit="mm",
        describe=_describe_height,
        remarks=_height_remarks,
        rules=lambda spec: (spec.depth or DepthRules()).model_dump(mode="json", include=SCORED_DEPTH),
        planes=_height_planes,
    ),
    "cloud": Method(
        _compare_scan,
        _measure_scan,
        unit="mm",
        flat=False,
        describe=_describe_scan,
        remarks=_scan_remarks,
        rules=lambda spec: (spec.cloud or CloudRules()).model_dump(mode="json", include=READ_CLOUD),
        points=scan_points,
        planes=_scan_planes,
    ),
}


_COLOUR_MEASURED = 2  # part of their calibration keys: raise when something else is kept of each colour photo
# heights and colours have no unit in common
_IN_COLOUR = replace(
    METHODS["depth"], compare=_compare_both, measure=_measure_both, describe=_describe_both, remarks=_remarks_of_both,
    unit="",
    rules=lambda spec: METHODS["depth"].rules(spec) | {"colour_measured": _COLOUR_MEASURED},
)  # fmt: skip


def method_of(workspace: Workspace, product: str) -> Method:
    """How a product is compared. Raises InputError for a kind that is not supported yet."""
    kind = workspace.kind(product)
    if kind == "depth" and states_colour(workspace.how(product)):
        return _IN_COLOUR
    method = METHODS.get(kind)
    if method is None:
        raise InputError(f"product {product!r} is of kind {kind!r}, which is not supported yet")
    return method


def check_networks(workspace: Workspace, product: str, what: str) -> None:
    """Raises InputError where no network compares photos of a product. what: what was asked for."""
    if not method_of(workspace, product).networks:
        raise InputError(
            f"{what}: product {product!r} is of kind {workspace.kind(product)!r}, which no network compares"
        )
