"""People prove who they are to an OpenID Connect provider: authorization code flow with PKCE, state and nonce.

The provider is found by its issuer (discovery). What counts of its answer is the ID token: signed by a key of the provider,
for this client, for the sign-in that this browser began. Needs the extra `oidc` (Authlib).
"""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2

from refdiff.memory.kinds import ROLES, Role
from refdiff.server.extras import require_extra
from refdiff.server.settings import ConfigurationError, ServerSettings
from refdiff.server.sockets import is_loopback
from refdiff.server.web.errors import Refused

log = logging.getLogger(__name__)

ROLE_NAMES: Mapping[str, Role] = {f"refdiff-{role}": role for role in ROLES}  # without REFDIFF_OIDC_ROLES
_ANSWER_S = 10.0  # longest wait for one answer of the provider
_KEPT_S = 3600.0  # how long what the provider says of itself is believed; unknown keys are looked up at once
_PAUSE_S = 3.0  # after it did not answer: those who ask meanwhile do not wait for it one after the other
_CLOCKS_DIFFER_S = 60
# asymmetric alone: with an HMAC whoever knows the client's secret could sign
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519", "EdDSA")
_AGAIN = "open the review page and sign in again"


@dataclass(frozen=True)
class Pending:
    """A sign-in that a browser began; the browser keeps it until the provider sends it back. URL-safe random texts."""

    state: str
    nonce: str
    verifier: str

    def __str__(self) -> str:
        return f"{self.state}.{self.nonce}.{self.verifier}"

    @classmethod
    def of(cls, cookie: str) -> Pending | None:
        """None for what `str` did not make."""
        parts = cookie.split(".")
        return cls(*parts) if len(parts) == 3 and all(parts) else None


