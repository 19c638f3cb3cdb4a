"""Synthetic images: rendered parts with exact truth, and defects painted on photos."""
