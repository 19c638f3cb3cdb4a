"""The HTTP API: routes, one file a resource, thin over `refdiff.server.desk`. Nothing is decided here."""
