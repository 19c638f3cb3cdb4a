"""The log of a server: one JSON document a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime

from refdiff.server.web.json_logs import json_formatter


def test_log_line_is_json_with_the_extra_fields_and_the_exception() -> None:
    record = logging.LogRecord("refdiff.http", logging.INFO, "x.py", 1, "request %s", ("ü",), None)
    record.request_id, record.color_message = "r-1", "coloured"
    line = json.loads(json_formatter().format(record))
    assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert line == {"level": "INFO", "logger": "refdiff.http", "message": "request ü", "request_id": "r-1"}
    try:
        raise ValueError("bad")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: bad" in json.loads(json_formatter().format(record))["exception"]
