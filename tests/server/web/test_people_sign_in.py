"""People sign in by an identity provider: a real one over HTTP, honest and not."""

from __future__ import annotations

import base64
import gzip
import hmac
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import flask
import httpx2
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from refdiff.memory.kinds import Role
from refdiff.memory.records.api_keys import KeyStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError
from refdiff.server.cli.installation import check_sign_in
from refdiff.server.settings import ConfigurationError, ServerSettings, load_settings
from refdiff.server.sockets import check_open_to
from refdiff.server.web import identity_provider
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.errors import Refused
from refdiff.server.web.identity_provider import IdentityProvider
from refdiff.server.web.serve import people_sign_in
from refdiff.server.web.sign_in import PeopleSignIn
from tests.server.conftest import said

from .conftest import Running, start
from .provider import Claims, Provider, authorized

PEOPLE: dict[str, Claims] = {
    "u-1": {"name": "Ann Smith", "preferred_username": "asmith", "roles": ["refdiff-inspector", "other"]},
    "u-2": {"name": "Ann  SMITH", "preferred_username": "asmith2", "roles": ["refdiff-viewer", "refdiff-admin"]},
    "u-3": {"name": "Nobody", "roles": ["other"]},
    "u-4": {"preferred_username": "kc", "realm_access": {"roles": ["qa"]}},
}


def settings_for(provider: Provider, **more: Any) -> ServerSettings:
    known: dict[str, Any] = {"oidc_client_id": "refdiff", "oidc_client_secret": "secret", "rate_per_minute": 0}
    return ServerSettings(oidc_issuer=provider.issuer, **known, **more)


@contextmanager
def serving(
    server: Running,
    settings: ServerSettings,
    public_url: str | None = None,
    lasts: timedelta = timedelta(hours=1),
    hosts: tuple[str, ...] = (),
) -> Iterator[httpx2.Client]:
    people = PeopleSignIn(IdentityProvider(settings), server.service.stores.sign_ins, public_url, lasts)
    access = Access(server.keys, loopback=True, user="ann", hosts=hosts, people=people)
    running, thread, url = start(create_app(server.service, access, settings))
    with httpx2.Client(base_url=url, timeout=90) as client:
        yield client
    running.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(PEOPLE).running() as running:
        yield running


@pytest.fixture(scope="module")
def signing_in(server: Running, provider: Provider) -> Iterator[str]:
    """A server that people sign in to; its address."""
    with serving(server, settings_for(provider)) as client:
        yield str(client.base_url)


@pytest.fixture
def client(signing_in: str) -> Iterator[httpx2.Client]:
    """A browser in which nobody has signed in."""
    with httpx2.Client(base_url=signing_in, timeout=90) as client:
        yield client


@pytest.fixture
def lying(provider: Provider) -> Iterator[Provider]:
    answers, signs = provider.answers, provider.signs
    yield provider
    provider.answers, provider.signs = answers, signs


def cookies(values: dict[str, str]) -> dict[str, str]:
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in values.items())}


def signed_in(client: httpx2.Client, sub: str) -> httpx2.Response:
    """The answer to the browser that comes back from the provider."""
    sent = client.get("/oidc/login")
    assert sent.status_code == 303, sent.text
    return client.get(authorized(sent.headers["location"], sub))


