"""The `refdiff` command: one file per group of commands."""
