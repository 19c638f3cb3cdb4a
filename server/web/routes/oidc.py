"""The way of a browser to the identity provider and back. Errors are pages: a person reads them."""

from __future__ import annotations

import logging
from functools import cache, partial
from html import escape
from typing import cast

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.responses import Response

from refdiff.model.errors import RefDiffError
from refdiff.server.web.access import SIGN_IN_PATH, Access, host_is_loopback, server_port
from refdiff.server.web.errors import Refused
from refdiff.server.web.identity_provider import Pending
from refdiff.server.web.page.files import POLICY
from refdiff.server.web.sign_in import PeopleSignIn

log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False)
BACK_PATH = "/oidc/callback"
_AT_PROVIDER_S = 600  # how long somebody may take there
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Sign-in failed · RefDiff Inspector</title>
<link rel="icon" href="/page/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="/page/style.css"></head>
<body><main><h1>Sign-in failed</h1><p class="notice bad">{message}</p><p><a href="/">Back to the review page</a></p></main>
</body></html>
"""


@router.get(SIGN_IN_PATH)
async def login(request: Request) -> Response:
    """Send the browser to the provider."""
    try:
        people, port = _people(request), server_port(request)
        begin = partial(people.begin, _redirect_uri(request, people), request.cookies.get(people.cookie(port), ""))
        url, pending = await run_sync(begin, limiter=_signing_in())
    except Exception as e:
        return _failed(e)
    answer = RedirectResponse(url, 303)
    # lax: the provider's page leads back here, and a strict cookie would not come along
    answer.set_cookie(
        people.pending_cookie(port), str(pending), _AT_PROVIDER_S, httponly=True, samesite="lax", secure=people.secure
    )
    return answer


@router.get(BACK_PATH)
async def callback(request: Request) -> Response:
    """Where the provider sends the browser back, once."""
    answer: Response
    try:
        people, port, query = _people(request), server_port(request), dict(request.query_params)
    except Refused as e:
        return _failed(e)
    pending = Pending.of(request.cookies.get(people.pending_cookie(port), ""))
    try:
        finish = partial(people.finish, pending, query, _redirect_uri(request, people))
        cookie = await run_sync(finish, limiter=_signing_in())
    except Exception as e:
        answer = _failed(e)
    else:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            people.cookie(port), cookie, people.kept_s, httponly=True, samesite="strict", secure=people.secure
        )
    if pending is not None and pending.is_meant_by(query):  # else it is of a later sign-in, in another tab
        answer.delete_cookie(people.pending_cookie(port), httponly=True, samesite="lax", secure=people.secure)
    return answer


def _signs_in(request: Request) -> PeopleSignIn | None:
    return cast(Access, request.app.state.access).people


def _people(request: Request) -> PeopleSignIn:
    if (people := _signs_in(request)) is None:
        raise Refused(404, "nobody signs in here; this server has no identity provider (REFDIFF_OIDC_ISSUER)")
    return people


def _redirect_uri(request: Request, people: PeopleSignIn) -> str:
    if people.public_url is not None:
        return f"{people.public_url}{BACK_PATH}"
    if not host_is_loopback(request.headers):  # http, while it was called through a proxy: the provider would refuse it
        raise Refused(
            503, "set REFDIFF_PUBLIC_URL to the address at which browsers reach this server, so that people can sign in"
        )
    return f"http://{request.headers['host']}{BACK_PATH}"


def _failed(error: Exception) -> Response:
    if isinstance(error, Refused):
        status, message = error.status_code, str(error.detail)
    elif isinstance(error, RefDiffError):  # no name is left, or the database does not answer
        status, message = 503, str(error)
    else:
        log.error("sign-in failed", exc_info=error)
        status, message = 500, "an internal error of this server, which its log tells of; try again, or use an API key"
    return HTMLResponse(_PAGE.format(message=escape(message)), status, {"Content-Security-Policy": POLICY})


@cache
def _signing_in() -> CapacityLimiter:
    """Threads of their own: a provider that is slow to answer does not hold those of inspections."""
    return CapacityLimiter(4)
