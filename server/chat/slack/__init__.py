"""RefDiff in Slack, over HTTP or Socket Mode."""
