"""The RefDiff language model under vLLM: the out-of-tree model, its guard, and the command line that starts it.

Loads in an environment that has neither FastAPI's rooms nor LangGraph nor Qdrant. May import refdiff.model alone.
"""
