"""How a golden sample lies in its frame, as it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GoldenPlace:
    """How a golden lies on its anchor; an anchor lies on itself. It outlasts the anchor's retirement: photos stay."""

    golden_id: str
    product: str
    anchor_id: str
    anchor_sha256: str  # of its photo
    size: tuple[int, int]  # (H, W) px of the golden
    anchor_size: tuple[int, int]  # (H, W) px
    matrix: tuple[float, ...]  # (9,) row by row: golden px -> anchor px, at original resolution
    # of the registration of the anchor to the golden, as measured
    method: str = "identity"
    residual_px: float | None = 0.0  # in px of the golden
    overlap: float = 1.0
    ncc: float = 1.0

    @property
    def is_anchor(self) -> bool:
        return self.golden_id == self.anchor_id


def place_from(data: Mapping[str, Any]) -> GoldenPlace:
    """Of the fields of one as JSON has them."""
    return GoldenPlace(**{**data, **{name: tuple(data[name]) for name in ("size", "anchor_size", "matrix")}})
