"""Journals of accepted work: jobs, chat messages, photos of a watched folder. They survive a crash."""
