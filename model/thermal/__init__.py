"""Thermograms: files to temperatures, temperatures to a difference in kelvin, to pictures. Knows nothing about parts."""
