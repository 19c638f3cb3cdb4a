"""Sign the operator's browser in, and every browser out."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from refdiff.server.web.access import Access, cookie_name, server_port
from refdiff.server.web.errors import Refused, responses
from refdiff.server.web.sign_in import KEPT_S

router = APIRouter(tags=["people"])


class Token(BaseModel):
    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=200, description="From the link that `refdiff serve` printed")


@router.post("/login", status_code=204, responses=responses())
def login(request: Request, body: Token) -> Response:
    """Exchange the one-time token of the printed link for a cookie, which scripts cannot read."""
    access = cast(Access, request.app.state.access)
    cookie = access.sign_in.exchange(body.token) if access.sign_in else None
    if cookie is None:
        access.count_wrong(request.client.host if request.client else "")
        raise Refused(
            401,
            "this link was used already, or belongs to an earlier start of the server: start `refdiff serve` again for a "
            "new one, or sign in with an API key",
        )
    answer = Response(status_code=204)
    answer.set_cookie(cookie_name(server_port(request)), cookie, KEPT_S, httponly=True, samesite="strict")
    return answer


class SignedOut(BaseModel):
    """provider: where the identity provider ends its own session."""

    provider: str


@router.post(
    "/logout",
    status_code=204,
    responses=responses()
    | {200: {"model": SignedOut, "description": "Signed out here; the provider may still know the person"}},
)
def logout(request: Request) -> Response:
    """End the sign-in of this browser."""
    access, port = cast(Access, request.app.state.access), server_port(request)
    ended = access.people.who(request.cookies, port) if access.people else None
    if ended is not None:
        access.keys.revoke(ended.key_id, ended.name)
    provider = access.people.provider.sign_out_url() if access.people and ended else None
    answer = JSONResponse(SignedOut(provider=provider).model_dump()) if provider else Response(status_code=204)
    answer.delete_cookie(cookie_name(port), httponly=True, samesite="strict")
    if access.people:
        answer.delete_cookie(access.people.cookie(port), secure=access.people.secure, httponly=True, samesite="strict")
    return answer
