"""The defect report: schema, pictures, Markdown and HTML. May import what `refdiff.agent` may."""
