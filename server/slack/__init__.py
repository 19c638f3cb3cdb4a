"""RefDiff in Slack, over HTTP or Socket Mode. May import what `server` may."""
