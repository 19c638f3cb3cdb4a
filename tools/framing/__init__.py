"""Frames: goldens of a product registered to each other once, and photos brought into the frame of their references."""
