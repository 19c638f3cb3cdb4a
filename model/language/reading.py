"""The reading of a pair: one fixed question, one small JSON answer. The same for every engine, and without any user text."""

from __future__ import annotations

import json
from typing import Any

from refdiff.model.defect_types import NO_DEFECT, READING_TYPES

READ = """The first picture is a good reference sample, the second the inspected part. Is there a defect on the part? \
Answer as JSON: defect (true or false), type (one of the allowed words), confidence (whole number, 0 to 100)."""

READING_SCHEMA: dict[str, Any] = {
    "title": "reading",
    "type": "object",
    "additionalProperties": False,
    "required": ["defect", "type", "confidence"],
    "properties": {
        "defect": {"type": "boolean"},
        "type": {"enum": list(READING_TYPES)},
        "confidence": {"type": "integer", "minimum": 0, "maximum": 100},
    },
}


def reading_text(defect: bool, kind: str, confidence: float) -> str:
    """The answer as it is trained and generated; confidence 0..1, written in steps of 5 %."""
    percent = min(99, max(1, 5 * round(20 * confidence)))
    return json.dumps({"defect": defect, "type": kind if defect else NO_DEFECT, "confidence": percent})
