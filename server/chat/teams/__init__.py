"""RefDiff in Microsoft Teams, on the HTTP server."""
