"""The LangGraph agent, the verdict policy, verification of claims, the report and the evaluation.

May import: `refdiff.tools`, `refdiff.memory`, `refdiff.model`.
"""
