"""Stores only: golden bank, image store, records, audit log, journals.

Decides nothing and scores nothing. May import: `refdiff.model`.
"""
