"""People prove who they are to an OpenID Connect provider: authorization code flow with PKCE, state and nonce.

The provider is found by its issuer (discovery). What counts of its answer is the ID token: signed by a key of the provider,
for this client, for the sign-in that this browser began. Needs the extra `oidc` (Authlib).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from refdiff.memory.kinds import ROLES, Role
from refdiff.server.extras import require_extra
from refdiff.server.settings import ConfigurationError, ServerSettings
from refdiff.server.sockets import is_loopback
from refdiff.server.web.errors import Refused

T = TypeVar("T")
log = logging.getLogger(__name__)

ROLE_NAMES: Mapping[str, Role] = {f"refdiff-{role}": role for role in ROLES}  # without REFDIFF_OIDC_ROLES
_ANSWER_S = 10.0  # longest wait for the provider to answer, to the last byte
_ANSWER_BYTES = 1_000_000
_KEPT_S = 3600.0  # how long what the provider says of itself is believed; unknown keys are looked up at once
_PAUSE_S = 3.0  # after it did not answer: those who ask meanwhile do not wait for it one after the other
_CLOCKS_DIFFER_S = 60
# asymmetric alone: with an HMAC whoever knows the client's secret could sign
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
_AGAIN = "open the review page and sign in again"


@dataclass(frozen=True)
class Pending:
    """A sign-in that a browser began; the browser keeps it until the provider sends it back. URL-safe random texts.

    replaces: the text of the sign-in that the browser had. Its own cookie does not come back with the browser: it is strict.
    """

    state: str
    nonce: str
    verifier: str
    replaces: str = ""

    def __str__(self) -> str:
        return ".".join(filter(None, (self.state, self.nonce, self.verifier, self.replaces)))

    @classmethod
    def of(cls, cookie: str) -> Pending | None:
        """None for what `str` did not make."""
        parts = cookie.split(".")
        return cls(*parts) if len(parts) in (3, 4) and all(parts) else None

    def is_meant_by(self, answer: Mapping[str, str]) -> bool:
        """Whether the provider answers this sign-in. answer: the query with which the browser came back."""
        return hmac.compare_digest(self.state.encode(), answer.get("state", "").encode("utf-8", "replace"))


@dataclass(frozen=True)
class Person:
    """Who signed in. who: issuer and subject. names: see `SignInStore.begin`. role: None for who may not come in."""

    who: str
    names: tuple[str, ...]
    role: Role | None


@dataclass(frozen=True)
class _Told:
    """What the provider says of itself, and its public keys."""

    metadata: dict[str, Any]
    keys: Any  # joserfc's KeySet
    at: float  # monotonic


class IdentityProvider:
    """One provider; safe to share between threads. What it says of itself is asked when it is first needed."""

    def __init__(self, settings: ServerSettings) -> None:
        """Raises ConfigurationError where settings are missing or unsafe, UnavailableError without the extra `oidc`."""
        issuer, client = settings.oidc_issuer, settings.oidc_client_id
        if not issuer or not client:
            missing = "REFDIFF_OIDC_CLIENT_ID" if issuer else "REFDIFF_OIDC_ISSUER"
            raise ConfigurationError(
                f"setting {missing} is missing: sign-in needs the provider's issuer and a client id"
            )
        if not is_secure(issuer):
            raise ConfigurationError(f"setting REFDIFF_OIDC_ISSUER={issuer}: the address must begin with https://")
        require_extra("oidc")
        self.issuer, self._client_id = issuer, client
        self._secret = settings.oidc_client_secret.get_secret_value() if settings.oidc_client_secret else None
        self._roles = settings.oidc_roles or ROLE_NAMES
        self._role_claim, self._name_claim = settings.oidc_role_claim, settings.oidc_name_claim
        self._scope = settings.oidc_scope
        self._mutex = threading.Lock()
        self._told: _Told | None = None
        self._failed: tuple[str, float] | None = None  # what to say, and since when

    def begin(self, redirect_uri: str) -> tuple[str, Pending]:
        """Where to send the browser, and what it must bring back. Raises Refused 503 where the provider does not answer."""
        from authlib.oauth2.client import OAuth2Client

        endpoint = self._endpoint(self.told().metadata, "authorization_endpoint")
        pending = Pending(token_urlsafe(32), token_urlsafe(32), token_urlsafe(64))
        client: Any = OAuth2Client
        url, _ = client(
            None, self._client_id, scope=self._scope, redirect_uri=redirect_uri, code_challenge_method="S256"
        ).create_authorization_url(endpoint, state=pending.state, nonce=pending.nonce, code_verifier=pending.verifier)
        return str(url), pending

    def finish(self, pending: Pending | None, answer: Mapping[str, str], redirect_uri: str) -> Person:
        """The person that the provider's answer names.

        answer: the query with which the browser came back. redirect_uri: as it was for `begin`. Raises Refused: 400 for an
        answer to no sign-in of this browser, 401 where the provider or its token proves nothing, 503 where the provider does
        not answer or a clock is wrong.
        """
        if pending is None or not pending.is_meant_by(answer):
            raise Refused(400, f"this answer belongs to no sign-in that this browser has open; {_AGAIN}")
        if answer.get("iss", self.issuer) != self.issuer:
            raise Refused(400, f"this answer is another provider's; {_AGAIN}")
        if "code" not in answer:
            said = answer.get("error", "")
            why = said if said.isascii() and said.replace("_", "").isalnum() and len(said) < 40 else "no code came back"
            raise Refused(401, f"the sign-in provider has not signed you in ({why}); {_AGAIN}")
        told = self.told()
        token = self._asked(self._fetch_token(told.metadata, redirect_uri, answer["code"], pending.verifier))
        claims = self._checked(token, pending.nonce)
        return self._person(claims, self._userinfo(told.metadata, token, claims))

    def without_role(self, person: Person) -> Refused:
        """The refusal of a person whose role is None."""
        wanted = ", ".join(sorted(self._roles))
        return Refused(
            403,
            f"{person.names[0]} has no role here: ask your administrator for one of {wanted} (claim {self._role_claim})",
        )

    def sign_out_url(self) -> str | None:
        """Where the provider ends its own session; None if it does not say, or does not answer."""
        try:
            endpoint = (self._told or self.told()).metadata.get("end_session_endpoint")
            if isinstance(endpoint, str) and is_secure(endpoint):
                return str(httpx2.URL(endpoint).copy_merge_params({"client_id": self._client_id}))
        except (Refused, httpx2.InvalidURL) as e:
            log.warning("the provider's own session goes on after a sign-out: %s", e)
        return None

    def told(self, anew: bool = False) -> _Told:
        """What the provider says of itself. anew: ask it now. Raises Refused 503."""
        with self._mutex:
            now = time.monotonic()
            if self._told is None or anew or now - self._told.at > _KEPT_S:
                if self._failed is not None and now - self._failed[1] < _PAUSE_S:
                    raise Refused(503, self._failed[0], {"Retry-After": "10"})
                try:
                    self._told, self._failed = self._discover(), None
                except Refused as e:
                    self._failed = str(e.detail), time.monotonic()
                    raise
            return self._told

    # -- inside

    def _asked(self, answer: Coroutine[Any, Any, T]) -> T:
        """What the provider answers within `_ANSWER_S`. Raises Refused 503."""

        async def within() -> T:
            async with asyncio.timeout(_ANSWER_S):
                return await answer

        try:
            return asyncio.run(within())
        except TimeoutError as e:
            raise self._away(e, f"it did not answer within {_ANSWER_S:.0f} s") from e
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, RecursionError) as e:  # the last: JSON of deep lists
            raise self._away(e) from e

    def _discover(self) -> _Told:
        from joserfc.jwk import KeySet

        metadata, said = self._asked(self._metadata_and_keys())
        try:
            usable = [k for k in said["keys"] if k.get("kty") in ("RSA", "EC", "OKP") and k.get("use", "sig") == "sig"]
            return _Told(metadata, KeySet.import_key_set({"keys": usable}), time.monotonic())
        except Exception as e:
            raise self._away(e, "its keys cannot be read") from e

    async def _metadata_and_keys(self) -> tuple[dict[str, Any], dict[str, Any]]:
        async with httpx2.AsyncClient(**_BOUNDS) as client:
            metadata = await self._json(client, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if metadata.get("issuer") != self.issuer:
                said = str(metadata.get("issuer"))[:200]
                raise Refused(
                    503, f"the sign-in provider calls itself {said!r}: set REFDIFF_OIDC_ISSUER to that, if it is meant"
                )
            return metadata, await self._json(client, self._endpoint(metadata, "jwks_uri"))

    async def _json(self, client: httpx2.AsyncClient, url: str, **headers: str) -> dict[str, Any]:
        answer = await client.get(url, headers=headers)
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict):
            raise ValueError(f"{url} is no JSON object")
        return found

    def _endpoint(self, metadata: Mapping[str, Any], name: str) -> str:
        url = metadata.get(name)
        if not isinstance(url, str) or not is_secure(url):
            raise self._away(ValueError(f"{name} {url!r} is no https address"), f"it names no safe {name}")
        return url

    def _away(self, error: Exception, why: str = "it does not answer") -> Refused:
        log.warning("sign-in provider %s: %s (%s: %s)", self.issuer, why, type(error).__name__, error)
        host = urlsplit(self.issuer).netloc
        return Refused(
            503, f"the sign-in provider {host} cannot be used now: {why}; try again later, or use an API key",
            {"Retry-After": "10"},
        )  # fmt: skip

    async def _fetch_token(
        self, metadata: Mapping[str, Any], redirect_uri: str, code: str, verifier: str
    ) -> dict[str, Any]:
        from authlib.integrations.base_client import OAuthError
        from authlib.integrations.httpx_client import AsyncOAuth2Client

        endpoint = self._endpoint(metadata, "token_endpoint")
        known = metadata.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        by_post = self._secret and "client_secret_basic" not in known and "client_secret_post" in known
        client: Any = AsyncOAuth2Client
        try:
            async with client(
                self._client_id, self._secret, "client_secret_post" if by_post else None, redirect_uri=redirect_uri,
                **_BOUNDS,
            ) as asking:  # fmt: skip
                return dict(
                    await asking.fetch_token(endpoint, grant_type="authorization_code", code=code,
                                             code_verifier=verifier, redirect_uri=redirect_uri)
                )  # fmt: skip
        except OAuthError as e:
            if e.error in ("invalid_client", "unauthorized_client"):
                raise self._away(e, "it does not accept REFDIFF_OIDC_CLIENT_ID and REFDIFF_OIDC_CLIENT_SECRET") from e
            log.warning("sign-in refused by the provider's token endpoint: %s", e.error)
            raise Refused(401, f"the sign-in provider does not accept this answer any more; {_AGAIN}") from e

    def _checked(self, token: Mapping[str, Any], nonce: str) -> dict[str, Any]:
        """The claims of the ID token."""
        from authlib.oidc.core import CodeIDToken
        from joserfc.errors import JoseError

        wanted = {
            "iss": {"essential": True, "value": self.issuer},
            "aud": {"essential": True, "value": self._client_id},
        }
        about = {"nonce": nonce, "client_id": self._client_id, "access_token": token.get("access_token")}
        try:
            signed = self._signed(str(token.get("id_token", "")))
            claims: Any = CodeIDToken(signed.claims, signed.header, wanted, about)  # type: ignore[arg-type]
            _check_clock(claims)
            claims.validate(leeway=_CLOCKS_DIFFER_S)
        except (JoseError, ValueError, TypeError) as e:
            log.warning("sign-in refused: the ID token does not hold (%s: %s)", type(e).__name__, e)
            raise Refused(401, f"the sign-in provider's answer does not hold ({e}); {_AGAIN}") from e
        return dict(claims)

    def _signed(self, id_token: str) -> Any:
        from joserfc import jwt
        from joserfc.errors import BadSignatureError, InvalidKeyIdError
        from joserfc.jws import JWSRegistry

        registry = JWSRegistry(algorithms=list(_ALGORITHMS), strict_check_header=False)
        told = self.told()
        try:
            return jwt.decode(id_token, told.keys, registry=registry)
        except (InvalidKeyIdError, BadSignatureError):
            if time.monotonic() - told.at < 1:
                raise
            return jwt.decode(id_token, self.told(anew=True).keys, registry=registry)  # it may have new keys

    def _userinfo(
        self, metadata: Mapping[str, Any], token: Mapping[str, Any], claims: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the provider tells of the person elsewhere, where the ID token lacks role or name; else {}.

        Raises Refused 503 where it does not tell, and the role is lacking: a name has others to take its place.
        """
        has_role, has_name = (_claim(claims, name) is not None for name in (self._role_claim, self._name_claim))
        if "userinfo_endpoint" not in metadata or (has_role and has_name):
            return {}

        async def found() -> dict[str, Any]:
            async with httpx2.AsyncClient(**_BOUNDS) as client:
                bearer = f"Bearer {token.get('access_token')}"
                return await self._json(client, self._endpoint(metadata, "userinfo_endpoint"), authorization=bearer)

        try:
            more = self._asked(found())
        except Refused:
            if not has_role:
                raise
            return {}
        return more if more.get("sub") == claims["sub"] else {}

    def _person(self, claims: Mapping[str, Any], more: Mapping[str, Any]) -> Person:
        """more: what counts where the ID token's claims lack something."""

        def said(name: str) -> Any:
            found = _claim(claims, name)
            return _claim(more, name) if found is None else found

        subject = str(claims["sub"])
        names = (*map(said, (self._name_claim, "preferred_username", "email")), subject)
        groups = said(self._role_claim)
        groups = [groups] if isinstance(groups, str) else groups
        # whether an object's keys or numbers were meant as roles, nobody knows
        listed = isinstance(groups, list) and all(isinstance(group, str) for group in groups)
        roles = [self._roles[group] for group in groups if group in self._roles] if listed else []
        if not roles:
            log.warning("sign-in refused: subject %s has none of the roles in REFDIFF_OIDC_ROLES", subject)
        return Person(
            f"{self.issuer} {subject}", tuple(name for name in names if isinstance(name, str) and name),
            max(roles, key=ROLES.index) if roles else None,
        )  # fmt: skip


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: Any, request: httpx2.Request) -> None:
        self._stream, self._request = stream, request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._stream:
            if (size := size + len(part)) > _ANSWER_BYTES:
                raise httpx2.ReadError(f"the answer is longer than {_ANSWER_BYTES} bytes", request=self._request)
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _bound(answer: httpx2.Response) -> None:
    if answer.headers.get("content-encoding", "identity") != "identity":  # a small one may become large
        raise httpx2.DecodingError("the answer is compressed, which was not asked for", request=answer.request)
    answer.stream = _Bounded(answer.stream, answer.request)


_BOUNDS: dict[str, Any] = {
    "timeout": _ANSWER_S, "headers": {"Accept-Encoding": "identity"}, "event_hooks": {"response": [_bound]},
}  # fmt: skip


def is_secure(url: str) -> bool:
    """https, or this machine."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    host = parts.hostname or ""
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)))


def _check_clock(claims: Mapping[str, Any]) -> None:
    """A token is made in this moment. Raises Refused."""
    now, made, ends = time.time(), claims.get("iat"), claims.get("exp")
    if isinstance(made, int | float) and made > now + _CLOCKS_DIFFER_S:
        log.warning("sign-in refused: the ID token is dated %.0f s in the future", made - now)
        raise Refused(
            503, f"the sign-in provider's clock is {made - now:.0f} s ahead of this server's: set the clocks (NTP)"
        )
    if isinstance(ends, int | float) and ends < now - _CLOCKS_DIFFER_S:
        log.warning("sign-in refused: the ID token expired %.0f s ago", now - ends)
        said = f"the sign-in provider's answer expired {now - ends:.0f} s ago: {_AGAIN}"
        raise Refused(401, f"{said}; if it happens again, set this server's clock (NTP)")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the way to it: `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