def test_person_signs_in_decides_and_signs_out(server: Running, provider: Provider, client: httpx2.Client) -> None:
    refused = client.get("/v1/me")
    assert (refused.status_code, refused.json()["error"]["sign_in"]) == (401, "/oidc/login")
    back = signed_in(client, "u-1")
    assert (back.status_code, back.headers["location"]) == (303, "/")
    [kept] = [c for c in back.headers.get_list("set-cookie") if "refdiff-person" in c]
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=3600"} <= set(kept.split("; "))
    assert client.get("/v1/me").json() == {"name": "Ann Smith", "role": "inspector", "needs_key": True}
    done = server.inspected("bad.png", "signed in")["inspection_id"]
    decided = client.post(f"/v1/inspections/{done}/disposition", json={"decision": "accept", "reason": "seen"})
    assert (decided.status_code, decided.json()["by"]) == (201, "Ann Smith")
    goldens = client.patch("/v1/goldens/g-000000000000", json={})
    assert (goldens.status_code, "has the role inspector" in goldens.json()["error"]["message"]) == (403, True)
    records = [json.loads(line) for line in server.client.get("/v1/audit/export").text.splitlines()]
    [decision] = [r for r in records if r.get("kind") == "disposition" and r["inspection_id"] == done]
    by_key = decision["facts"]["by_key"]
    [began] = [r for r in records if r.get("kind") == "key" and r["facts"]["subject"] == by_key]
    content = began["content"]
    after = (json.loads(content) if isinstance(content, str) else content)["after"]
    assert (decision["by"], after["name"], after["role"]) == ("Ann Smith", "Ann Smith", "inspector")
    assert after["person"] == f"{provider.issuer} u-1"
    kept = dict(client.cookies)
    ended = client.post("/logout")
    assert (ended.status_code, ended.json()["provider"]) == (
        200,
        f"{provider.issuer}/oauth2/end_session?client_id=refdiff",
    )
    assert client.get("/v1/me").status_code == 401
    again = httpx2.get(f"{client.base_url}/v1/me", headers=cookies(kept))  # the cookie itself is worth nothing any more
    assert (again.status_code, again.json()["error"]["message"]) == (401, "your sign-in has ended; sign in again")
    assert server.service.stores.audit.verify_store().problems == []


def test_sign_in_holds_at_every_server_of_the_home_and_in_no_header(
    server: Running, client: httpx2.Client, provider: Provider
) -> None:
    signed_in(client, "u-1")
    [value] = client.cookies.values()
    with serving(server, settings_for(provider)) as other:
        port = other.base_url.port
        assert other.get("/v1/me", headers=cookies({f"refdiff-person-{port}": value})).json()["name"] == "Ann Smith"
        for header in ({"X-API-Key": value}, {"Authorization": f"Bearer {value}"}):
            assert other.get("/v1/me", headers=header).status_code == 401
        changed = value[:-1] + ("A" if value[-1] != "A" else "B")
        assert other.get("/v1/me", headers=cookies({f"refdiff-person-{port}": changed})).status_code == 401


def test_api_key_works_beside_the_sign_in(server: Running, client: httpx2.Client) -> None:
    signed_in(client, "u-1")
    assert client.get("/v1/me", headers=server.key("viewer", "Vic")).json()["name"] == "Vic"
    assert client.get("/v1/me", headers={"X-API-Key": "wrong"}).status_code == 401  # not the person instead


def other_page(name: str) -> dict[str, str]:
    return {"Sec-Fetch-Site": name, "Origin": "https://evil.example"}


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_page_of_another_site_cannot_act_for_who_is_signed_in(client: httpx2.Client, site: str) -> None:
    signed_in(client, "u-1")
    assert client.post("/v1/inspections", json={"part_id": "1"}, headers=other_page(site)).status_code == 403
    assert client.post("/logout", headers=other_page(site)).status_code == 403


def test_behind_tls_the_cookies_are_of_that_host_alone_and_work_through_the_proxy(
    server: Running, provider: Provider
) -> None:
    public = "https://qa.example.com"
    with serving(server, settings_for(provider), public) as client:
        refused = client.get("/v1/me", headers={"X-Forwarded-For": "10.0.0.9"})
        assert refused.json()["error"]["sign_in"] == f"{public}/oidc/login"
        sent = client.get("/oidc/login")
        [pending] = sent.headers.get_list("set-cookie")
        assert pending.startswith("__Host-refdiff-pending=")
        assert {"Secure", "HttpOnly", "SameSite=lax", "Path=/"} <= set(pending.split("; "))
        back = authorized(sent.headers["location"], "u-1")
        assert back.startswith(f"{public}/oidc/callback?")
        cookie = pending.partition(";")[0]
        answer = client.get(back.removeprefix(public), headers={"Cookie": cookie, "X-Forwarded-For": "10.0.0.9"})
        [kept] = [c for c in answer.headers.get_list("set-cookie") if c.startswith("__Host-refdiff=")]
        assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(kept.split("; "))
        headers = {"Cookie": kept.partition(";")[0], "X-Forwarded-For": "10.0.0.9"}
        assert client.get("/v1/me", headers=headers).json()["name"] == "Ann Smith"
        ours = {"Origin": public, "Sec-Fetch-Site": "same-origin"}  # the proxy calls as 127.0.0.1
        known = client.post("/v1/inspections/x/disposition", json={"decision": "accept"}, headers=headers | ours)
        assert known.status_code not in (401, 403)


