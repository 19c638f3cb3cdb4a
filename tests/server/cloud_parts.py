"""Rendered scans of a bracket, turned any way, and their specification."""

from __future__ import annotations

import numpy as np

from refdiff.agent.service import InspectionService
from refdiff.model.synthesis.height import Defect, SolidPart, ply
from refdiff.tools.golden_samples.photos import Upload

PART = SolidPart("bracket")
BULGE = Defect("bulge", 1.5, 36.0, 17.0, 8.0)  # on the top, 1.5 mm high
LIMITS = [
    {"type": "any", "max_deviation_mm": 0.4, "severity": "minor"},
    {"type": "any", "severity": "major", "reject": True},
]
SPECIFICATION = {"cloud": {"unit_mm": 1}, "limits": LIMITS}


def scanned(seed: int, defect: Defect | None = None, points: int = 5000) -> bytes:
    """A PLY file."""
    return ply(PART.cloud(np.random.default_rng((3, seed)), points, defect).points)


def enrol_scans(service: InspectionService, goldens: int = 21) -> None:
    """Golden samples of the product "scan"."""
    service.set_spec("scan", SPECIFICATION, by="test")
    uploads = [Upload(f"{i}.ply", scanned(i)) for i in range(goldens)]
    assert service.enroll("scan", uploads, by="test", kind="cloud").n_in_bank == goldens
