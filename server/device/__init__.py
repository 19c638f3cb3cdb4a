"""`refdiff-edge`: the ways into a device. Loads neither torch nor a database."""