FUTURE = 3600
LIES: dict[str, tuple[Callable[[Claims], Claims], int, str]] = {
    "another sign-in's nonce": (lambda c: c | {"nonce": "n"}, 401, "nonce"),
    "no nonce": (lambda c: {k: v for k, v in c.items() if k != "nonce"}, 401, "nonce"),
    "for another client": (lambda c: c | {"aud": "other"}, 401, "aud"),
    "for several, made for another": (lambda c: c | {"aud": ["refdiff", "other"], "azp": "other"}, 401, "azp"),
    "another issuer": (lambda c: c | {"iss": "https://evil.example"}, 401, "iss"),
    "expired": (lambda c: c | {"exp": c["iat"] - 3000, "iat": c["iat"] - 6600}, 401, "expired 3"),
    "no expiry": (lambda c: {k: v for k, v in c.items() if k != "exp"}, 401, "exp"),
    "clock ahead": (lambda c: c | {"iat": c["iat"] + FUTURE, "exp": c["exp"] + FUTURE}, 503, "clock is 3"),
    "nobody": (lambda c: {k: v for k, v in c.items() if k != "sub"}, 401, "sub"),
}


@pytest.mark.parametrize("lie", LIES)
def test_token_that_does_not_hold_is_refused(client: httpx2.Client, lying: Provider, lie: str) -> None:
    lying.answers, status, why = LIES[lie]
    answer = signed_in(client, "u-1")
    assert (answer.status_code, why in answer.text) == (status, True), answer.text
    assert "Sign-in failed" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/v1/me").status_code == 401
    assert not client.cookies


def _unsigned(claims: Claims, key: RSAKey) -> str:
    return jwt.encode({"alg": "none"}, claims, OctKey.import_key("x" * 32), algorithms=["none"])


def _by_secret(claims: Claims, key: RSAKey) -> str:
    """With the public key as a shared secret, which everybody knows."""
    parts = (json.dumps(part).encode() for part in ({"alg": "HS256", "kid": key.kid}, claims))
    said = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    seal = hmac.digest(key.as_pem(private=False), said, "sha256")
    return b".".join((said, base64.urlsafe_b64encode(seal).rstrip(b"="))).decode()


def _by_another(claims: Claims, key: RSAKey) -> str:
    return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, RSAKey.generate_key(2048))


@pytest.mark.parametrize("signs", [_unsigned, _by_secret, _by_another, lambda claims, key: "x.y.z", lambda *_: ""])
def test_token_that_the_provider_did_not_sign_is_refused(
    client: httpx2.Client, lying: Provider, signs: Callable[[Claims, RSAKey], str]
) -> None:
    lying.signs = signs
    assert signed_in(client, "u-1").status_code == 401
    assert client.get("/v1/me").status_code == 401


def test_answer_to_another_sign_in_is_refused(client: httpx2.Client, provider: Provider) -> None:
    """Of another browser, with a state that was made up, and the same answer twice."""
    theirs = authorized(client.get("/oidc/login").headers["location"], "u-2")
    client.cookies.clear()
    assert client.get(theirs).status_code == 400  # of another browser: login CSRF
    ours = authorized(client.get("/oidc/login").headers["location"], "u-1")
    assert client.get(theirs).status_code == 400
    ours = authorized(client.get("/oidc/login").headers["location"], "u-1")
    kept = dict(client.cookies)
    assert client.get(ours.replace("state=", "state=x")).status_code == 400
    assert dict(client.cookies) == kept  # it may be of another tab
    assert client.get(f"{ours}&iss=https://evil.example").status_code == 400
    assert not client.cookies  # one try
    assert client.get(f"{ours}&iss=https://evil.example", headers=cookies(kept)).status_code == 400
    assert client.get(ours, headers=cookies(kept)).status_code == 303
    again = client.get(ours, headers=cookies(kept))
    assert (again.status_code, "does not accept this answer any more" in again.text) == (401, True)


def test_code_that_was_stolen_is_worth_nothing_without_the_verifier(client: httpx2.Client) -> None:
    ours = authorized(client.get("/oidc/login").headers["location"], "u-1")
    [(name, value)] = client.cookies.items()
    state, nonce, verifier = value.split(".")
    client.cookies.clear()
    answer = client.get(ours, headers=cookies({name: f"{state}.{nonce}.{verifier[::-1]}"}))
    assert answer.status_code == 401


