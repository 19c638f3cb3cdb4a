"""The parts of `refdiff demo --cloud`: rendered scans of a bracket, turned any way, with known defects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.model.files import storage_error

if TYPE_CHECKING:
    from refdiff.model.synthesis.height import DefectName

PRODUCT, KIND = "bracket", "cloud"
GOLDENS = 20
_POINTS = 30_000
_SEED = 4412
_PARTS: Mapping[str, DefectName | None] = {
    "4412": "bulge", "4413": None, "4414": "hole", "4415": "missing_piece", "4416": None, "4417": "dent",
}  # fmt: skip
SPECIFICATION: dict[str, Any] = {
    "cloud": {"unit_mm": 1},
    "limits": [
        {"type": "any", "max_deviation_mm": 0.3, "severity": "minor"},
        {"type": "any", "severity": "critical", "reject": True},
    ],
}


@dataclass(frozen=True)
class ScannedPart:
    """A rendered scan. said: its defect in words; "" of a good part."""

    path: Path
    said: str = ""
    product: str = PRODUCT

    @property
    def defective(self) -> bool:
        return bool(self.said)

    @property
    def truth(self) -> str:
        return self.said or "good"


def render_parts(folder: Path) -> tuple[dict[str, list[ScannedPart]], dict[str, ScannedPart]]:
    """(golden samples by product, part by its id), written as PLY files below `folder`. Raises StorageError."""
    from refdiff.model.synthesis.height import SolidPart, ply

    part = SolidPart("bracket", _SEED)

    def write(name: str, *seed: int, kind: DefectName | None = None) -> ScannedPart:
        rng, path = np.random.default_rng((_SEED, *seed)), folder / name
        defect = None if kind is None else part.defect(kind, rng)
        data = ply(part.cloud(rng, _POINTS, defect).points)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as e:
            raise storage_error(path, e) from e
        if defect is None:
            return ScannedPart(path)
        size = f"{2 * defect.radius_mm:.0f} mm across"
        high = f"{defect.height_mm:.1f} mm, " if defect.name in ("bulge", "dent") else ""
        return ScannedPart(path, f"{defect.name.replace('_', ' ')}, {high}{size}")

    goldens = [write(f"good/{i:02d}.ply", 1, i) for i in range(GOLDENS)]
    parts = {part_id: write(f"{part_id}.ply", 2, i, kind=kind) for i, (part_id, kind) in enumerate(_PARTS.items())}
    return {PRODUCT: goldens}, parts
