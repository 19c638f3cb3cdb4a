"""The one JSON text of some data, its sha256, and what people set of a product: what audit records compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def canonical(data: Any) -> str:
    """The one JSON text of some data: sorted keys, no blanks, ASCII. Raises ValueError for NaN and infinities."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(data: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical(data).encode("ascii")).hexdigest()


def product_state(
    scale_mm_per_px: float | None = None,
    window: Sequence[float] | None = None,
    spec: Mapping[str, Any] | None = None,
    component_names: Mapping[str, Any] | None = None,
    kind: str = "photo",
) -> dict[str, Any]:
    """What people set of a product; without arguments, that of a product of which nothing was set.

    component_names: what is called so, by name. They decide nothing, but reports speak by them.
    """
    kept = None if window is None else list(window)
    state: dict[str, Any] = {"scale_mm_per_px": scale_mm_per_px, "intensity_window": kept, "spec": dict(spec or {})}
    if component_names:  # without, digests of earlier versions stay what they are
        state["component_names"] = {name: content_digest(look) for name, look in component_names.items()}
    if kind != "photo":
        state["kind"] = kind
    return state
