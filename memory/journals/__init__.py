"""Journals of accepted work: jobs and chat messages beside the records, photos of a watched folder in a file beside it."""
