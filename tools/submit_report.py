"""The agent's draft of a report: claims that point at evidence. Code fills every number, place and count later."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from langchain_core.tools import tool
from langgraph.prebuilt import ToolRuntime
from pydantic import BaseModel, ConfigDict, Field

from refdiff.model.defect_types import DefectType
from refdiff.tools.context import HasTools
from refdiff.tools.evidence import ScoreEvidence, evidence_of, latest


class Claim(BaseModel):
    """One finding as the model states it."""

    model_config = ConfigDict(extra="forbid")

    region: str = Field(description="region id from score_difference, e.g. r1", max_length=8)
    type: DefectType
    severity: Literal["minor", "major", "critical", "unrated"]
    evidence: list[str] = Field(description="ids of the evidence for it, e.g. e4, e6", min_length=1, max_length=12)
    description: str = Field(
        description="short prose without digits, number words, places or defect words; write slots instead: "
        "{type}, {place}, {e6.length_mm}",
        max_length=400,
    )
    reasoning: str = Field(description="why it is (or is not) a defect; same rule", max_length=600)
    probable_cause: str | None = Field(description="likely cause, or null; same rule", max_length=300)


class Draft(BaseModel):
    model_config = ConfigDict(extra="forbid")

    findings: list[Claim] = Field(max_length=16)
    reasoning: str = Field(max_length=1200)


@tool("submit_report", response_format="content_and_artifact")
def submit_report_tool(
    findings: Annotated[
        list[Claim], Field(description="one per region that is a defect; empty if none", max_length=16)
    ],
    reasoning: Annotated[str, Field(description="overall reasoning, same rule for words", max_length=1200)],
    runtime: ToolRuntime[HasTools, Any],
) -> tuple[str, dict[str, Any]]:
    """File the report. Every finding cites evidence ids. The verdict is not yours to give."""
    evidence = evidence_of(runtime.state["evidence"])
    runtime.context.tools.capture_in(evidence)
    latest(evidence, ScoreEvidence, "nothing was compared yet: call score_difference first")
    draft = Draft(findings=findings, reasoning=reasoning)
    return '{"received": true}', {"draft": draft.model_dump()}
