"""Slack and Teams: the common bot logic here, one sub-folder per platform."""
