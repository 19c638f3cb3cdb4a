"""Which calls the embedded model may make at each point."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool

from refdiff.agent.drivers.allowed_calls import MAX_LOOKED_AT, allowed_calls
from refdiff.agent.prompts import CAUSES
from refdiff.tools.registry import TRAINED_TOOLS

_ALL = [convert_to_openai_tool(t, strict=True) for t in TRAINED_TOOLS]


def result(name: str, **content: Any) -> ToolMessage:
    return ToolMessage(json.dumps(content), name=name, tool_call_id="call-1")


FOUND = result("find_part", evidence="e1")
REFERENCE = result("retrieve_reference", evidence="e2", goldens=[{"golden_id": "g-86106f395188"}, {"golden_id": "g-2"}])
ALIGNED = result("align", evidence="e3", ok=True)
SCORED = result("score_difference", evidence="e4", regions=[{"region": "r1"}])
ZOOMED = result("zoom", evidence="e6", region="r1", score="e4")
MEASURED = result("measure", evidence="e7", region="r1", score="e4")


def possible(*messages: BaseMessage) -> dict[str, dict[str, Any]]:
    return {t["function"]["name"]: t["function"]["parameters"] for t in allowed_calls(messages, _ALL)}


def fits(schema: dict[str, Any], arguments: dict[str, Any]) -> bool:
    return bool(jsonschema_rs.is_valid(schema, arguments))


def test_tool_is_offered_once_its_inputs_exist() -> None:
    assert set(possible()) == {"find_part"}
    assert set(possible(FOUND)) == {"find_part", "retrieve_reference"}
    assert set(possible(FOUND, REFERENCE)) == {"find_part", "retrieve_reference", "align"}
    assert "submit_report" not in possible(FOUND, REFERENCE, ALIGNED)
    every = {t["function"]["name"] for t in _ALL}
    assert set(possible(FOUND, REFERENCE, ALIGNED, SCORED)) == every - {"submit_report"}
    assert set(possible(FOUND, REFERENCE, ALIGNED, SCORED, ZOOMED)) == every - {"submit_report", "zoom"}
    assert set(possible(FOUND, REFERENCE, ALIGNED, SCORED, ZOOMED, MEASURED)) == every - {"zoom", "measure"}


def test_report_is_offered_only_after_the_strongest_regions_were_zoomed_and_measured() -> None:
    scored = result("score_difference", evidence="e4", regions=[{"region": f"r{n}"} for n in range(1, 6)])
    seen: list[BaseMessage] = [FOUND, REFERENCE, ALIGNED, scored]
    for n in range(1, MAX_LOOKED_AT + 1):
        assert "submit_report" not in possible(*seen)
        assert fits(possible(*seen)["zoom"], {"region": f"r{n}"})
        seen += [result(look, region=f"r{n}", score="e4", evidence=f"e{look}{n}") for look in ("zoom", "measure")]
        assert not fits(possible(*seen)["zoom"], {"region": f"r{n}"})
    assert "submit_report" in possible(*seen)
    assert fits(possible(*seen)["measure"], {"region": "r5"})
    again = scored.model_copy(update={"content": scored.text.replace("e4", "e9")})
    assert "submit_report" not in possible(*seen, again)  # other places, of another comparison


def test_failed_zoom_does_not_block_the_report() -> None:
    failed = ToolMessage("Error: disk full", name="zoom", tool_call_id="call-1", status="error")
    assert "submit_report" in possible(FOUND, REFERENCE, ALIGNED, SCORED, failed)


def test_failed_align_does_not_unlock_score_difference() -> None:
    failed = ToolMessage("Error: no such golden", name="align", tool_call_id="call-1", status="error")
    assert "score_difference" not in possible(FOUND, REFERENCE, failed)


@pytest.mark.parametrize(("golden", "there"), [("g-86106f395188", True), ("g-2", True), ("g-86106fbe225c", False)])
def test_only_retrieved_golden_ids_are_allowed(golden: str, there: bool) -> None:
    after = possible(FOUND, REFERENCE, ALIGNED)
    assert fits(after["align"], {"golden_id": golden}) is there
    assert fits(after["score_difference"], {"golden_ids": [golden]}) is there
    assert fits(after["score_difference"], {"golden_ids": []})


def test_only_regions_of_the_newest_comparison_are_allowed() -> None:
    again = result("score_difference", evidence="e5", regions=[{"region": "r1"}, {"region": "r2"}])
    looked = [result(look, evidence="e6", region=r, score="e5") for look in ("zoom", "measure") for r in ("r1", "r2")]
    for messages, there in (((SCORED,), False), ((SCORED, again), True)):
        schemas = possible(FOUND, REFERENCE, ALIGNED, *messages)
        assert fits(schemas["zoom"], {"region": "r2"}) is there
        schemas |= possible(FOUND, REFERENCE, ALIGNED, *messages, *(looked if there else (ZOOMED, MEASURED)))
        claim = {"region": "r2", "type": "scratch", "severity": "minor", "evidence": ["e4"], "description": "",
                 "reasoning": "", "probable_cause": None}  # fmt: skip
        assert fits(schemas["submit_report"], {"findings": [claim], "reasoning": ""}) is there
        unknown = claim | {"region": "r1", "evidence": ["e9"]}
        assert not fits(schemas["submit_report"], {"findings": [unknown], "reasoning": ""})


@pytest.mark.parametrize(
    ("cause", "there"), [(CAUSES["scratch"][0], True), (None, True), ("Micro-dosing or a different method.", False)]
)
def test_only_causes_of_the_vocabulary_are_allowed(cause: str | None, there: bool) -> None:
    claim = {"region": "r1", "type": "scratch", "severity": "minor", "evidence": ["e4"], "description": "",
             "reasoning": "", "probable_cause": cause}  # fmt: skip
    schemas = possible(FOUND, REFERENCE, ALIGNED, SCORED, ZOOMED, MEASURED)
    assert fits(schemas["submit_report"], {"findings": [claim], "reasoning": ""}) is there


def test_zoom_measure_and_findings_are_not_allowed_without_a_region() -> None:
    schemas = possible(FOUND, REFERENCE, ALIGNED, result("score_difference", evidence="e4", regions=[]))
    assert not {"zoom", "measure"} & set(schemas)
    assert fits(schemas["submit_report"], {"findings": [], "reasoning": ""})
    assert not fits(schemas["submit_report"], {"findings": [{}], "reasoning": ""})


def test_allowed_calls_do_not_modify_the_tool_schemas() -> None:
    before = json.dumps(_ALL)
    possible(FOUND, REFERENCE, ALIGNED, SCORED)
    assert json.dumps(_ALL) == before