def test_refusal_of_the_provider_is_told_without_its_text(client: httpx2.Client) -> None:
    state = client.get("/oidc/login").headers["location"].partition("state=")[2].partition("&")[0]
    answer = client.get(f"/oidc/callback?state={state}&error=access_denied&error_description=<b>call 555</b>")
    assert (answer.status_code, "access_denied" in answer.text, "555" in answer.text) == (401, True, False)
    for odd in ("<script>", "a" * 99, "call me"):
        state = client.get("/oidc/login").headers["location"].partition("state=")[2].partition("&")[0]
        answer = client.get("/oidc/callback", params={"state": state, "error": odd})
        assert (answer.status_code, odd in answer.text) == (401, False)


def test_new_key_of_the_provider_is_looked_up(client: httpx2.Client, lying: Provider) -> None:
    assert signed_in(client, "u-1").status_code == 303
    new = RSAKey.generate_key(2048, {"use": "sig"}, auto_kid=True)
    known = lying.app.view_functions["oidc-provider-mock.jwks"]
    lying.app.view_functions["oidc-provider-mock.jwks"] = lambda: {"keys": [new.as_dict(private=False)]}
    lying.signs = lambda claims, key: jwt.encode({"alg": "RS256", "kid": new.kid}, claims, new)
    try:
        time.sleep(1.1)
        assert signed_in(client, "u-1").status_code == 303
    finally:
        lying.app.view_functions["oidc-provider-mock.jwks"] = known


def test_role_comes_from_the_claim_and_the_highest_counts(server: Running, provider: Provider) -> None:
    with serving(server, settings_for(provider)) as client:
        signed_in(client, "u-2")
        assert client.get("/v1/me").json()["role"] == "admin"
        client.cookies.clear()
        answer = signed_in(client, "u-3")
        assert answer.status_code == 403
        assert "Nobody has no role here" in answer.text
        assert "refdiff-viewer" in answer.text
        assert client.get("/v1/me").status_code == 401
    mapped: dict[str, Role] = {"qa": "inspector"}
    settings = settings_for(provider, oidc_roles=mapped, oidc_role_claim="realm_access.roles")
    with serving(server, settings) as client:
        signed_in(client, "u-4")
        assert client.get("/v1/me").json() == {"name": "kc", "role": "inspector", "needs_key": True}
        client.cookies.clear()
        assert signed_in(client, "u-2").status_code == 403  # what other settings name is no role here


def test_claims_are_asked_for_where_the_token_has_none(client: httpx2.Client, lying: Provider) -> None:
    lying.answers = lambda c: {k: v for k, v in c.items() if k not in ("roles", "name")}
    signed_in(client, "u-1")
    assert client.get("/v1/me").json()["role"] == "inspector"
    assert "/userinfo" in lying.asked


@pytest.mark.parametrize(
    "roles",
    [{"refdiff-admin": False}, True, 7, 0.5, ["refdiff-admin", None], [["refdiff-admin"]], "refdiff-admins", []],
)
def test_only_texts_and_lists_of_texts_name_roles(client: httpx2.Client, lying: Provider, roles: Any) -> None:
    lying.answers = lambda c: c | {"roles": roles}
    answer = signed_in(client, "u-1")
    assert (answer.status_code, "has no role here" in answer.text) == (403, True)


def test_one_text_names_a_role(client: httpx2.Client, lying: Provider) -> None:
    lying.answers = lambda c: c | {"roles": "refdiff-viewer"}
    assert signed_in(client, "u-1").status_code == 303
    assert client.get("/v1/me").json()["role"] == "viewer"


def test_role_that_was_changed_or_taken_away_counts_for_all_sign_ins(
    server: Running, client: httpx2.Client, lying: Provider
) -> None:
    signed_in(client, "u-2")
    with httpx2.Client(base_url=client.base_url, timeout=90) as other:
        lying.answers = lambda c: c | {"roles": ["refdiff-viewer"]}
        signed_in(other, "u-2")
        assert (client.get("/v1/me").status_code, other.get("/v1/me").json()["role"]) == (401, "viewer")
        lying.answers = lambda c: c | {"roles": []}
        client.cookies.clear()
        assert signed_in(client, "u-2").status_code == 403
        assert other.get("/v1/me").status_code == 401
    assert not [k for k in server.service.stores.sign_ins.list() if k.created_by.endswith(" u-2")]
    assert server.service.stores.audit.verify_store().problems == []


