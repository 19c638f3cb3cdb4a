"""`refdiff evaluate`: data-set layouts, metrics and the run."""
