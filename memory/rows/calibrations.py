"""A calibration as it is kept."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.timestamps import utc_now


@dataclass(frozen=True)
class MarksFound:
    """What marks of one size on good samples score: how small a defect is found."""

    shape: str  # spot or stroke
    length: float  # working px
    width: float  # working px
    contrast: float  # 0..1
    scores: list[float]  # image score of a good sample with each mark


@dataclass(frozen=True, eq=False)
class Component:
    """A kind of part of which every golden sample shows the same number."""

    centres: NDArray[np.float32]  # (K, C) of clusters of cells of the encoder's map
    members: list[int]  # the clusters whose cells it consists of
    area: float  # of one, cells of a grid four times as fine as the map
    count: int  # of them on a good part


@dataclass(frozen=True)
class OfMap:
    """What good parts show in one of two maps (height and colour) that are scored together."""

    middle: float  # median of their image scores
    spread: float  # > 0, robust standard deviation of these
    threshold: float  # > 0, of the map, above which a place is a region
    # image score of each part in it alone, sorted; empty if measured by earlier versions
    scores: list[float] = field(default_factory=list)

    def standing(self, score: float) -> float:
        """By how many robust standard deviations of the good parts an image score lies above their median."""
        return (score - self.middle) / self.spread


@dataclass(frozen=True)
class Calibration:
    """What the good samples of a product score against each other. A part is what one or several goldens show."""

    product: str
    key: str  # hash of what it depends on, computed by the caller; another key means it is stale
    scores: list[float]  # image score of each part, sorted
    pixel_threshold: float  # of the anomaly map, above which a place is a region
    n: int  # number of parts
    references: int  # K goldens that each was compared with
    created_at: str = field(default_factory=utc_now)
    seconds: float = 0.0  # how long it took
    peaks: list[float] = field(default_factory=list)  # highest value of each part's anomaly map, sorted
    similarities: list[float] = field(default_factory=list)  # of each part to its nearest golden, sorted
    # how much each part differs where it fits best, sorted, of the same photos; empty if measured by earlier versions
    levels: list[float] = field(default_factory=list)
    alpha: float | None = None  # false-reject rate that was asked for; None: the default
    # of the part of each score; empty if measured by earlier versions
    golden_ids: list[str] = field(default_factory=list)
    components: list[Component] = field(default_factory=list)  # that are counted, those told apart best first
    per_miscount: float = 0.0  # what one too many or too few of a component adds to the image score
    # goldens that register to none of those they were compared with; None if measured by earlier versions
    unregistered: list[str] | None = None
    # edge correlation -1..1 of each part with the other that it fits best, sorted; of colour photos where height maps have
    # them; empty if measured by earlier versions
    edges: list[float] = field(default_factory=list)
    maps: list[OfMap] = field(default_factory=list)  # of height and colour, where both are scored; else empty
    marks: list[MarksFound] = field(default_factory=list)  # empty until somebody asks how small a defect is found


def packed_components(components: Sequence[Component]) -> dict[str, Any]:
    """Components as JSON data. centres: kept once, however many components are of one clustering; `of` each component is
    the number of its own."""
    centres: list[dict[str, Any]] = []
    kept = []
    for c in components:
        if (own := packed_rows(c.centres)) not in centres:
            centres.append(own)
        kept.append({"centres": centres.index(own), "members": c.members, "area": c.area, "count": c.count})
    return {"centres": centres, "of": kept}


def unpacked_components(packed: Any) -> list[Component]:
    """What `packed_components` made."""
    if isinstance(packed, list):  # an earlier version kept the centres with each
        rows = [{"rows": p["clusters"], "data": p["centres"]} for p in packed]
        packed = {"centres": rows, "of": [p | {"centres": i} for i, p in enumerate(packed)]}
    centres = [unpacked_rows(p) for p in packed.get("centres", [])]
    return [Component(centres[p["centres"]], p["members"], p["area"], p["count"]) for p in packed.get("of", [])]


def packed_rows(rows: NDArray[np.float32]) -> dict[str, Any]:
    """(R, C) float32 as JSON data."""
    return {"rows": len(rows), "data": base64.b64encode(np.ascontiguousarray(rows, "<f4").tobytes()).decode()}


def unpacked_rows(packed: Mapping[str, Any]) -> NDArray[np.float32]:
    """(R, C) float32 of `packed_rows`."""
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["rows"], -1)
