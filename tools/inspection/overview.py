"""A product with all that decides about its parts: specification, golden samples, calibration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from refdiff.memory.golden_bank.golden import STATUSES
from refdiff.memory.rows.calibrations import Calibration
from refdiff.model.errors import unknown_product
from refdiff.tools.inspection.calibration import calibration_key, in_doubt, requested_alpha, summary
from refdiff.tools.inspection.component_names import names_of
from refdiff.tools.inspection.detectable import detectable
from refdiff.tools.inspection.fineness import product_fineness
from refdiff.tools.workspace import Workspace

_OF_LAST_FIT = ("outcome", "by", "message", "found", "created_at")


def product_names(workspace: Workspace) -> list[str]:
    """The known products, with or without golden samples, sorted."""
    return sorted({p.name for p in workspace.stores.products.list()} | set(workspace.bank.products()))


def product_overview(workspace: Workspace, name: str) -> dict[str, Any]:
    """The product's record, the number of its goldens by status, and its newest calibration (None before the first).

    goldens_with_scale: how many have one of their own. smallest_defect: how fine photos are looked at, None before a golden
    is in a frame. last_fit: how it went, None if there was none.
    A calibration is stale if the next inspection measures it again. JSON data. Raises UnknownProductError.
    """
    found = workspace.stores.products.get(name)
    if found is None:
        raise unknown_product(name, product_names(workspace))
    goldens = workspace.bank.list(found.name)
    statuses = [g.status for g in goldens]
    last = workspace.stores.networks.last_attempt(found.name)
    shown, stale = shown_calibration(workspace, found.name)
    calibration = None if shown is None else calibration_overview(workspace, shown) | {"stale": stale}
    return found.document | {
        "goldens": {s: statuses.count(s) for s in STATUSES},
        "goldens_with_scale": sum(g.scale_mm_per_px is not None for g in goldens),
        "calibration": calibration,
        "smallest_defect": product_fineness(workspace, found.name),
        "network": _network(workspace, found.name),
        "last_fit": None if last is None else {k: v for k, v in asdict(last).items() if k in _OF_LAST_FIT},
    }


def shown_calibration(workspace: Workspace, product: str) -> tuple[Calibration | None, bool]:
    """The calibration in use, and whether it is stale: then it is the latest. None if there is none."""
    calibrations = workspace.stores.calibrations
    if (latest := calibrations.latest(product)) is None:
        return None, False
    in_use = calibrations.get(product, calibration_key(workspace, product, workspace.settings.references))
    return in_use or latest, in_use is None


def calibration_overview(workspace: Workspace, calibration: Calibration) -> dict[str, Any]:
    """What a calibration promises, what people call what it counts, and how small a defect is found where somebody asked
    for that. component_names: of each of `components`, None without one; unrecognised_names: of none of them. JSON data."""
    found = summary(calibration, requested_alpha(workspace, calibration), in_doubt(workspace, calibration))
    names, unrecognised = names_of(workspace.stores, calibration.product, calibration.components)
    found |= {"component_names": names} if names else {}
    found |= {"unrecognised_names": unrecognised} if unrecognised else {}
    marks = detectable(workspace, calibration)
    return found | ({} if marks is None else {"detectable": marks})


def _network(workspace: Workspace, product: str) -> dict[str, Any] | None:
    """The network that was fitted to a product. outdated: why it is not in use, "" if it is."""
    if (known := workspace.stores.networks.get(product)) is None:
        return None
    shared, fitted, n = known.found
    return {
        "sha256": known.sha256,
        "created_at": known.created_at,
        "outdated": workspace.outdated(known),
        "golden_samples": sum(map(len, known.trained_on)),
        "confirmed_defects": len(known.confirmed),
        "learned_from": known.learned_from,
        "synthetic_defects": {"n": n, "shared": shared, "fitted": fitted},
    }
