"""The encoder and the difference network: matching of features, distance to the nearest patch, image score."""
