"""Sign-in of the person who runs the server: a link with a one-time token, which the browser exchanges for a cookie."""

from __future__ import annotations

import hmac
import secrets
import threading
import time

from refdiff.memory.records.api_keys import ApiKey

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
