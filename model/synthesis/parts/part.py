"""Good parts, drawn: circuit, label, weave, moulded shape, bottle.

A part is a *material* (albedo, height, gloss, cover) on a supersampled raster plus a list of components that are
painted on it one by one, so a missing or a wrong component is a change of the list and not a patch of paint. The
design seed fixes the product, the instance seed the natural variation between good samples of it. Knows nothing about
defects, pose, camera or light colour (render_defects.py, render.py).

Units: raster px, x right, y down, integer = pixel centre. `u` is the raster length of 1/320 of the part's short side.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from refdiff.model.synthesis.materials import PartKind
from refdiff.model.synthesis.parts.bottle import bottle
from refdiff.model.synthesis.parts.circuit import circuit
from refdiff.model.synthesis.parts.drawing import Part, Rng
from refdiff.model.synthesis.parts.label import label
from refdiff.model.synthesis.parts.moulded import moulded
from refdiff.model.synthesis.parts.weave import weave

# --- painting ---


# --- components ---


# --- parts ---


_BUILDERS: dict[PartKind, Callable[[Rng, Rng, int, int, float], Part]] = {
    "circuit": circuit,
    "label": label,
    "weave": weave,
    "moulded": moulded,
    "bottle": bottle,
}


def build_part(kind: PartKind, design_seed: int, instance_seed: int, h: int, w: int, u: float) -> Part:
    """A good part on an (h, w) raster; `u` raster px per 1/320 of the part's short side."""
    tag = zlib.crc32(kind.encode())
    design = np.random.default_rng([tag, design_seed])
    instance = np.random.default_rng([tag, design_seed, instance_seed, 1])
    return _BUILDERS[kind](design, instance, h, w, u)