def test_sign_in_ends_the_one_that_the_browser_had(client: httpx2.Client) -> None:
    signed_in(client, "u-1")
    [(name, before)] = client.cookies.items()
    sent = client.get("/oidc/login")
    client.cookies.delete(name)  # strict: a browser that comes from another site does not send it
    assert client.get(authorized(sent.headers["location"], "u-2")).status_code == 303
    assert client.get("/v1/me").json()["name"].startswith("Ann SMITH")
    client.cookies.clear()
    assert client.get("/v1/me", headers=cookies({name: before})).status_code == 401


def test_sign_out_reaches_the_provider_after_a_restart(server: Running, lying: Provider, client: httpx2.Client) -> None:
    signed_in(client, "u-1")
    [value] = client.cookies.values()
    known = lying.app.view_functions["oidc-provider-mock.openid_config"]
    lying.app.view_functions["oidc-provider-mock.openid_config"] = lambda: (
        known().get_json() | {"end_session_endpoint": f"{lying.issuer}/oauth2/end_session?p=b2c"}
    )
    try:
        with serving(server, settings_for(lying)) as other:
            cookie = cookies({f"refdiff-person-{other.base_url.port}": value})
            ended = other.post("/logout", headers=cookie)
    finally:
        lying.app.view_functions["oidc-provider-mock.openid_config"] = known
    assert ended.json() == {"provider": f"{lying.issuer}/oauth2/end_session?p=b2c&client_id=refdiff"}
    with Provider(PEOPLE).running() as gone:
        settings = settings_for(gone)
    assert IdentityProvider(settings).sign_out_url() is None


@contextmanager
def told_elsewhere(provider: Provider, answer: Callable[[], Any]) -> Iterator[None]:
    """Instead of what the provider's userinfo says."""
    known = provider.app.view_functions["oidc-provider-mock.userinfo"]
    provider.app.view_functions["oidc-provider-mock.userinfo"] = answer
    try:
        yield
    finally:
        provider.app.view_functions["oidc-provider-mock.userinfo"] = known


@pytest.mark.parametrize("answer", ["", "[]", "[" * 100_000, "{"])
def test_userinfo_that_fails_matters_where_the_role_is_missing(
    client: httpx2.Client, lying: Provider, answer: str
) -> None:
    with told_elsewhere(lying, lambda: answer):
        lying.answers = lambda c: {k: v for k, v in c.items() if k != "name"}
        assert signed_in(client, "u-1").status_code == 303
        assert client.get("/v1/me").status_code == 200
        client.cookies.clear()
        lying.answers = lambda c: {k: v for k, v in c.items() if k != "roles"}
        failed = signed_in(client, "u-1")
        assert (failed.status_code, "Sign-in failed" in failed.text) == (503, True)


def test_claims_inside_others_are_taken_from_where_they_are(server: Running, lying: Provider) -> None:
    settings = settings_for(lying, oidc_role_claim="realm_access.roles", oidc_name_claim="about.name")
    lying.answers = lambda c: c | {"realm_access": {"verify": True}, "about": {"name": "Kay"}}
    with (
        told_elsewhere(lying, lambda: {"sub": "u-4", "realm_access": {"roles": ["refdiff-viewer"]}, "about": {}}),
        serving(server, settings) as client,
    ):
        assert signed_in(client, "u-4").status_code == 303
        assert client.get("/v1/me").json()["role"] == "viewer"
    with (
        told_elsewhere(lying, lambda: {"sub": "u-1", "realm_access": {"roles": ["refdiff-admin"]}}),
        serving(server, settings) as client,
    ):
        assert signed_in(client, "u-4").status_code == 403  # somebody else's


