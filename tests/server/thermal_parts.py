"""Rendered thermal pictures of a small assembly, and its specification."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.agent.service import InspectionService
from refdiff.model.synthesis.thermal import Assembly, centikelvin_tiff
from refdiff.tools.golden_samples.photos import Upload

ASSEMBLY = Assembly(2, size=(120, 160))
SPECIFICATION = {
    "thermal": {"gain": 0.01, "emissivity": 0.95, "palette": "grey", "span_c": [10, 80]},
    "limits": [
        {"type": "hot_spot", "max_delta_k": 4, "severity": "minor"},
        {"type": "any", "severity": "major", "reject": True},
    ],
}


def rendered(seed: int, **how: Any) -> bytes:
    return centikelvin_tiff(ASSEMBLY.render(np.random.default_rng(seed), **how).celsius)


def enrol_assembly(service: InspectionService) -> None:
    """21 golden samples of the product "assembly"."""
    service.set_spec("assembly", SPECIFICATION, by="test")
    uploads = [Upload(f"{i}.tiff", rendered(i)) for i in range(21)]
    assert service.enroll("assembly", uploads, by="test", kind="thermal").n_in_bank == 21
