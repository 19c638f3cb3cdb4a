"""Stores of records in the one database: products, captures, calibrations, inspections, dispositions, keys."""
