"""Authentication: API keys with roles, and access without a key for people on the same machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers

from refdiff.agent.service import InspectionService
from refdiff.memory.records.api_keys import ROLES, KeyStore, Role
from refdiff.server.sockets import is_loopback
from refdiff.server.web.errors import Refused

WRONG_KEYS_PER_MINUTE = 20
_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

_bearer = HTTPBearer(auto_error=False, description="An API key (`refdiff keys add`)")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key (`refdiff keys add`)")


@dataclass(frozen=True)
class Caller:
    """The author of a request. name: appears in reports and dispositions. key_id: None for local access without a key."""

    name: str
    role: Role
    key_id: str | None

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


class Access:
    """Who may connect. Without a key only if nobody else can: bound to loopback, called as localhost, without a proxy.

    A proxy on this machine can make every external request look local, without naming the client. So any sign of a proxy
    makes a key mandatory: `hosts`, forwarding headers, or `require_key`.
    """

    def __init__(
        self, keys: KeyStore, *, loopback: bool, user: str, require_key: bool = False, hosts: tuple[str, ...] = ()
    ) -> None:
        """loopback: the server listens on a loopback address. user: name of a caller without a key. hosts: other names of
        the server; with any of them, every caller needs a key."""
        self.keys, self.user = keys, user
        self.open = loopback and not require_key and not hosts
        self._loopback = loopback
        self._hosts = frozenset(h.lower() for h in hosts)
        self._wrong = MovingWindowRateLimiter(MemoryStorage())

    def identify(self, headers: Headers, client: str, key: str | None) -> Caller:
        """Raises Refused 401 (no key, unknown key) or 429 (too many wrong ones)."""
        if key is None:
            if self.open and is_loopback(client) and host_is_loopback(headers) and not _forwarded(headers):
                return Caller(self.user, "admin", None)
            raise _unauthenticated(
                "an API key is required: Authorization: Bearer KEY (create one with `refdiff keys add`)"
            )
        found = self.keys.check(key)
        if found is None:  # only unknown keys are limited: behind a proxy all callers share one address
            if not self._wrong.hit(RateLimitItemPerMinute(WRONG_KEYS_PER_MINUTE), client):
                raise Refused(429, "too many wrong API keys from this address; wait a minute", {"Retry-After": "60"})
            raise _unauthenticated("this API key is unknown or revoked")
        return Caller(found.name, found.role, found.key_id)

    def host_allowed(self, headers: Headers) -> bool:
        """Whether the Host header is allowed; on loopback other names than localhost would permit DNS rebinding."""
        return not self._loopback or host_is_loopback(headers) or host_name(headers) in self._hosts


def _unauthenticated(message: str) -> Refused:
    return Refused(401, message, {"WWW-Authenticate": "Bearer"})


def host_name(headers: Headers) -> str:
    """The host of the request without its port, in lower case; "" without exactly one."""
    given = headers.getlist("host")
    if len(given) != 1:
        return ""
    host = given[0].strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0] if "]" in host else ""
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def host_is_loopback(headers: Headers) -> bool:
    name = host_name(headers)
    return is_loopback(name)


def _forwarded(headers: Headers) -> bool:
    return any(name in headers for name in _FORWARDED)


# ---- dependencies of the routes ----


async def _service(request: Request) -> InspectionService:
    return cast(InspectionService, request.app.state.service)


def given_key(headers: Headers) -> str | None:
    """The API key of a request, from either header."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key") or None


def check_role(caller: Caller, role: Role) -> None:
    """Raises Refused 403."""
    if not caller.may(role):
        raise Refused(403, f"the key of {caller.name!r} has the role {caller.role}; this needs {role}")


# the dependencies are async: a sync one would need one of the threads that uploads and questions may hold
def _needs(role: Role) -> Callable[..., Awaitable[Caller]]:
    async def check(
        request: Request,
        _bearer_shown: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
        _header_shown: Annotated[str | None, Security(_header)],
    ) -> Caller:
        # the caller was identified before the body was read (middleware.py); the parameters document it in OpenAPI
        caller = cast(Caller, request.state.caller)
        check_role(caller, role)
        return caller

    return check


TheService = Annotated[InspectionService, Depends(_service)]
Viewer = Annotated[Caller, Depends(_needs("viewer"))]
InspectorRole = Annotated[Caller, Depends(_needs("inspector"))]
Admin = Annotated[Caller, Depends(_needs("admin"))]
