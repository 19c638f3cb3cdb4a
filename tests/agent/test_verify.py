"""Verification of claims: prose states no facts, and every slot, type and citation refers to the right evidence."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.agent.report.summary import with_unit
from refdiff.agent.verdict.verify import Verified, claimed_region, prose_problem, verify
from refdiff.model.defect_types import DEFECT_TYPES, UNKNOWN
from refdiff.tools.evidence import Evidence, evidence_of
from refdiff.tools.submit_report import Draft


@pytest.mark.parametrize(
    "text",
    [
        # numbers: any script, styled, spelled, hyphenated, hidden
        "5 mm long", "٣ marks", "７７ wide", "长度三", "½ of it", "① there", "x² off", "𝟝 of them", "three of them",
        "twenty-three", "fünf davon", "fu\u0308nf davon", "fuenf davon", "tres marcas", "a few of them", "a DOZEN", "Ⅷ",
        "several", "th\u200bree", "t\u00adwo", "ten percent", "a micron", "some millimetres off", "a half", "iii",
        # places
        "seen upper-left", "at the edge", "two-sided", "leftmost", "along the edges", "in corners", "oben rechts",
        "upperleft of it", "arriba", "northeast", "near the CENTRE", "'left'", "“bottom”", "(top)",
        # kinds of defect
        "a scratch", "ｓｃｒａｔｃｈ", "scratch-like", "SCRATCHES", "microscratch", "hair-crack", "chipping", "stained",
        "sc\u200bratch", "\"dent\"", "*stain*", "missing_part", "missingPart", "ein Kratzer", "Oberflächenkratzer",
        "arañazo", "aranazo", "texture change", "print-defect", "划痕", "an open", "torn", "corroded", "holes",
        # severity and verdict are not the model's
        "a critical matter", "severely off", "the part passes", "FAIL", "rejected", "acceptable",
        # scripts that no word list covers, and letters that only look Latin
        "царапина", "\u0441rack", "キズ", "흠집", "خدش",
        # broken slots
        "length {e6.length_mm", "e6.length_mm}", "{{place}}",
    ],
)  # fmt: skip
def test_prose_with_numbers_or_claims_is_refused(text: str) -> None:
    assert prose_problem(text)


@pytest.mark.parametrize(
    "text",
    [
        "", "Brightness differs from the golden sample.", "The {type} is at {place}, length {e6.length_mm}.",
        "The surface looks different here; contrast and weight are alike.", "Stainless steel, no difference seen.",
        "The stone-grey tone often changes with the light.", "Attention: the sustained tension tends to alter it.",
        "Clearly visible against the sample!", "Der Glanz ist anders.", "El brillo cambia.", "a < b",
        "Handle with care: weighty, freight, height, bright, alone, tone, content, intention, freely.",
    ],
)  # fmt: skip
def test_prose_without_claims_is_accepted(text: str) -> None:
    assert prose_problem(text) is None


@pytest.mark.parametrize("kind", [t for t in DEFECT_TYPES if t != UNKNOWN])
def test_prose_that_names_a_defect_type_is_refused(kind: str) -> None:
    assert prose_problem(f"looks like {kind}")
    assert prose_problem(f"looks like {kind.replace('_', ' ').upper()}")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("length_mm", 3.14159, "3.14 mm"), ("length_px", 1234.5, "1234 px"), ("area_px", 120, "120 px²"),
     ("area_mm2", 0.5, "0.5 mm²"), ("angle_deg", 30.0, "30°"), ("score", 0.12345, "0.123"), ("ok", True, "true"),
     ("place", "upper left", "upper left"), ("regions", 1234, "1234")],
)  # fmt: skip
def test_slot_value_is_shown_with_its_unit(name: str, value: Any, shown: str) -> None:
    assert with_unit(name, value) == shown


def _record(i: int, kind: str, arguments: dict[str, Any], **numbers: Any) -> Evidence:
    filled = MEASURED | numbers if kind == "measure" else numbers
    record = {"id": f"e{i}", "kind": kind, "arguments": arguments, "numbers": filled, "summary": ""}
    return evidence_of([record])[0]


def _box(region: str, x: int, place: str, peak: float = 0.5) -> dict[str, Any]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), (x, 0, x + 9, 9), strict=True))
    return {f"{region}_{k}": v for k, v in (corners | {"place": place, "area_px": 44, "peak": peak}).items()}


MEASURED: dict[str, Any] = {
    "length_px": 31.4, "width_px": 5.0, "uncertainty_px": 1.0, "length_mm": None, "width_mm": None, "area_mm2": None,
    "uncertainty_mm": None, "x0": 5, "y0": 0, "x1": 14, "y1": 9, "area_px": 44, "method": "difference",
}  # fmt: skip
SCORED = {"p_value": None, "calibration_parts": 0, "canonical": True}
CROP = {"x0": 0, "y0": 0, "x1": 48, "y1": 48, "reference_covers": True}
R1, R2 = {"region": "r1", "score": "e2"}, {"region": "r2", "score": "e2"}
EVIDENCE = [
    _record(
        1, "capture", {"part_id": "1", "capture_id": "c", "product": "p"},
        width_px=320, height_px=240, scale_mm_per_px=None,
    ),
    _record(
        2, "score", {"golden_ids": ["g-a"]}, score=0.5, regions=2, **SCORED, **_box("r1", 5, "upper left", 0.9),
        **_box("r2", 90, "right"),
    ),
    _record(3, "zoom", R1, **CROP),
    _record(4, "measure", R1, length_mm=3.14159, width_mm=0.5, place="top"),
    _record(5, "measure", R2, length_mm=99.0, place="right"),
    _record(6, "zoom", R2, **CROP),
    _record(7, "score", {"golden_ids": ["g-x"]}, score=0.7, regions=1, **SCORED, **_box("r1", 50, "centre")),
]  # fmt: skip
CLAIM: dict[str, Any] = {
    "region": "r1", "type": "scratch", "severity": "unrated", "evidence": ["e2", "e3", "e4"],
    "description": "{type} at {place}", "reasoning": "", "probable_cause": None,
}  # fmt: skip


def _draft(*changes: dict[str, Any], reasoning: str = "") -> Draft:
    return Draft.model_validate({"findings": [CLAIM | c for c in changes], "reasoning": reasoning})


def _verify(*changes: dict[str, Any], reasoning: str = "", shown: tuple[str, ...] = ("e3", "e6")) -> Verified:
    return verify(_draft(*changes, reasoning=reasoning), EVIDENCE, shown=shown)


def test_length_slot_without_a_scale_is_filled_in_pixels() -> None:
    bare = [*EVIDENCE[:3], _record(4, "measure", R1, place="top"), *EVIDENCE[4:]]
    checked = verify(_draft({"reasoning": "It is {e4.length_mm} long."}), bare, shown=("e3", "e6"))
    assert checked.unsupported == []
    assert checked.claims[0].reasoning == "It is length 31.4 px long."


def test_slots_of_a_supported_claim_are_filled_from_evidence() -> None:
    checked = _verify({"reasoning": "It is {e4.length_mm} against {e4.width_mm}, peak {e2.r1_peak}."}, reasoning="ok")
    assert checked.unsupported == []
    (claim,) = checked.claims
    assert claim.description == "scratch at top"  # the measured place is what is filed
    # every number with its own name: a width cannot pass for a length
    assert claim.reasoning == "It is length 3.14 mm against width 0.5 mm, peak 0.9."
    again = _verify({"reasoning": "Its peak is {e2.r1_peak}."}, reasoning="ok")
    assert again.claims[0].reasoning == "Its peak is 0.9."
    assert (claim.region, claim.type, claim.evidence) == ("r1", "scratch", ["e2", "e3", "e4"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"evidence": ["e2", "e99"]}, "e99 does not exist"),
        ({"evidence": ["e1"]}, "no region r1"),
        ({"region": "r9"}, "no region r9"),
        ({"region": ""}, "no region"),
    ],
)
def test_claim_without_valid_evidence_is_dropped(change: dict[str, Any], why: str) -> None:
    checked = _verify(change)
    assert checked.claims == []
    assert why in checked.unsupported[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("length {e5.length_mm}", "not cited"),
        ("length {e99.length_mm}", "not cited"),
        ("{e4.depth_mm}", "measured no depth_mm"),
        ("{e1.scale_mm_per_px}", "not cited"),
        ("{e2.r2_place}", "another region"),
        ("{severity}", "names no evidence"),
        ("{5 mm}", "not a name"),
        ("{}", "not a name"),
        ("{e4.length_mm.real}", "not a name"),
        ("three of {e4.length_mm}", "a number"),
    ],
)
@pytest.mark.parametrize("name", ["description", "reasoning", "probable_cause"])
def test_text_with_a_slot_outside_the_cited_evidence_is_dropped(name: str, text: str, why: str) -> None:
    checked = _verify({name: text})
    assert getattr(checked.claims[0], name) == ""
    assert why in checked.unsupported[0]


def test_evidence_of_another_region_is_ignored() -> None:
    checked = _verify({"evidence": ["e2", "e3", "e5"], "description": "length {e5.length_mm}"})
    assert checked.claims[0].evidence == ["e2", "e3"]
    assert checked.claims[0].description == ""
    assert "e5 is of another region" in checked.unsupported[0]


def test_region_of_the_same_name_in_another_comparison_is_kept_apart() -> None:
    checked = _verify({"evidence": ["e7", "e4"], "description": "length {e4.length_mm}", "type": UNKNOWN})
    found = claimed_region("r1", checked.claims[0].evidence, {e.id: e for e in EVIDENCE})
    assert found is not None
    assert (found[0].id, found[1].box) == ("e7", (50, 0, 59, 9))
    assert checked.claims[0].evidence == ["e7"]
    assert "99" not in checked.claims[0].description + checked.claims[0].reasoning
    assert "3.14" not in checked.claims[0].description


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, ()),  # zoomed, but its pictures were never posted
        ({"evidence": ["e2", "e4"]}, ("e3",)),  # seen, but not cited
        ({"evidence": ["e2", "e6", "e4"]}, ("e6",)),  # saw another region
    ],
)
def test_type_without_a_cited_zoom_shown_to_the_model_becomes_unknown(
    change: dict[str, Any], shown: tuple[str, ...]
) -> None:
    checked = _verify(change, shown=shown)
    assert checked.claims[0].type == UNKNOWN
    assert checked.claims[0].description == "unknown anomaly at " + (
        "top" if "e4" in checked.claims[0].evidence else ""
    )
    assert any("type was not seen" in u for u in checked.unsupported)


def test_second_claim_of_a_region_is_dropped() -> None:
    checked = _verify({}, {"type": "dent"})
    assert [c.type for c in checked.claims] == ["scratch"]
    assert "claimed twice" in checked.unsupported[0]


def test_overall_reasoning_with_unsupported_statements_is_dropped() -> None:
    assert _verify(reasoning="regions: {e2.regions}").reasoning == "regions: 2"
    checked = _verify(reasoning="The part is {e1.width_px} long")
    assert checked.reasoning == "The part is width 320 px long"  # true, if clumsy
    for lie in ("two marks", "{place}", "{e99.score}"):
        checked = _verify(reasoning=lie)
        assert checked.reasoning == ""
        assert lie in checked.unsupported[0]
