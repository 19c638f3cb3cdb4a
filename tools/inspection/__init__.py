"""The canonical inspection of one photo: comparison, calibration, specification, zones, scale."""
