"""The Model Context Protocol: RefDiff's tools and whole inspections for other agents."""