@dataclass(frozen=True)
class Person:
    """Who signed in. who: issuer and subject. names: see `SignInStore.begin`."""

    who: str
    names: tuple[str, ...]
    role: Role


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
        if not _is_secure(issuer):
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
        endpoint = self._endpoint(self.told().metadata, "authorization_endpoint")
        pending = Pending(token_urlsafe(32), token_urlsafe(32), token_urlsafe(64))
        with self._client(redirect_uri) as client:
            url, _ = client.create_authorization_url(
                endpoint, state=pending.state, nonce=pending.nonce, code_verifier=pending.verifier
            )
        return url, pending

    def finish(self, pending: Pending | None, answer: Mapping[str, str], redirect_uri: str) -> Person:
        """The person that the provider's answer names.

        answer: the query with which the browser came back. redirect_uri: as it was for `begin`. Raises Refused: 400 for an
        answer to no sign-in of this browser, 401 where the provider or its token proves nothing, 403 for a person without a
        role, 503 where the provider does not answer or a clock is wrong.
        """
        if pending is None or not hmac.compare_digest(pending.state.encode(), answer.get("state", "").encode()):
            raise Refused(400, f"this answer belongs to no sign-in that this browser has open; {_AGAIN}")
        if answer.get("iss", self.issuer) != self.issuer:
            raise Refused(400, f"this answer is another provider's; {_AGAIN}")
        if "code" not in answer:
            said = answer.get("error", "")
            why = said if said.isascii() and said.replace("_", "").isalnum() and len(said) < 40 else "no code came back"
            raise Refused(401, f"the sign-in provider has not signed you in ({why}); {_AGAIN}")
        told = self.told()
        with self._client(redirect_uri, told.metadata) as client:
            token = self._fetch_token(client, told.metadata, answer["code"], pending.verifier)
            claims = self._checked(token, pending.nonce)
            claims = self._with_userinfo(client, told.metadata, claims)
        return self._person(claims)

    def sign_out_url(self) -> str | None:
        """Where the provider ends its own session; None if it does not say, or was not asked yet."""
        endpoint = self._told.metadata.get("end_session_endpoint") if self._told else None
        return f"{endpoint}?{urlencode({'client_id': self._client_id})}" if endpoint and _is_secure(endpoint) else None

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

    def _discover(self) -> _Told:
        from joserfc.jwk import KeySet

        with httpx2.Client(timeout=_ANSWER_S) as client:
            metadata = self._json(client, f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if metadata.get("issuer") != self.issuer:
                said = str(metadata.get("issuer"))[:200]
                raise Refused(
                    503, f"the sign-in provider calls itself {said!r}: set REFDIFF_OIDC_ISSUER to that, if it is meant"
                )
            keys = self._json(client, self._endpoint(metadata, "jwks_uri")).get("keys")
        usable = [k for k in keys or () if k.get("kty") in ("RSA", "EC", "OKP") and k.get("use", "sig") == "sig"]
        try:
            return _Told(metadata, KeySet.import_key_set({"keys": usable}), time.monotonic())
        except Exception as e:
            raise self._away(e, "its keys cannot be read") from e

    def _json(self, client: httpx2.Client, url: str) -> dict[str, Any]:
        try:
            answer = client.get(url)
            answer.raise_for_status()
            found = answer.json()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
            raise self._away(e) from e
        if not isinstance(found, dict):
            raise self._away(TypeError(f"{url} is no JSON object"))
        return found

    def _endpoint(self, metadata: dict[str, Any], name: str) -> str:
        url = metadata.get(name)
        if not isinstance(url, str) or not _is_secure(url):
            raise self._away(ValueError(f"{name} {url!r} is no https address"), f"it names no safe {name}")
        return url

    def _away(self, error: Exception, why: str = "it does not answer") -> Refused:
        log.warning("sign-in provider %s: %s (%s: %s)", self.issuer, why, type(error).__name__, error)
        host = urlsplit(self.issuer).netloc
        return Refused(
            503, f"the sign-in provider {host} cannot be used now: {why}; try again later, or use an API key",
            {"Retry-After": "10"},
        )  # fmt: skip

    def _client(self, redirect_uri: str, metadata: Mapping[str, Any] | None = None) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client

        known = (metadata or {}).get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        by_post = self._secret and "client_secret_basic" not in known and "client_secret_post" in known
        client: Any = OAuth2Client
        return client(
            self._client_id, self._secret, "client_secret_post" if by_post else None, scope=self._scope,
            redirect_uri=redirect_uri, code_challenge_method="S256", timeout=_ANSWER_S, leeway=0,
        )  # fmt: skip

    def _fetch_token(self, client: Any, metadata: dict[str, Any], code: str, verifier: str) -> dict[str, Any]:
        from authlib.integrations.base_client import OAuthError

        endpoint = self._endpoint(metadata, "token_endpoint")
        try:
            return dict(
                client.fetch_token(endpoint, grant_type="authorization_code", code=code, code_verifier=verifier,
                                   redirect_uri=client.redirect_uri)
            )  # fmt: skip
        except OAuthError as e:
            if e.error in ("invalid_client", "unauthorized_client"):
                raise self._away(e, "it does not accept REFDIFF_OIDC_CLIENT_ID and REFDIFF_OIDC_CLIENT_SECRET") from e
            log.warning("sign-in refused by the provider's token endpoint: %s", e.error)
            raise Refused(401, f"the sign-in provider does not accept this answer any more; {_AGAIN}") from e
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as e:
            raise self._away(e) from e

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

    def _with_userinfo(self, client: Any, metadata: dict[str, Any], claims: dict[str, Any]) -> dict[str, Any]:
        """With what the provider tells of the person elsewhere, where the ID token lacks something."""
        wanted = (self._role_claim, self._name_claim)
        if "userinfo_endpoint" not in metadata or all(_claim(claims, name) is not None for name in wanted):
            return claims
        found = self._json(client, self._endpoint(metadata, "userinfo_endpoint"))
        return claims if found.get("sub") != claims["sub"] else found | claims

    def _person(self, claims: dict[str, Any]) -> Person:
        subject = str(claims["sub"])
        names = (_claim(claims, self._name_claim), *(claims.get(n) for n in ("preferred_username", "email")), subject)
        texts = tuple(name for name in names if isinstance(name, str) and name)
        found = _claim(claims, self._role_claim)
        groups = [found] if isinstance(found, str) else [g for g in found or () if isinstance(g, str)]
        roles = [self._roles[group] for group in groups if group in self._roles]
        if not roles:
            log.warning("sign-in refused: subject %s has none of the roles in REFDIFF_OIDC_ROLES", subject)
            raise Refused(
                403, f"{texts[0]} has no role here: ask your administrator for one of {', '.join(sorted(self._roles))} "
                f"(claim {self._role_claim})",
            )  # fmt: skip
        return Person(f"{self.issuer} {subject}", texts, max(roles, key=ROLES.index))


def _is_secure(url: str) -> bool:
    """https, or this machine."""
    parts = urlsplit(url)
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
