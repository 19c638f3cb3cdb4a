"""Free point clouds: from files to points in mm, to their registration, to signed distances. Knows nothing about parts."""
