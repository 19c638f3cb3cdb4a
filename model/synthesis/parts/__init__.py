"""Good parts, drawn: one file per kind of part."""
