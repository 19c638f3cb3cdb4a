"""Inspections on a device: from an export, without torch, a database or a server."""
