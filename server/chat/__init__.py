"""What Slack and Teams have in common: understanding a message, answering once. May import what `server` may."""
