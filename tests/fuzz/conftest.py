"""The served home of tests/server, and the clock of `make fuzz`."""

from __future__ import annotations

from tests.server.conftest import _made_once
from tests.server.web.conftest import server

__all__ = ["_made_once", "server"]
