"""The parts of `refdiff demo --thermal`: rendered thermal pictures of an assembly, with known hot spots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.model.files import storage_error

PRODUCT, KIND = "assembly", "thermal"
GOLDENS = 30
_SEED = 4412
# part -> height (K) and diameter (px) of its hot spot, None: good; by how many K its surroundings are warmer
_PARTS: Mapping[str, tuple[tuple[float, float] | None, float]] = {
    "4412": ((9.0, 14.0), 0.0),
    "4413": (None, 0.0),
    "4414": ((5.0, 8.0), 0.0),
    "4415": (None, 4.0),
    "4416": ((6.0, 30.0), -4.0),
    "4417": ((18.0, 10.0), 3.0),
}
SPECIFICATION: dict[str, Any] = {
    "thermal": {"gain": 0.01, "emissivity": 0.95},
    "limits": [
        {"type": "any", "max_delta_k": 4, "severity": "minor"},
        {"type": "any", "max_delta_k": 15, "severity": "major", "reject": True},
        {"type": "any", "severity": "critical", "reject": True},
    ],
}


@dataclass(frozen=True)
class ThermalPart:
    """A rendered file. spot_k, spot_px: height and diameter of its hot spot, None on a good part."""

    path: Path
    spot_k: float | None = None
    spot_px: float | None = None
    product: str = PRODUCT

    @property
    def defective(self) -> bool:
        return self.spot_k is not None

    @property
    def truth(self) -> str:
        return "good" if self.spot_k is None else f"hot spot of {self.spot_k:g} K, {self.spot_px:g} px"


def render_parts(folder: Path) -> tuple[dict[str, list[ThermalPart]], dict[str, ThermalPart]]:
    """(golden samples by product, part by id), written as radiometric TIFF below a folder. Raises StorageError."""
    from refdiff.model.synthesis.thermal import Assembly, centikelvin_tiff

    assembly = Assembly(_SEED)

    def write(name: str, *seed: int, **how: Any) -> Path:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(centikelvin_tiff(assembly.render(np.random.default_rng((_SEED, *seed)), **how).celsius))
        except OSError as e:
            raise storage_error(path, e) from e
        return path

    goldens = [ThermalPart(write(f"good/{i:02d}.tiff", 1, i)) for i in range(GOLDENS)]
    parts = {}
    for i, (part_id, (spot, ambient)) in enumerate(_PARTS.items()):
        height, size = spot or (None, None)
        how = {"ambient_k": ambient} | ({} if spot is None else {"spot_k": height, "spot_px": size})
        parts[part_id] = ThermalPart(write(f"{part_id}.tiff", 2, i, **how), height, size)
    return {PRODUCT: goldens}, parts
