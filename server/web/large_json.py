"""Routes whose JSON bodies carry photos: parsed in a thread, so other requests do not wait."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json


class LargeJson(APIRoute):
    """A route that parses its JSON body in a thread."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            return await handle(_Request(request.scope, request.receive))

        return handled


class _Request(Request):
    async def json(self) -> Any:
        try:
            return await run_sync(from_json, await self.body())
        except ValueError as e:
            raise json.JSONDecodeError(str(e)[:200], "", 0) from e
