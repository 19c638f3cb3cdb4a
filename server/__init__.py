"""Transport only: command line, HTTP, chat platforms. May import every room; no room imports it."""
