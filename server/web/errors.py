"""Errors of the API, in one JSON shape: that of the command line's `--json` and of OpenAI's clients.

{"error": {"type", "message", "code", "request_id", ...}}
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from refdiff.model.errors import (
    BusyError,
    ChangedError,
    DuplicateError,
    InputError,
    RefDiffError,
    TamperedError,
    UnavailableError,
    UnknownPartError,
    UnknownProductError,
    UnknownRecordError,
)

# the first match counts
STATUSES: tuple[tuple[type[RefDiffError], int], ...] = (
    (UnknownRecordError, 404),
    (UnknownPartError, 404),
    (UnknownProductError, 404),
    (DuplicateError, 409),
    (ChangedError, 409),
    (TamperedError, 409),
    (InputError, 422),
    (BusyError, 429),
    (UnavailableError, 503),
)
_RETRY_S = 10  # an outage seldom ends at once
_NAMES = {400: "bad_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found",
          405: "method_not_allowed", 409: "conflict",
          413: "too_large", 415: "unsupported_media_type", 422: "invalid_request", 429: "too_many_requests"}  # fmt: skip


class ErrorDetail(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    message: str
    code: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """Body of every error response."""

    error: ErrorDetail


class Refused(HTTPException):
    """Raised by routes for problems that no store knows about: keys, roles, formats. more: further fields of the error."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None, **more: str) -> None:
        super().__init__(status, message, headers)
        self.more = more


def responses(*statuses: int, answers: str = "") -> dict[int | str, dict[str, Any]]:
    """For the OpenAPI document: statuses with an `ErrorBody`, in addition to those that every route has.

    answers: media types of a success that is not JSON, separated by blanks.
    """
    words = {404: "Unknown", 409: "Already decided, or changed since", 413: "Too large", 422: "Invalid",
             429: "Try again later", 503: "Unavailable", 401: "API key missing", 403: "Role not sufficient",
             400: "Malformed", 415: "Body type", 405: "Method not allowed"}  # fmt: skip
    wanted = dict.fromkeys((*statuses, 400, 401, 403, 422, 429, 503))
    found: dict[int | str, dict[str, Any]] = {s: {"model": ErrorBody, "description": words[s]} for s in wanted}
    if answers:
        found[200] = {"content": {kind: {} for kind in answers.split()}, "description": "The file"}
    return found


def body(request: Request, type: str, message: str, code: str | None = None, **more: Any) -> dict[str, Any]:
    request_id = getattr(request.state, "request_id", None)
    return {"error": {"type": type, "message": message, "code": code, "request_id": request_id} | more}


def register(app: FastAPI) -> None:
    app.add_exception_handler(RefDiffError, known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, http_error)


async def known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefDiffError)
    status = next((s for kind, s in STATUSES if isinstance(error, kind)), 500)
    headers = {}
    if isinstance(error, BusyError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    elif status == 503:
        headers["Retry-After"] = str(_RETRY_S)
    more: dict[str, Any] = {"exit_code": error.exit_code}
    if isinstance(error, DuplicateError) and error.earlier is not None:
        more["earlier"] = asdict(error.earlier)
    code = _NAMES.get(status, "unavailable" if status == 503 else type(error).__name__)
    return JSONResponse(body(request, type(error).__name__, str(error), code, **more), status, headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [f"{'.'.join(map(str, p['loc'][1:])) or p['loc'][0]}: {p['msg']}" for p in error.errors()]
    return JSONResponse(body(request, "InvalidRequest", "; ".join(problems)[:2000], "invalid_request"), 422)


async def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = _NAMES.get(error.status_code, "error")
    kind = "".join(word.capitalize() for word in name.split("_"))
    more = error.more if isinstance(error, Refused) else {}
    return JSONResponse(body(request, kind, str(error.detail), name, **more), error.status_code, error.headers)
