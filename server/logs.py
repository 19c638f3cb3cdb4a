"""Log levels of libraries that would write secrets: HTTP clients log addresses whole, with passwords and tokens in them."""

from __future__ import annotations

import logging

_HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "httpcore2", "openai", "urllib3", "hpack")


def keep_addresses_out() -> None:
    """Let HTTP clients log warnings and errors only, whatever REFDIFF_LOG_LEVEL says."""
    for name in _HTTP_CLIENTS:
        logging.getLogger(name).setLevel(logging.WARNING)
