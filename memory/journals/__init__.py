"""Journals of accepted work: jobs, chat messages, photos of a watched folder. Each has its own SQLite file."""
