"""The RefDiff language model under vLLM: the out-of-tree model, its guard, and the command line that starts it.

Loads in an environment without LangGraph and Qdrant. May import: `refdiff.model`.
"""
