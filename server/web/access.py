"""Authentication: API keys with roles, people who signed in, and the browser of the person who runs the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from refdiff.agent.service import InspectionService
from refdiff.memory.kinds import OPERATOR_FILE, ROLES, Role
from refdiff.memory.records.api_keys import KeyStore
from refdiff.server.sockets import is_loopback, proxy_header
from refdiff.server.web.errors import Refused
from refdiff.server.web.sign_in import OperatorSignIn, PeopleSignIn

WRONG_KEYS_PER_MINUTE = 20
SIGN_IN_PATH = "/oidc/login"
_bearer = HTTPBearer(auto_error=False, description="An API key (`refdiff keys add`)")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key (`refdiff keys add`)")


@dataclass(frozen=True)
class Caller:
    """The author of a request. name: appears in reports and dispositions. key_id: of the key or the sign-in; None on a
    server without keys."""

    name: str
    role: Role
    key_id: str | None

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


class Access:
    """Who may connect: with an API key; people who signed in (see PeopleSignIn); on loopback also the operator's browser
    (see OperatorSignIn).

    without_keys: on loopback everybody may do everything, whatever key they send. That door closes as soon as there is an
    API key, and to any request that came through a proxy: a proxy on this machine makes every external request look local.
    """

    def __init__(
        self,
        keys: KeyStore,
        *,
        loopback: bool,
        user: str,
        sign_in: OperatorSignIn | None = None,
        without_keys: bool = False,
        hosts: tuple[str, ...] = (),
        people: PeopleSignIn | None = None,
    ) -> None:
        """loopback: the server listens on a loopback address. user: name of a caller without a key. hosts: other names of
        the server."""
        self.keys, self.user, self.sign_in, self.people = keys, user, sign_in, people
        self.open = loopback and without_keys
        self._loopback = loopback
        public = urlsplit(people.public_url).hostname if people and people.public_url else None
        self._hosts = frozenset(h.lower() for h in (*hosts, *([public] if public else ())))
        self._wrong = MovingWindowRateLimiter(MemoryStorage())

    def identify(self, headers: Headers, client: str, key: str | None, port: int = 0) -> Caller:
        """port: of this server, which names its cookie. Raises Refused 401 (no key, unknown key) or 429 (too many)."""
        if key is not None and (found := self.keys.check(key)) is not None:
            return Caller(found.name, found.role, found.key_id)
        proxy = proxy_header(headers)
        local = self._loopback and proxy is None and is_loopback(client) and host_is_loopback(headers)
        if self.open and local and not self.keys.any_good():
            return Caller(self.user, "admin", None)
        if key is not None:
            self.count_wrong(client)
            raise self._unauthenticated("this API key is unknown, revoked or expired")
        cookies = cookie_parser(headers.get("cookie", ""))
        came_back = self.people is not None and self.people.cookie(port) in cookies
        if self.people and came_back and (known := self.people.who(cookies, port)) is not None:
            return Caller(known.name, known.role, known.key_id)
        if local and self.sign_in and self.sign_in.holds(cookies.get(cookie_name(port), "")):
            operator = self.keys.check(self.sign_in.text)  # None once it is revoked
            if operator is not None:
                return Caller(operator.name, operator.role, operator.key_id)
        if came_back:
            raise self._unauthenticated("your sign-in has ended; sign in again")
        raise self._unauthenticated(self._way_in(proxy))

    def count_wrong(self, client: str) -> None:
        """Count a wrong key or token; nothing else, as all callers behind a proxy share one address. Raises Refused."""
        if not self._wrong.hit(RateLimitItemPerMinute(WRONG_KEYS_PER_MINUTE), client):
            raise Refused(429, "too many wrong API keys from this address; wait a minute", {"Retry-After": "60"})

    def has_cookie(self, headers: Headers, port: int) -> bool:
        """Whether the browser says that somebody signed in with it."""
        return self.people is not None and self.people.cookie(port) in cookie_parser(headers.get("cookie", ""))

    def is_cross_site(self, headers: Headers) -> bool:
        """Whether a browser sent this for a page of another site; programs send neither header."""
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return True
        if (origin := headers.get("origin")) is None:
            return False
        ours = {headers.get("host", "").lower()}
        if self.people and self.people.public_url:  # a proxy may call by another name
            ours.add(urlsplit(self.people.public_url).netloc.lower())
        return urlsplit(origin).netloc.lower() not in ours

    def _unauthenticated(self, message: str) -> Refused:
        more = {"sign_in": f"{self.people.public_url or ''}{SIGN_IN_PATH}"} if self.people else {}
        return Refused(401, message, {"WWW-Authenticate": "Bearer"}, **more)

    def _way_in(self, proxy: str | None) -> str:
        if self.people is not None:
            return "sign in, or send an API key: Authorization: Bearer KEY (create one with `refdiff keys add`)"
        if proxy is not None and (self.open or self.sign_in):
            return f"this request came through a proxy (header {proxy[:40]}) and needs an API key: Authorization: Bearer KEY"
        if self.sign_in is not None:
            return (
                "an API key is required: open the link that `refdiff serve` printed when it started, or send "
                f"Authorization: Bearer KEY, with the key that it printed ({OPERATOR_FILE} in its home folder holds it)"
            )
        return "an API key is required: Authorization: Bearer KEY (create one with `refdiff keys add`)"

    def host_allowed(self, headers: Headers) -> bool:
        """Whether the Host header is allowed; on loopback other names than localhost would permit DNS rebinding."""
        return not self._loopback or host_is_loopback(headers) or host_name(headers) in self._hosts


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


def cookie_name(port: int) -> str:
    """The name of the cookie: browsers send the cookies of one port to all ports of a host."""
    return f"refdiff-{port}"


def server_port(request: Request) -> int:
    """The port that this server listens on, whatever the Host header says."""
    server = request.scope.get("server")
    return int(server[1] or 0) if server else 0


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
        raise Refused(403, f"{caller.name!r} has the role {caller.role}; this needs {role}")


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
