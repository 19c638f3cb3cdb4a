"""Evidence: what a tool measured, in a form that a report can cite and a checkpoint can hold (ids, never pixels)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EvidenceKind = Literal["capture", "reference", "alignment", "score", "zoom", "measure"]


class EvidenceRecord(BaseModel):
    """One tool result: which tool kind, with which arguments, which numbers and images came out.

    id: "e1", "e2", ... in the order of filing; empty until the agent files it.
    numbers: flat, the names that slots such as {e3.length_mm} use. images: role -> sha256 in the image store.
    """

    model_config = ConfigDict(extra="forbid")

    id: str = ""
    kind: EvidenceKind
    arguments: dict[str, Any] = {}
    numbers: dict[str, float | int | str | bool | None] = {}
    images: dict[str, str] = Field(default={}, description="role -> sha256 in the image store")
    summary: str
