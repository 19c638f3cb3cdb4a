"""The hash-chained audit log: chain and store."""