def test_error_that_nobody_expects_is_a_page_and_a_line_of_the_log(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(IdentityProvider, "_checked", fail)
    answer = signed_in(client, "u-1")
    assert (answer.status_code, "Sign-in failed" in answer.text, "odd" in answer.text) == (500, True, False)
    assert not client.cookies
    assert "KeyError: 'odd'" in caplog.text


def _dripping() -> Iterator[bytes]:
    for _ in range(100):
        time.sleep(0.1)
        yield b" "


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: flask.Response(_dripping()), "within 1 s"),
        (lambda: flask.Response(b" " * 1_000_001), "does not answer"),
        (lambda: flask.Response(gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"}), "does not answer"),
        (lambda: {"keys": ["x"]}, "keys cannot be read"),
        (lambda: {"keys": 7}, "keys cannot be read"),
    ],
)
def test_answers_of_the_provider_have_a_limit_of_time_and_size(
    lying: Provider, monkeypatch: pytest.MonkeyPatch, answer: Callable[[], Any], why: str
) -> None:
    monkeypatch.setattr(identity_provider, "_ANSWER_S", 1.0)
    known = lying.app.view_functions["oidc-provider-mock.jwks"]
    lying.app.view_functions["oidc-provider-mock.jwks"] = answer
    began = time.monotonic()
    try:
        with pytest.raises(Refused) as error:
            IdentityProvider(settings_for(lying)).told()
    finally:
        lying.app.view_functions["oidc-provider-mock.jwks"] = known
    assert (error.value.status_code, why in error.value.detail) == (503, True), error.value.detail
    assert time.monotonic() - began < 3


def test_host_of_the_public_address_is_allowed_and_no_other(server: Running, provider: Provider) -> None:
    with serving(server, settings_for(provider), "https://qa.example.com") as client:
        for host, status in (("QA.example.com", 401), ("qa.example.com:443", 401), ("evil.example", 403), ("", 403)):
            assert client.get("/v1/me", headers={"Host": host}).status_code == status, host


def test_people_of_one_name_stay_apart_and_nobody_becomes_another(
    server: Running, client: httpx2.Client, lying: Provider
) -> None:
    signed_in(client, "u-1")
    signed_in(client, "u-2")
    assert client.get("/v1/me").json()["name"] == "Ann SMITH (asmith2)"
    lying.answers = lambda c: c | {"name": "Somebody Else"}
    signed_in(client, "u-1")
    assert client.get("/v1/me").json()["name"] == "Ann Smith"  # of the first sign-in
    with pytest.raises(InputError, match="name of a person who signs in"):
        server.keys.add("ann smith", "viewer", "test")


