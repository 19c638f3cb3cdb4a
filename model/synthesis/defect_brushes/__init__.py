"""Brushes of the renderer's defects, one file per family: each changes a part's material or its list of components."""
