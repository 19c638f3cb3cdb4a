"""Photos by the sha256 of their bytes: in a folder, or in a bucket of an object store."""
