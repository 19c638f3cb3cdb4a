"""Log lines of a server: one JSON document a line on stderr."""

from __future__ import annotations

import logging
import sys

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from refdiff.server.logs import keep_addresses_out

_TRACEBACKS = 5


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


class FewTracebacks(logging.Filter):
    """Leaves the traceback out of a line whose like had `_TRACEBACKS` of them within a minute; the line itself stays."""

    def __init__(self) -> None:
        super().__init__()
        self._window, self._rate = FixedWindowRateLimiter(MemoryStorage()), RateLimitItemPerMinute(_TRACEBACKS)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[0]:
            kind = record.exc_info[0].__name__
            if not self._window.hit(self._rate, record.name, str(record.msg), kind):
                record.exc_info, record.exc_text = None, None
                record.error = f"{kind}, as often within this minute"
        return True


def log_json(level: str) -> None:
    """All lines as JSON; our own from INFO on (requests are at INFO), those of libraries from `level` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_formatter())
    handler.addFilter(FewTracebacks())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("refdiff").setLevel("DEBUG" if level == "DEBUG" else "INFO")
    keep_addresses_out()
