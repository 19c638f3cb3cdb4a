"""Transport only: command line, HTTP, chat platforms, MCP, folder watch. No room imports it.

May import every room: `refdiff.agent`, `refdiff.tools`, `refdiff.memory`, `refdiff.model`.
"""
