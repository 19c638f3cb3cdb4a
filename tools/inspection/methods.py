"""How each kind of product is compared and measured: the one table that inspection, calibration and tools look into.

A kind brings functions, no classes of its own. Every kind whose reader makes pictures is retrieved, placed in frames and
registered by these, as photos are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from refdiff.memory.golden_bank.golden import GoldenHit
from refdiff.memory.kinds import ProductKind
from refdiff.model.defect_types import MeasuredType
from refdiff.model.difference.features import Features
from refdiff.model.errors import InputError
from refdiff.model.images import Mask, RgbImage
from refdiff.tools.framing.photos import alignments
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.difference import Comparison, Difference, RegisteredGolden, score_difference
from refdiff.tools.inspection.heat import (
    compare_heat,
    heat_notes,
    heat_problems,
    measure_heat,
    refined_heat,
    said_of_heat,
)
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.inspection.specification import ProductSpec
from refdiff.tools.inspection.zones import product_spec
from refdiff.tools.kinds.conditions import Stated
from refdiff.tools.kinds.reading import Quantity, Reading
from refdiff.tools.kinds.thermal import SCORED, ThermalRules
from refdiff.tools.vision.measurement import Measurement, measure
from refdiff.tools.vision.regions import Region
from refdiff.tools.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """A photo and the goldens to compare it with, nearest first. query_key: sha256 of the photo; features: of it as it is.

    unseen: goldens (ids) that a network must not have been trained on. ignore: `map_size` of the photo, what does not count.
    """

    workspace: Workspace
    query: RgbImage
    query_key: str
    features: Features
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


@dataclass(frozen=True)
class Remarks:
    """What a report says about a comparison besides its numbers. problems: why a person has to look."""

    conditions: tuple[Stated, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Method:
    """How products of one kind are compared and measured."""

    unit: str  # of the image score and the anomaly map; "" without
    networks: bool  # networks compare: they can be fitted to a product, and another light changes the score
    shapes: bool  # pictures show what is where: equal parts are counted, and edges and outlines compared
    # the golden samples as they lie on the photo, nearest first, and how the photo differs from them
    compare: Callable[[Asked], tuple[list[RegisteredGolden], Difference]]
    measure: Callable[[RgbImage, Comparison, Region, ResolvedScale], Measurement]
    describe: Callable[[Comparison, str, Measurement], Described]  # str: sha256 of the photo
    remarks: Callable[[Comparison, str], Remarks]
    # JSON: what scores depend on of the specification, besides zones and the smallest defect
    rules: Callable[[ProductSpec], dict[str, Any]]


# ---- photos ----


def _compare_photo(asked: Asked) -> tuple[list[RegisteredGolden], Difference]:
    pair = pair_with(
        asked.workspace, asked.query, asked.query_key, asked.features, asked.product, asked.hits, asked.clock
    )
    with asked.clock.stage("score"):
        network = asked.workspace.network(asked.product, asked.unseen)
        difference = score_difference(asked.query, pair.sizes, pair.references, asked.ignore, network)
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
    workspace, size = asked.workspace, (asked.query.shape[0], asked.query.shape[1])
    query = workspace.reading(asked.query_key, asked.product)
    rules = product_spec(workspace, asked.product).thermal or ThermalRules()
    with asked.clock.stage("align"):
        goldens = [h.golden for h in asked.hits]
        references = []
        for golden, found in zip(goldens, alignments(workspace, asked.query, asked.query_key, goldens), strict=True):
            values = workspace.golden_reading(golden).values
            if found.ok and query.values is not None and values is not None:
                found = replace(found, matrix=refined_heat(query.values, values, found.matrix))
            references.append(RegisteredGolden(workspace, golden, found, size))
    with asked.clock.stage("score"):
        return references, compare_heat(query, references, asked.ignore, rules)


def _measure_heat(query: RgbImage, comparison: Comparison, region: Region, scale: ResolvedScale) -> Measurement:
    assert comparison.difference.heat is not None, "compared as a thermal picture"
    return measure_heat(comparison.difference.heat, region, scale)


def _describe_heat(comparison: Comparison, query_key: str, measurement: Measurement) -> Described:
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


METHODS: Mapping[ProductKind, Method] = {
    "photo": Method(
        unit="",
        networks=True,
        shapes=True,
        compare=_compare_photo,
        measure=_measure_photo,
        describe=lambda comparison, query_key, measurement: Described(),
        remarks=lambda comparison, query_key: Remarks(),
        rules=lambda spec: {},
    ),
    "thermal": Method(
        unit="K",
        networks=False,
        # An edge of warmth moves without any part moving, and a part that is cold looks like one that is missing. Both are
        # said in kelvin, as is the score, to which a wrong count would add something else.
        shapes=False,
        compare=_compare_heat,
        measure=_measure_heat,
        describe=_describe_heat,
        remarks=_heat_remarks,
        rules=lambda spec: (spec.thermal or ThermalRules()).model_dump(mode="json", include=SCORED),
    ),
}


def method_of(workspace: Workspace, product: str) -> Method:
    """How a product is compared. Raises InputError for a kind that is not supported yet."""
    kind = workspace.kind(product)
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
