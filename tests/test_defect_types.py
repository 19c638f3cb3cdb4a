"""One vocabulary of defect types: every list of types elsewhere is drawn from it, and the weights fix its order."""

from __future__ import annotations

from typing import get_args

import pytest

from refdiff.agent.prompts import CAUSES
from refdiff.agent.verdict.verify import prose_problem
from refdiff.model.defect_types import (
    BOARD_TYPES,
    COMPONENT_TYPES,
    DEFECT_TYPES,
    DIFFERENCE_TYPES,
    READING_TYPES,
    RENDERED_TYPES,
    STRUCTURAL_TYPES,
    UNKNOWN,
    DefectType,
    RenderedType,
)
from refdiff.model.difference.scorer import read_network
from refdiff.model.language.reading import READING_SCHEMA
from refdiff.model.synthesis.photo_pairs import SYNTHETIC_TYPES
from refdiff.model.synthesis.render import PART_KINDS, PartKind, applicable_types
from refdiff.model.training.pairs import NO_TYPE, type_index
from refdiff.tools.submit_report import Claim


def test_difference_types_have_the_order_of_the_shipped_weights() -> None:
    assert DIFFERENCE_TYPES == (
        "scratch", "crack", "dent", "stain", "contamination", "hole", "chip", "discoloration", "deformation",
        "missing_component", "added_component", "wrong_component", "misplaced_component", "wrong_fill_level",
        "print_defect", "broken_yarn", "uneven_dye", "solder_bridge", "solder_void", "texture_change",
        "open", "short", "mousebite", "spur", "copper", "pin-hole",
    )  # fmt: skip
    assert read_network()[0].type_head.out_channels == len(DIFFERENCE_TYPES) < NO_TYPE


def test_report_and_reading_types_are_the_difference_types_plus_unknown() -> None:
    assert DEFECT_TYPES == get_args(DefectType) == (*DIFFERENCE_TYPES, UNKNOWN)
    assert ("none", *DEFECT_TYPES) == READING_TYPES
    assert READING_SCHEMA["properties"]["type"]["enum"] == list(READING_TYPES)
    assert Claim.model_json_schema()["properties"]["type"]["enum"] == list(DEFECT_TYPES)
    assert {*BOARD_TYPES, *STRUCTURAL_TYPES, *COMPONENT_TYPES} <= {*DIFFERENCE_TYPES}


@pytest.mark.parametrize("kind", PART_KINDS)
def test_every_rendered_defect_has_a_difference_type(kind: PartKind) -> None:
    assert {*applicable_types(kind)} <= {*RENDERED_TYPES}
    assert all(type_index(t) != NO_TYPE for t in applicable_types(kind))


def test_renderer_types_map_to_difference_types() -> None:
    assert tuple(RENDERED_TYPES) == get_args(RenderedType)
    assert {*RENDERED_TYPES.values()} <= {*DIFFERENCE_TYPES}
    assert all(RENDERED_TYPES.get(t, t) == t for t in DIFFERENCE_TYPES)


def test_painted_defects_are_difference_types() -> None:
    assert {*SYNTHETIC_TYPES} <= {*DIFFERENCE_TYPES}
    assert {*SYNTHETIC_TYPES} >= COMPONENT_TYPES


def test_causes_belong_to_difference_types() -> None:
    assert {*CAUSES} <= {*DIFFERENCE_TYPES}


@pytest.mark.parametrize("kind", DIFFERENCE_TYPES)
def test_prose_that_names_a_difference_type_is_refused(kind: str) -> None:
    assert prose_problem(f"looks like {kind.replace('_', ' ')}")
