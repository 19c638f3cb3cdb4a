"""The RefDiff language model: base weights, projector, tokens of a pair, processor, engine, and its build."""
