"""The vocabulary of defect types: the only place where a type is added. Every other list is derived from it or typed by it.

A new type goes in front of the board types' line only together with retrained weights: the position of a word is its
channel in the difference network's type head. What a type looks like (renderer, brushes), its probable causes and its
everyday words in prose are kept by those who use them; tests/test_defect_types.py ties them to this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

BoardType = Literal["open", "short", "mousebite", "spur", "copper", "pin-hole"]
DifferenceType = Literal[
    "scratch", "crack", "dent", "stain", "contamination", "hole", "chip", "discoloration", "deformation",
    "missing_component", "added_component", "wrong_component", "misplaced_component", "wrong_fill_level",
    "print_defect", "broken_yarn", "uneven_dye", "solder_bridge", "solder_void", "texture_change",
    BoardType,
]  # fmt: skip
DefectType = Literal[DifferenceType, "unknown_anomaly"]

# What a measurement, and no network, says of a place: a product's kind brings these. No model is asked for them.
MeasuredType = Literal[
    "hot_spot", "cold_spot", "high_spot", "low_spot", "extra_material", "missing_material", "colour_change"
]
COLOUR_CHANGE: MeasuredType = (
    "colour_change"  # of a height map with a colour photo: its colour differs, its height does not
)

BOARD_TYPES: tuple[BoardType, ...] = get_args(BoardType)  # in the order of DeepPCB's ids 1..6
# What the difference network tells apart. The order is part of the weights: never reorder.
DIFFERENCE_TYPES: tuple[DifferenceType, ...] = get_args(DifferenceType)
# What a finding of a report may be called; UNKNOWN where nobody determined the type.
DEFECT_TYPES: tuple[DefectType, ...] = get_args(DefectType)
UNKNOWN: DefectType = "unknown_anomaly"
# What the language model may answer when it reads a pair.
NO_DEFECT = "none"
READING_TYPES: tuple[str, ...] = (NO_DEFECT, *DEFECT_TYPES)

MISSING_COMPONENT: DifferenceType = "missing_component"
WRONG_FILL_LEVEL: DifferenceType = "wrong_fill_level"

# A component is missing, added, swapped or moved, ...
COMPONENT_TYPES: frozenset[DifferenceType] = frozenset(
    ("missing_component", "added_component", "wrong_component", "misplaced_component")
)
# ... or a level is wrong: differences of the whole part rather than of its surface.
STRUCTURAL_TYPES: frozenset[DifferenceType] = COMPONENT_TYPES | {"wrong_fill_level"}

RenderedType = Literal[
    "scratch", "crack", "dent", "stain", "blob", "hole", "edge_nibble", "missing_component", "added_component",
    "wrong_component", "displaced_component", "wrong_fill_level", "broken_yarn", "uneven_dye", "solder_bridge",
    "solder_void", "print_smear", "missing_print",
]  # fmt: skip
# The renderer's words (they seed its random draws, so they stay) -> the type that a report would give.
RENDERED_TYPES: Mapping[str, DifferenceType] = {
    "scratch": "scratch",
    "crack": "crack",
    "dent": "dent",
    "stain": "stain",
    "blob": "contamination",
    "hole": "hole",
    "edge_nibble": "chip",
    "missing_component": "missing_component",
    "added_component": "added_component",
    "wrong_component": "wrong_component",
    "displaced_component": "misplaced_component",
    "wrong_fill_level": "wrong_fill_level",
    "broken_yarn": "broken_yarn",
    "uneven_dye": "uneven_dye",
    "solder_bridge": "solder_bridge",
    "solder_void": "solder_void",
    "print_smear": "print_defect",
    "missing_print": "print_defect",
}
