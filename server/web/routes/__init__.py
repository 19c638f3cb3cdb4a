"""HTTP routes, one file per resource, thin over `refdiff.agent.service`."""
