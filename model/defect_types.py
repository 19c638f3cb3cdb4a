"""The words that a finding's type may have. Findings whose kind nobody determined are `unknown_anomaly`."""

from __future__ import annotations

from typing import Literal, get_args

DefectType = Literal[
    "scratch", "crack", "dent", "stain", "contamination", "hole", "chip", "discoloration", "deformation",
    "missing_component", "added_component", "wrong_component", "misplaced_component", "wrong_fill_level",
    "print_defect", "broken_yarn", "uneven_dye", "solder_bridge", "solder_void", "texture_change",
    "open", "short", "mousebite", "spur", "copper", "pin-hole", "unknown_anomaly",
]  # fmt: skip
DEFECT_TYPES: tuple[str, ...] = get_args(DefectType)
UNKNOWN = "unknown_anomaly"
