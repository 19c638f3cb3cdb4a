"""How fine a product is looked at: the working size that its smallest defect needs, or that the time allows, and what is too
small to be seen."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from refdiff.memory.golden_bank.golden import IN_USE, Golden
from refdiff.model.difference.features import SIDES
from refdiff.model.errors import SpecError, UnknownRecordError
from refdiff.tools.framing.frames import matrix_of, place_of
from refdiff.tools.framing.tiles import grid_tiles
from refdiff.tools.inspection.specification import ProductSpec, parse_spec
from refdiff.tools.kinds.cloud import READ as READ_CLOUD
from refdiff.tools.kinds.cloud import CloudRules
from refdiff.tools.kinds.depth import READ, DepthRules
from refdiff.tools.kinds.thermal import ThermalRules
from refdiff.tools.vision.registration import angle_and_scale
from refdiff.tools.workspace import Workspace

if TYPE_CHECKING:  # a device has no database
    from refdiff.memory.stores import Stores

SMALLEST_PX = 8  # work px: a dot of contrast .7 then scores six times as high as the good parts do
MAX_WORKING_PX = 4096  # long side; the anomaly map is no finer either


@dataclass(frozen=True)
class Fineness:
    """How a photo of a product is looked at."""

    working_px: int  # long side at which photos are compared
    smallest_px: float  # px of the golden samples' frame: smaller defects are not looked for
    smallest_mm: float | None  # the same in mm, where the scale is known

    @property
    def said(self) -> str:
        """In words, for people."""
        size = f"{self.smallest_px:.2g} px" if self.smallest_px < 100 else f"{self.smallest_px:.0f} px"
        size = size if self.smallest_mm is None else f"{self.smallest_mm:.2g} mm ({size})"
        return f"defects under about {size} are not looked for"


def frame_scale(workspace: Workspace, spec: ProductSpec, golden: Golden) -> float | None:
    """mm per px of the frame that a golden is in: of its anchor, else of the golden as it lies there, else as the
    specification says, else of any golden sample of the product; None if nothing says it."""
    place = place_of(workspace, golden)
    with contextlib.suppress(UnknownRecordError):
        if scale := workspace.bank.get(place.anchor_id).scale_mm_per_px:
            return scale
    if golden.scale_mm_per_px:
        return golden.scale_mm_per_px / angle_and_scale(matrix_of(place), place.size)[1]
    return spec.scale_mm_per_px or _any_scale(workspace, golden.product)


def _any_scale(workspace: Workspace, product: str) -> float | None:
    scales = (g.scale_mm_per_px for g in workspace.bank.list(product, IN_USE))
    return next((scale for scale in scales if scale), None)


def _wanted_px(spec: ProductSpec, scale: float | None, product: str) -> float | None:
    """The smallest defect of the specification in px, of `scale` mm each. Raises SpecError where that is not known."""
    if spec.smallest_defect_mm is None:
        return spec.smallest_defect_px
    if scale is None:
        raise SpecError(
            f"smallest defect of {product!r}: {spec.smallest_defect_mm:g} mm is unknown in px, for neither the "
            "specification nor a golden sample has a scale; give --smallest-defect-px instead, or scale_mm_per_px in the "
            "specification"
        )
    return spec.smallest_defect_mm / scale


def working_px(workspace: Workspace, spec: ProductSpec, golden: Golden) -> int:
    """Long side at which photos are compared in the frame of a golden: as the smallest defect of the specification needs;
    without one, what REFDIFF_TILES allows.

    Never less than REFDIFF_WORKING_PX, nor more than the frame has, if that is more. Raises SpecError.
    """
    settings, size = workspace.model_settings, place_of(workspace, golden).anchor_size
    scale = None if spec.smallest_defect_mm is None else frame_scale(workspace, spec, golden)
    wanted = _wanted_px(spec, scale, golden.product)
    if wanted is None:
        return affordable_px(size, settings.working_px, settings.tiles)
    return needed_px(wanted, size, settings.working_px)


def affordable_px(size: tuple[int, int], least: int, tiles: int) -> int:
    """The largest long side at which a frame of `size` (H, W) takes several tiles, but no more than `tiles`; `least` where
    there is none."""
    finest = min(max(size), MAX_WORKING_PX)
    sizes = range(least, finest + 1, SIDES)
    return max((px for px in sizes if 1 < len(grid_tiles(size, px, least)) <= tiles), default=least)


def needed_px(wanted: float, size: tuple[int, int], least: int) -> int:
    """Long side at which something of `wanted` px in a frame of `size` (H, W) can be seen."""
    needed = min(math.ceil(max(size) * SMALLEST_PX / wanted - 1e-6), max(size), MAX_WORKING_PX)
    return max(least, needed)


def too_fine(stores: Stores, least: int, product: str, wanted_px: float, mm_per_px: float | None = None) -> str:
    """What to say of a smallest defect that photos like the golden samples cannot show; "" where they can, or where no
    golden is in a frame yet. least: REFDIFF_WORKING_PX; mm_per_px: of the frame, where it is known."""
    if (place := stores.frames.main_place(product)) is None:
        return ""
    finest = needed_px(1, place.anchor_size, least)
    px = SMALLEST_PX * max(place.anchor_size) / finest
    if px <= 1.01 * wanted_px:
        return ""
    found = Fineness(finest, px, None if mm_per_px is None else px * mm_per_px)
    return f"{found.said}: the photos do not show smaller ones"


@dataclass(frozen=True)
class WorkingPixel:
    """A pixel in which photos of a product are compared."""

    working_px: int  # of them along the long side
    px: float  # of the golden samples' frame
    mm: float | None  # where the scale is known


def working_pixel(workspace: Workspace, product: str) -> WorkingPixel | None:
    """That of photos like the oldest golden in use; None before one is in a frame. Raises SpecError."""
    golden = _oldest_placed(workspace, product)
    if golden is None:
        return None
    known = workspace.stores.products.get(product)
    spec = parse_spec(known.spec if known else {}, f"specification of {product}")
    px, scale = working_px(workspace, spec, golden), frame_scale(workspace, spec, golden)
    each = max(place_of(workspace, golden).anchor_size) / px
    return WorkingPixel(px, each, scale * each if scale else None)


def _oldest_placed(workspace: Workspace, product: str) -> Golden | None:
    placed = workspace.stores.frames.of(product)  # those of earlier versions are placed when they are first needed
    return next((g for g in workspace.bank.list(product, IN_USE) if g.golden_id in placed), None)


def product_scale(workspace: Workspace, product: str, spec: ProductSpec) -> float | None:
    """mm per px of the frame of the oldest golden in use, by that specification; None where nothing says it."""
    golden = _oldest_placed(workspace, product)
    return None if golden is None else frame_scale(workspace, spec, golden)


def product_fineness(workspace: Workspace, product: str) -> dict[str, Any] | None:
    """How photos like the oldest golden in use are looked at, for people and --json; None before one is in a frame, and of
    products of another kind, which are compared at the pixels that they have.

    Raises SpecError.
    """
    if workspace.kind(product) != "photo":
        return None
    if (each := working_pixel(workspace, product)) is None:
        return None
    found = Fineness(each.working_px, SMALLEST_PX * each.px, None if each.mm is None else SMALLEST_PX * each.mm)
    mm = None if found.smallest_mm is None else float(f"{found.smallest_mm:.3g}")
    return {
        "px": float(f"{found.smallest_px:.3g}"),
        "mm": mm,
        "working_px": found.working_px,
        "summary": found.said,
    }


def check_kind_rules(workspace: Workspace, product: str, spec: ProductSpec) -> None:
    """Raises SpecError as `check_specification` does for rules of a kind."""
    known = workspace.stores.products.get(product)
    if known is None or not workspace.bank.count(product):
        return
    if known.kind == "photo" and spec.of_kinds:
        raise SpecError(f"specification of {product!r}: {', '.join(spec.of_kinds)}: the product is one of photos")
    if known.kind != "photo" and (spec.smallest_defect_mm or spec.smallest_defect_px):
        raise SpecError(f"specification of {product!r}: the smallest defect is a rule for photos; leave it out")
    before = parse_spec(known.spec, f"specification of {product}")
    if known.kind == "thermal" and _scale_of(before) != _scale_of(spec):
        raise SpecError(
            f"specification of {product!r}: thermal: gain and offset_c cannot change any more: "
            "its golden samples were enrolled with others; enrol them as a new product"
        )
    if known.kind in ("depth", "cloud") and _read_as(before) != _read_as(spec):
        raise SpecError(
            f"specification of {product!r}: {known.kind}: {', '.join(_read_as(spec)[known.kind])} cannot change any more: "
            "its golden samples were enrolled with others; enrol them as a new product"
        )


def _scale_of(spec: ProductSpec) -> tuple[float | None, float]:
    rules = spec.thermal or ThermalRules()
    return rules.gain, rules.offset_c


def _read_as(spec: ProductSpec) -> dict[str, dict[str, Any]]:
    """What is stated of files, by kind."""
    depth, cloud = spec.depth or DepthRules(), spec.cloud or CloudRules()
    return {"depth": depth.model_dump(include=READ), "cloud": cloud.model_dump(include=READ_CLOUD)}


def check_specification(workspace: Workspace, product: str, spec: ProductSpec) -> None:
    """Raises SpecError where goldens are there and the smallest defect is given in mm, but no scale is known; or a rule is
    of another kind than the product, would read its golden samples otherwise than they were enrolled, or cannot be checked.
    """
    if spec.depth is not None and spec.depth.problem:
        raise SpecError(f"specification of {product!r}: depth: {spec.depth.problem}")
    check_kind_rules(workspace, product, spec)
    if spec.smallest_defect_mm is not None and workspace.bank.count(product, IN_USE):
        _wanted_px(spec, spec.scale_mm_per_px or _any_scale(workspace, product), product)
