"""RefDiff in Microsoft Teams, on the HTTP server. May import what `server` may."""
