"""Stores only: golden bank, image store, products, captures, calibrations, inspections, dispositions.

Decides nothing and scores nothing. May import: `refdiff.model`.
"""
