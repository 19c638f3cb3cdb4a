"""Log lines of a server: one JSON document a line on stderr."""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from refdiff.server.logs import keep_addresses_out


def json_formatter() -> JsonFormatter:
    """Lines with `time` (UTC), `level`, `logger`, `message`, the fields of `extra`, and `exception` where there is one."""
    return JsonFormatter(
        "{levelname}{name}{message}",
        style="{",
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "exception"},
        timestamp="time",
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        json_ensure_ascii=False,
    )


def log_json(level: str) -> None:
    """All lines as JSON; our own from INFO on (requests are at INFO), those of libraries from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("refdiff").setLevel("DEBUG" if level == "DEBUG" else "INFO")
    keep_addresses_out()
