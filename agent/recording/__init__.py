"""Recordings of tool calls for training: the teacher that drives the tools, and the sentences it varies."""
