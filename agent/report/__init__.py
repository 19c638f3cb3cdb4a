"""The defect report: schema, summary, pictures, Markdown and HTML."""
