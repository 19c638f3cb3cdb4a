"""A real identity provider on this machine (oidc-provider-mock: Flask and Authlib), asked over HTTP.

It checks PKCE, which the package leaves out, and can be made to answer what an honest provider does not.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import flask
import httpx2
import oidc_provider_mock
from joserfc import jwt
from joserfc.jwk import RSAKey
from own_http import serving
from werkzeug.serving import make_server

Claims = dict[str, Any]


class Provider:
    """answers: makes of the claims of an ID token those that are signed. signs: with what, instead of its key. people:
    claims by subject."""

    def __init__(self, people: dict[str, Claims], port: int = 0, **options: Any) -> None:
        users = [oidc_provider_mock.User(sub=sub, claims=claims) for sub, claims in people.items()]
        self.app = oidc_provider_mock.app(user_claims=users, **options)
        self.answers: Callable[[Claims], Claims] = lambda claims: claims
        self.signs: Callable[[Claims, RSAKey], str] = lambda claims, key: jwt.encode(
            {"alg": "RS256", "kid": key.kid}, claims, key
        )
        self.asked: list[str] = []  # paths
        self._challenges: dict[str, str] = {}
        self.app.before_request(self._check_verifier)
        self.app.after_request(self._answered)
        self._server = make_server("127.0.0.1", port, self.app, threaded=True)
        self.port = self._server.server_port
        self.issuer = f"http://127.0.0.1:{self.port}"

    def _check_verifier(self) -> Any:
        self.asked.append(flask.request.path)
        if flask.request.path != "/oauth2/token":
            return None
        verifier, code = flask.request.form["code_verifier"], flask.request.form["code"]
        digest = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")
        return None if self._challenges.get(code, digest) == digest else ({"error": "invalid_grant"}, 400)

    def _answered(self, response: flask.Response) -> flask.Response:
        if flask.request.path == "/oauth2/authorize" and "location" in response.headers:
            assert flask.request.args["code_challenge_method"] == "S256"
            sent = parse_qs(urlsplit(response.headers["location"]).query)
            for code in sent.get("code", ()):
                self._challenges[code] = flask.request.args["code_challenge"]
        if flask.request.path == "/oauth2/token" and response.status_code == 200:
            token = response.get_json()
            payload = token["id_token"].split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
            key = RSAKey.import_key(flask.g.oidc_provider_mock_storage.jwk.as_dict(is_private=True))
            token["id_token"] = self.signs(self.answers(claims), key)
            response.set_data(json.dumps(token))
        return response

    @contextmanager
    def running(self) -> Iterator[Provider]:
        with serving(self._server):
            yield self


def authorized(url: str, sub: str) -> str:
    """Where the provider sends the browser back, once the person has signed in there. url: where it was sent to."""
    answer = httpx2.post(url, data={"sub": sub})
    assert answer.status_code == 302, answer.text
    return str(answer.headers["location"])
