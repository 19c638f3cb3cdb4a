"""`refdiff evaluate`: data-set layouts, metrics and the run. May import what `refdiff.agent` may."""
