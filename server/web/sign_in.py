"""Sign-in by cookie: of the person who runs the server, by a one-time link, and of people, by an identity provider."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import timedelta

from refdiff.memory.records.api_keys import ApiKey
from refdiff.memory.records.sign_ins import SignInStore
from refdiff.server.web.identity_provider import IdentityProvider, Pending

KEPT_S = 7 * 24 * 3600  # how long a browser stays signed in


class OperatorSignIn:
    """One server's sign-in with the operator's key. Cookies hold as long as the key does, also after a restart.

    The token stands in the fragment of the link, so it reaches no log, proxy or other site.
    """

    def __init__(self, key: ApiKey, text: str) -> None:
        """text: of the key."""
        self.key, self.text = key, text
        self._token: str | None = secrets.token_urlsafe(32)
        self._mutex = threading.Lock()

    def link(self, address: str) -> str:
        """The link to the review page that signs in once. address: URL of the server."""
        return f"{address}/#/login/{self._token or 'used'}"

    def exchange(self, token: str) -> str | None:
        """The value of the cookie for the token of the link, once; None for any other."""
        with self._mutex:
            if self._token is None or not hmac.compare_digest(token.encode("utf-8", "replace"), self._token.encode()):
                return None
            self._token = None
        said = f"{int(time.time()) + KEPT_S}.{secrets.token_urlsafe(16)}"
        return f"{said}.{self._signature(said)}"

    def holds(self, cookie: str) -> bool:
        """Whether the cookie came from `exchange`, of this start or an earlier one, and is not too old."""
        said, _, signature = cookie.rpartition(".")
        until = said.partition(".")[0]
        same = hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(said).encode())
        return same and until.isdecimal() and int(until) > time.time()

    def _signature(self, said: str) -> str:
        return hmac.new(self.text.encode(), said.encode("utf-8", "replace"), "sha256").hexdigest()


class PeopleSignIn:
    """Sign-in by an identity provider: what the provider says of a person becomes a sign-in that every server knows.

    public_url: where browsers reach this server; None: at its own address, on loopback. secure: whether that is https; then
    cookies are of this host alone (`__Host-`).
    """

    def __init__(
        self,
        provider: IdentityProvider,
        sign_ins: SignInStore,
        public_url: str | None,
        lasts: timedelta,
        not_named: Collection[str] = (),
    ) -> None:
        """lasts: how long somebody stays signed in. not_named: see `SignInStore.begin`."""
        self.provider, self._sign_ins, self._lasts, self._not_named = provider, sign_ins, lasts, not_named
        self.public_url = public_url.rstrip("/") if public_url else None
        self.secure = bool(self.public_url and self.public_url.startswith("https:"))

    @property
    def kept_s(self) -> int:
        return round(self._lasts.total_seconds())

    def cookie(self, port: int) -> str:
        """Name of the cookie of somebody who signed in. port: of this server."""
        return "__Host-refdiff" if self.secure else f"refdiff-person-{port}"

    def pending_cookie(self, port: int) -> str:
        """Name of the cookie of somebody who is at the provider."""
        return "__Host-refdiff-pending" if self.secure else f"refdiff-pending-{port}"

    def who(self, cookies: Mapping[str, str], port: int) -> ApiKey | None:
        """The sign-in that a browser's cookies belong to, if it is valid."""
        return self._sign_ins.check(cookies.get(self.cookie(port), ""))

    def begin(self, redirect_uri: str, cookie: str) -> tuple[str, Pending]:
        """See `IdentityProvider.begin`. cookie: the value that the browser has now; "" without one."""
        url, pending = self.provider.begin(redirect_uri)
        return url, replace(pending, replaces=cookie if self._sign_ins.check(cookie) is not None else "")

    def finish(self, pending: Pending | None, answer: Mapping[str, str], redirect_uri: str) -> str:
        """The value of the cookie for the person that the provider names.

        Raises InputError; Refused as `IdentityProvider.finish`, and 403 for a person without a role: the sign-ins
        that there are end.
        """
        person = self.provider.finish(pending, answer, redirect_uri)
        if person.role is None:
            self._sign_ins.end_all(person.who)
            raise self.provider.without_role(person)
        return self._sign_ins.begin(
            person.who, person.names, person.role, self._lasts,
            instead_of=pending.replaces if pending else "", not_named=self._not_named,
        )[1]  # fmt: skip
