"""Enrolment of golden samples and captures: reading files, near-duplicates, outliers, adoption."""
