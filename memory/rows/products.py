"""A product as it is kept, how products are named, and what a scale may be."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from refdiff.memory.kinds import ProductKind
from refdiff.memory.rows.digests import content_digest, product_state
from refdiff.model.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


def check_product_name(name: str) -> str:
    """`name` without surrounding blanks. Raises InputError unless it is 1 to 64 of [A-Za-z0-9 ._-]."""
    stripped = name.strip() if isinstance(name, str) else ""
    if not _NAME.fullmatch(stripped):
        raise InputError(
            f"product {name!r}: a product name is 1 to 64 letters, digits, blanks, '.', '_' or '-', "
            "and starts with a letter or digit"
        )
    return stripped


def check_scale(scale_mm_per_px: float | None) -> float | None:
    """A scale in mm per px, or None for unknown. Raises InputError unless positive and finite."""
    if scale_mm_per_px is None:
        return None
    if not (math.isfinite(scale_mm_per_px) and scale_mm_per_px > 0):
        raise InputError(f"scale {scale_mm_per_px} mm/px: give a positive number, or leave it out if unknown")
    return float(scale_mm_per_px)


@dataclass(frozen=True)
class Product:
    """A kind of part."""

    name: str
    scale_mm_per_px: float | None = None  # None if unknown
    intensity_window: tuple[float, float] | None = None  # (lo, hi) sample values shown as 0..255; 16-bit and float only
    spec: dict[str, Any] = field(default_factory=dict)  # as parsed from the user's YAML; {} if none
    spec_version: int = 0  # how often the specification was set
    updated_at: str = ""  # ISO 8601, UTC
    # name -> what the component that is called so looks like, as `tools.inspection.component_names` packs it
    component_names: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: ProductKind = "photo"  # of its files; set with the first golden sample, and never guessed from a file

    @property
    def state(self) -> dict[str, Any]:
        """What people set, as the audit records of its changes have it."""
        return product_state(self.scale_mm_per_px, self.intensity_window, self.spec, self.component_names, self.kind)

    @property
    def document(self) -> dict[str, Any]:
        """JSON data for people: `component_names` without what they look like, sorted; `kind` where it is no photo."""
        found = asdict(self) | {"component_names": sorted(self.component_names)}
        if self.kind == "photo":
            del found["kind"]
        return found

    @property
    def digest(self) -> str:
        """sha256 (hex) of `state`."""
        return content_digest(self.state)
