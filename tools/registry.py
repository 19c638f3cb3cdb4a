"""The tools that the agent may call, in their usual order."""

from __future__ import annotations

from langchain_core.tools import BaseTool

from refdiff.tools.align import align_tool
from refdiff.tools.find_part import find_part_tool
from refdiff.tools.measure import measure_tool
from refdiff.tools.retrieve_reference import retrieve_reference_tool
from refdiff.tools.score_difference import score_difference_tool
from refdiff.tools.similar_defects import similar_defects_tool
from refdiff.tools.submit_report import submit_report_tool
from refdiff.tools.zoom import zoom_tool

TOOLS: list[BaseTool] = [
    find_part_tool,
    retrieve_reference_tool,
    align_tool,
    score_difference_tool,
    zoom_tool,
    measure_tool,
    similar_defects_tool,
    submit_report_tool,
]

# What our own model was trained with: its prompt lists exactly these, and its grammar allows no others.
TRAINED_TOOLS = [t for t in TOOLS if t is not similar_defects_tool]
