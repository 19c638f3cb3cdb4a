"""The LangGraph agent, its drivers, the verdict, the report, and the service that every way in uses.

May import: `refdiff.tools`, `refdiff.memory`, `refdiff.model`.
"""
