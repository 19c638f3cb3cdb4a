"""How fine a product is looked at: the working size that its smallest defect needs, and what is too small to be seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.model.errors import SpecError
from refdiff.tools.framing.frames import place_of
from refdiff.tools.inspection.specification import ProductSpec, parse_spec
from refdiff.tools.workspace import Workspace

SMALLEST_PX = 8  # work px: a dot of contrast .7 then scores six times as high as the good parts do
MAX_WORKING_PX = 4096  # long side; the anomaly map is no finer either


@dataclass(frozen=True)
class Fineness:
    """How a photo of a product is looked at."""

    working_px: int  # long side at which photos are compared
    smallest_px: float  # px of the photo: smaller defects are not looked for
    smallest_mm: float | None  # the same in mm, where the scale is known

    @property
    def said(self) -> str:
        """In words, for people."""
        size = f"{self.smallest_px:.2g} px" if self.smallest_px < 100 else f"{self.smallest_px:.0f} px"
        size = size if self.smallest_mm is None else f"{self.smallest_mm:.2g} mm ({size})"
        return f"defects under about {size} are not looked for"


def _wanted_px(spec: ProductSpec, golden: Golden) -> float | None:
    """The smallest defect of the specification in px. Raises SpecError where nothing says how many px a mm is."""
    if spec.smallest_defect_mm is None:
        return spec.smallest_defect_px
    scale = golden.scale_mm_per_px or spec.scale_mm_per_px
    if not scale:
        raise SpecError(
            f"smallest defect of {golden.product!r}: {spec.smallest_defect_mm:g} mm is unknown in px, for neither the "
            "specification nor a golden sample has a scale; give --smallest-defect-px instead, or scale_mm_per_px in the "
            "specification"
        )
    return spec.smallest_defect_mm / scale


def working_px(workspace: Workspace, spec: ProductSpec, golden: Golden, size: tuple[int, ...]) -> int:
    """Long side at which photos of `size` (H, W, ...) are compared. golden: one of the product, for its scale.

    Never less than REFDIFF_WORKING_PX, nor more than the photo has, if that is more. Raises SpecError.
    """
    least, wanted = workspace.model_settings.working_px, _wanted_px(spec, golden)
    if wanted is None:
        return least
    needed = min(math.ceil(max(size[:2]) * SMALLEST_PX / wanted - 1e-6), max(size[:2]), MAX_WORKING_PX)
    return max(least, needed)


def fineness(workspace: Workspace, spec: ProductSpec, golden: Golden, size: tuple[int, ...]) -> Fineness:
    """How photos of `size` (H, W, ...) are looked at, as `working_px` says. Raises SpecError."""
    px = working_px(workspace, spec, golden, size)
    smallest = SMALLEST_PX * max(size[:2]) / px
    scale = golden.scale_mm_per_px or spec.scale_mm_per_px
    return Fineness(px, smallest, scale * smallest if scale else None)


def product_fineness(workspace: Workspace, product: str) -> dict[str, Any] | None:
    """How photos like the oldest golden in use are looked at, for people and --json; None where there is none.

    Raises SpecError.
    """
    goldens = workspace.bank.list(product, IN_USE)
    if not goldens:
        return None
    known = workspace.stores.products.get(product)
    spec = parse_spec(known.spec if known else {}, f"specification of {product}")
    found = fineness(workspace, spec, goldens[0], place_of(workspace, goldens[0]).size)
    mm = None if found.smallest_mm is None else float(f"{found.smallest_mm:.3g}")
    px = float(f"{found.smallest_px:.3g}")
    return {"px": px, "mm": mm, "working_px": found.working_px, "summary": found.said}


def check_specification(workspace: Workspace, product: str, spec: ProductSpec) -> None:
    """Raises SpecError where goldens are there and the smallest defect is given in mm, but no scale is known."""
    if spec.smallest_defect_mm is None:
        return
    for golden in workspace.bank.list(product, IN_USE)[:1]:
        _wanted_px(spec, golden)