def test_sign_in_ends_with_its_time_and_when_it_is_revoked(
    server: Running, provider: Provider, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFDIFF_HOME", str(server.home))
    with serving(server, settings_for(provider), lasts=timedelta(seconds=1)) as client:
        back = signed_in(client, "u-1")
        [cookie] = [c for c in back.headers.get_list("set-cookie") if "refdiff-person" in c]
        value = cookie.partition(";")[0]
        time.sleep(1.1)
        ended = httpx2.get(f"{client.base_url}/v1/me", headers={"Cookie": value})
        assert (ended.status_code, "sign-in has ended" in ended.json()["error"]["message"]) == (401, True)
    with serving(server, settings_for(provider)) as client:
        signed_in(client, "u-1")
        status, shown = said(capsys, "keys", "list", "--signed-in")
        assert (status, shown["keys"][-1]["name"], shown["keys"][-1]["role"]) == (0, "Ann Smith", "inspector")
        assert said(capsys, "keys", "revoke", shown["keys"][-1]["key_id"])[0] == 0
        assert client.get("/v1/me").status_code == 401
    assert not any(k.key_id.startswith("s-") for k in server.keys.list())


def test_people_behind_a_proxy_count_by_themselves(server: Running, provider: Provider) -> None:
    with serving(server, settings_for(provider).model_copy(update={"rate_per_minute": 12})) as client:
        statuses = []
        for sub in ("u-1", "u-2"):
            client.cookies.clear()
            assert signed_in(client, sub).status_code == 303
            statuses += [client.get("/v1/me").status_code for _ in range(9)]
        assert set(statuses) == {200}  # 18 of one address
        statuses = [client.get("/v1/me").status_code for _ in range(4)]
        assert statuses[-1] == 429
        client.cookies.clear()
        client.cookies.set(f"refdiff-person-{client.base_url.port}", "rds_0_0")  # guesses count by the address
        assert {client.get("/v1/me").status_code for _ in range(12)} == {401, 429}


def test_provider_that_is_away_keeps_nobody_with_a_key_outside(server: Running) -> None:
    with Provider(PEOPLE).running() as provider:
        settings = settings_for(provider)
    with serving(server, settings) as client:
        for _ in range(2):
            answer = client.get("/oidc/login")
            assert (answer.status_code, "does not answer" in answer.text) == (503, True)
            assert answer.headers["content-type"].startswith("text/html")
        assert client.get("/v1/products", headers=server.key("viewer")).status_code == 200
    check = check_sign_in(settings)
    assert (check.status, "does not answer" in check.says) == ("warning", True)
    with Provider(PEOPLE).running() as provider, serving(server, settings_for(provider)) as client:
        sent = client.get("/oidc/login").headers["location"]
        back = authorized(sent, "u-1")
        assert check_sign_in(settings_for(provider)).status == "ok"
        provider._server.shutdown()  # it goes away in between
        provider._server.socket.close()
        assert client.get(back).status_code == 503


def test_client_that_the_provider_does_not_know_is_told_to_the_operator() -> None:
    with Provider(PEOPLE, require_client_registration=True).running() as provider:
        uri = "http://127.0.0.1:1/oidc/callback"
        made = httpx2.post(f"{provider.issuer}/oauth2/clients", json={"redirect_uris": [uri]}).json()
        for secret, refused in ((made["client_secret"], None), ("wrong", "REFDIFF_OIDC_CLIENT_SECRET")):
            settings = ServerSettings(
                oidc_issuer=provider.issuer, oidc_client_id=made["client_id"], oidc_client_secret=secret
            )
            known = IdentityProvider(settings)
            url, pending = known.begin(uri)
            answer = dict(httpx2.QueryParams(authorized(url, "u-1").partition("?")[2]))
            if refused is None:
                assert known.finish(pending, answer, uri).role == "inspector"
                continue
            with pytest.raises(Refused) as error:
                known.finish(pending, answer, uri)
            assert (error.value.status_code, refused in error.value.detail) == (503, True)


def test_issuer_must_call_itself_as_it_is_set(provider: Provider) -> None:
    other = provider.issuer.replace("127.0.0.1", "localhost")
    with pytest.raises(Refused) as error:
        IdentityProvider(ServerSettings(oidc_issuer=f"{other}/", oidc_client_id="refdiff")).begin("http://127.0.0.1/x")
    assert (error.value.status_code, "set REFDIFF_OIDC_ISSUER" in error.value.detail) == (503, True)


GOOD = {"oidc_issuer": "https://login.example.com", "oidc_client_id": "r"}


@pytest.mark.parametrize(
    ("given", "host", "named"),
    [
        ({"oidc_issuer": "http://login.example.com", "oidc_client_id": "r"}, "127.0.0.1", "https://"),
        ({"oidc_issuer": "login.example.com", "oidc_client_id": "r"}, "127.0.0.1", "https://"),
        ({"oidc_issuer": "https://login.example.com"}, "127.0.0.1", "REFDIFF_OIDC_CLIENT_ID"),
        ({"oidc_issuer": "https://login.example.com", "oidc_client_id": "r"}, "0.0.0.0", "REFDIFF_PUBLIC_URL"),
        ({"oidc_issuer": "https://[::1", "oidc_client_id": "r"}, "127.0.0.1", "https://"),
        (GOOD | {"public_url": "http://qa.example.com"}, "127.0.0.1", "REFDIFF_PUBLIC_URL=http://qa.example.com"),
        (GOOD | {"public_url": "qa.example.com"}, "0.0.0.0", "REFDIFF_PUBLIC_URL=qa.example.com"),
        ({"oidc_roles": {"qa": "boss"}}, "127.0.0.1", "REFDIFF_OIDC_ROLES"),
        ({"oidc_scope": "profile"}, "127.0.0.1", "REFDIFF_OIDC_SCOPE"),
    ],
)
def test_settings_that_let_nobody_in_or_anybody_stop_the_server(
    tmp_path: Path, given: dict[str, Any], host: str, named: str
) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores, pytest.raises(ConfigurationError, match=named):
        people_sign_in(load_settings(**given), host, stores.sign_ins)


def test_server_with_sign_in_needs_no_key_to_begin_with_and_is_never_open(tmp_path: Path) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        keys: KeyStore = stores.keys
        settings = load_settings(oidc_issuer="https://login.example.com", oidc_client_id="r")
        check_open_to("0.0.0.0", keys, people=True)
        with pytest.raises(InputError, match="REFDIFF_OIDC_ISSUER"):
            check_open_to("127.0.0.1", keys, True, settings.behind_a_proxy, True)
