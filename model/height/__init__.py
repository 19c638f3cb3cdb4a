"""Height maps: files to millimetres, two of them to a difference in millimetres. Knows nothing about parts."""
