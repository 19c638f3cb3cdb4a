"""The seven tools that the agent can call, and the plain functions behind them.

Tools measure; they never decide a verdict. May import: `refdiff.memory`, `refdiff.model`.
"""
