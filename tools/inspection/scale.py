"""The scale of a photo: its capture's, or the golden's through the registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.rows.captures import Capture
from refdiff.tools.vision.registration import Alignment

_MAX_RELATIVE_DIFFERENCE = 0.05  # of the photo's scale and the golden's
_CAPTURE_SCALE_UNCERTAINTY = 0.005  # relative, one standard deviation
_GOLDEN_SCALE_UNCERTAINTY = 0.02  # the same


@dataclass(frozen=True)
class ResolvedScale:
    """mm per query px, where from, its relative standard uncertainty, and what is wrong with it ("" if nothing)."""

    mm_per_px: float | None
    source: Literal["capture", "golden"] | None
    uncertainty: float
    problem: str


def resolve_scale(capture: Capture, golden: Golden, alignment: Alignment, spec_scale: float | None) -> ResolvedScale:
    """The capture's scale; else the golden's (or the specification's for goldens) through the registered scale."""
    golden_scale = golden.scale_mm_per_px or spec_scale
    implied = golden_scale / alignment.scale if golden_scale and alignment.ok else None
    if capture.scale_mm_per_px:
        problem = ""
        if implied and abs(implied / capture.scale_mm_per_px - 1) > _MAX_RELATIVE_DIFFERENCE:
            problem = (
                f"the photo's scale ({capture.scale_mm_per_px:.4g} mm/px) and the golden's ({implied:.4g} mm/px after "
                f"registration) differ by more than {100 * _MAX_RELATIVE_DIFFERENCE:.0f} %; "
                "check lens, distance and the given scale"
            )
        return ResolvedScale(capture.scale_mm_per_px, "capture", _CAPTURE_SCALE_UNCERTAINTY, problem)
    if implied:
        return ResolvedScale(implied, "golden", _GOLDEN_SCALE_UNCERTAINTY, "")
    return ResolvedScale(None, None, 0.0, "")
