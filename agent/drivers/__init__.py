"""What can drive a run: an endpoint, the embedded model or the script. All answer with the next tool call."""
