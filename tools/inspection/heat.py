"""The difference of a thermal picture and its golden samples in kelvin, and what is measured of a place in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refdiff.model.defect_types import DIFFERENCE_TYPES, MeasuredType
from refdiff.model.images import F32, Mask
from refdiff.model.thermal.difference import Camera, HeatDifference, Spot, compare, measure_spot
from refdiff.tools.inspection.difference import Difference, RegisteredGolden
from refdiff.tools.inspection.on_query import on_query
from refdiff.tools.inspection.scale import ResolvedScale
from refdiff.tools.kinds.reading import Quantity, Reading
from refdiff.tools.kinds.thermal import ThermalRules
from refdiff.tools.vision.measurement import Measurement, of_mask
from refdiff.tools.vision.regions import Region

_CELL_PX = 3.0  # as near as two spots can be told apart: what is tolerated, and smoothed, on either side
_LEVEL_PART = 0.25
_CORE = 0.5  # of a spot's height: what is measured of it
_RESIDUAL_PX = 0.5  # where the registration cannot say what it left


def compare_heat(
    query: Reading, references: Sequence[RegisteredGolden], ignore: Mask | None, rules: ThermalRules
) -> Difference:
    """The score is how far, in K, the hottest (or coldest) place lies outside of what the references show there.

    ignore: (H, W), what does not count.
    """
    assert query.values is not None, "a thermal picture has temperatures"
    planes = [_on_query(one) for one in references]
    heat = compare(query.values, planes, remove_shift=rules.remove_ambient, ignore=ignore)
    counted = heat.covered if ignore is None else heat.covered & ~ignore
    off = np.abs(heat.signed[counted & np.isfinite(heat.signed)])
    peak = float(heat.deviation.max())
    return Difference(
        anomaly_map=heat.deviation,
        score=peak,
        peak=peak,
        covered=float(heat.covered.mean()),
        scored=float(counted.mean()),
        types=np.zeros((len(DIFFERENCE_TYPES), 1, 1), np.float32),
        cell=_CELL_PX,
        focus_problem="",
        level=float(np.quantile(off, _LEVEL_PART)) if off.size else 0.0,
        heat=heat,
    )


def _on_query(reference: RegisteredGolden) -> F32:
    """A golden sample's temperatures on the query's pixels, NaN where it ends."""
    values = reference.workspace.golden_reading(reference.golden).values
    assert values is not None, "a golden sample of a thermal product has temperatures"
    return on_query(values, reference.alignment.matrix, reference.size)


def measure_heat(heat: HeatDifference, region: Region, scale: ResolvedScale) -> Measurement:
    """The px of a region in which the difference has at least half its height."""
    x0, y0, x1, y1 = region.box
    core = region.mask & (heat.deviation[y0:y1, x0:x1] >= _CORE * region.peak)
    return of_mask(region.box, core, heat.deviation.shape, scale.mm_per_px, scale.uncertainty)


def said_of_heat(
    query: Reading, difference: Difference, measurement: Measurement, rules: ThermalRules, residual_px: float | None
) -> tuple[MeasuredType, tuple[Quantity, ...]]:
    """What a place is (`hot_spot`, `cold_spot`), and what is measured of it."""
    assert query.values is not None, "a thermal picture has temperatures"
    assert difference.heat is not None, "compared as a thermal picture"
    stated = {c.name: c.value for c in query.conditions}
    camera = Camera(
        rules.accuracy_k, rules.accuracy_percent, stated.get("emissivity"), rules.emissivity_uncertainty,
        stated.get("reflected_c"),
    )  # fmt: skip
    left = _RESIDUAL_PX if residual_px is None else residual_px
    spot = measure_spot(query.values, difference.heat, measurement.box, measurement.mask, camera, left)
    return "hot_spot" if spot.hot else "cold_spot", tuple(_quantities(spot))


def _quantities(spot: Spot) -> list[Quantity]:
    end = "Hottest" if spot.hot else "Coldest"
    peers = "as warm on the golden sample" if spot.healthy_alike else "of the part"
    own = f"ΔT against the healthy places {peers} (median {spot.healthy_c:.1f} °C)"
    sure = spot.temperature_uncertainty_k
    return [
        Quantity("delta_k", "ΔT against the golden sample", spot.delta_k, "K", spot.delta_uncertainty_k),
        Quantity("mean_delta_k", "Mean ΔT of the spot", spot.mean_delta_k, "K"),
        Quantity("healthy_delta_k", own, spot.healthy_delta_k, "K"),
        Quantity("extreme_c", f"{end} temperature", spot.max_c, "°C", sure),
        *([] if spot.hot else [Quantity("hottest_c", "Hottest temperature", spot.hottest_c, "°C", sure)]),
        Quantity("mean_c", "Mean temperature of the spot", spot.mean_c, "°C", sure),
    ]


def heat_notes(query: Reading, difference: Difference, golden: Reading, golden_id: str) -> list[str]:
    """What people must know of a comparison, besides its numbers."""
    heat = difference.heat
    assert heat is not None, "compared as a thermal picture"
    shift = f"the part as a whole is {heat.shift_k:+.1f} K against golden sample {golden_id} (median)"
    told = f"{shift}; this shift is removed from all differences" if heat.removed else f"{shift}; it is not removed"
    ours, theirs = ({c.name: c.value for c in r.conditions}.get("emissivity") for r in (query, golden))
    other = [] if ours == theirs else [f"the emissivity is {_said(ours)} here and {_said(theirs)} on the golden sample"]
    return [told, *query.notes, *other]


def _said(value: float | None) -> str:
    return "unknown" if value is None else f"{value:g}"


def heat_problems(difference: Difference, registered: bool, rules: ThermalRules) -> list[str]:
    """Why a person has to look, whatever the score."""
    heat = difference.heat
    assert heat is not None, "compared as a thermal picture"
    found = []
    if not registered:
        found.append("temperatures were compared without registration")
    if heat.removed and abs(heat.shift_k) > rules.max_ambient_k:
        found.append(
            f"the part as a whole is {heat.shift_k:+.1f} K against its golden sample, more than {rules.max_ambient_k:g} K "
            "(`thermal: max_ambient_k`): another ambient temperature or load, or all of it is wrong?"
        )
    return found
