"""The network for bare boards and the format of its data set."""
