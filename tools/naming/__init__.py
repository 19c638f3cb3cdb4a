"""The customer's own names of defects: what a finding looks like, and which of the named ones it is like."""
