"""Access: keys and roles, keyless loopback, cross-site requests, rate limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Headers

from refdiff.memory.records.api_keys import KeyStore
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.server.sockets import is_loopback
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.errors import Refused
from refdiff.server.web.serve import access_to

from .conftest import Running, start

HOW = {
    "viewer": [("GET", "/v1/inspections"), ("GET", "/v1/products"), ("GET", "/metrics"), ("GET", "/v1/version")],
    "inspector": [("POST", "/v1/inspections"), ("POST", "/v1/inspections/x/disposition")],
    "admin": [("PATCH", "/v1/goldens/g-000000000000"), ("PUT", "/v1/products/board/spec")],
}


@pytest.fixture
def strict(server: Running) -> Iterator[httpx2.Client]:
    """The same service as on an address that other machines can reach."""
    app = create_app(server.service, Access(server.keys, loopback=False, user="ann"), server.settings)
    running, thread, url = start(app)
    with httpx2.Client(base_url=url) as client:
        yield client
    running.should_exit = True
    thread.join(10)


def test_request_without_a_key_gets_401_except_healthz(strict: httpx2.Client) -> None:
    assert strict.get("/healthz").status_code == 200
    for method, path in [route for routes in HOW.values() for route in routes]:
        answer = strict.request(method, path)
        assert answer.status_code == 401, path
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("role", HOW)
def test_role_is_limited_to_its_routes(server: Running, strict: httpx2.Client, role: str) -> None:
    roles = list(HOW)
    headers = server.key(role)
    for needed, routes in HOW.items():
        for method, path in routes:
            status = strict.request(method, path, headers=headers).status_code
            if roles.index(role) < roles.index(needed):
                assert status == 403, path
            else:
                assert status not in (401, 403), path


def test_key_works_in_either_header_until_revoked(server: Running, strict: httpx2.Client) -> None:
    key, text = server.keys.add("line 3", "viewer", "test")
    for headers in ({"X-API-Key": text}, {"Authorization": f"bearer {text}"}):
        assert strict.get("/v1/products", headers=headers).status_code == 200
    server.keys.revoke(key.key_id)
    assert strict.get("/v1/products", headers={"X-API-Key": text}).status_code == 401


def test_wrong_keys_get_401_and_are_rate_limited(server: Running, strict: httpx2.Client) -> None:
    good = server.keys.add("x", "viewer", "test")[1]
    wrong = [
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        good + "x",
        good[:12],
        "rdk_",
        "x",
        "rdk_\u00e9".encode().decode("latin-1"),
    ]
    for text in wrong:
        assert strict.get("/v1/products", headers={"X-API-Key": text.encode("latin-1")}).status_code == 401
    statuses = [strict.get("/v1/products", headers={"X-API-Key": "nope"}).status_code for _ in range(20)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    # whoever shares the address, behind a proxy say, is not locked out
    assert strict.get("/v1/products", headers={"X-API-Key": good}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[::1", "10.0.0.1"]
)
def test_foreign_host_name_on_loopback_is_refused(server: Running, host: str) -> None:
    """DNS rebinding: a web page's own name resolves to loopback."""
    answer = server.client.get("/v1/inspections", headers={"Host": host})
    assert answer.status_code == 403, answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:9", "127.1.2.3", "LOCALHOST:1"])
def test_loopback_host_names_need_no_key(server: Running, host: str) -> None:
    assert server.client.get("/v1/products", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_post_gets_403(server: Running, headers: dict[str, str]) -> None:
    answer = server.client.post("/v1/inspections", data={"part_id": "77"}, headers=headers)
    assert answer.status_code == 403
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.client.post("/v1/inspections", data={"part_id": "nobody"}, headers=own).status_code == 404


@pytest.mark.parametrize("name", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Forwarded-Host"])
def test_forwarded_request_needs_a_key(server: Running, name: str) -> None:
    assert server.client.get("/v1/products", headers={name: "127.0.0.1"}).status_code == 401


def test_requests_above_the_rate_get_429_with_retry_after(server: Running) -> None:
    settings = ServerSettings(rate_per_minute=5)
    running, thread, url = start(create_app(server.service, Access(server.keys, loopback=True, user="ann"), settings))
    with httpx2.Client(base_url=url) as client:
        answers = [client.get("/v1/products") for _ in range(6)]
        assert [a.status_code for a in answers] == [200] * 5 + [429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert client.get("/v1/products", headers=server.key("viewer")).status_code == 200  # has its own count
        assert client.get("/healthz").status_code == 200
    running.should_exit = True
    thread.join(10)


def test_require_key_applies_to_loopback_too(server: Running) -> None:
    access = Access(server.keys, loopback=True, user="ann", require_key=True, hosts=("QA.example",))
    running, thread, url = start(create_app(server.service, access, server.settings))
    with httpx2.Client(base_url=url) as client:
        assert client.get("/v1/products").status_code == 401
        headers = server.key("viewer")
        assert client.get("/v1/products", headers=headers | {"Host": "qa.example"}).status_code == 200
        assert client.get("/v1/products", headers=headers | {"Host": "other.example"}).status_code == 403
    running.should_exit = True
    thread.join(10)


@pytest.mark.parametrize(
    "told",
    [
        {"allowed_hosts": ["qa.example"]},
        {"require_key": True},
        {"public_url": "https://qa.example"},
        {"slack_signing_secret": "s"},
        {"teams_client_id": "t"},
    ],
)
def test_loopback_behind_a_proxy_needs_a_key(server: Running, told: dict[str, Any]) -> None:
    """A proxy calls from this machine as localhost and does not identify its user."""
    kept, chat = ({n: v for n, v in told.items() if n in kind.model_fields} for kind in (ServerSettings, ChatSettings))
    access = access_to(server.keys, "127.0.0.1", ServerSettings(**kept), ChatSettings(**chat))
    asked = Headers({"host": "127.0.0.1:8000"})
    with pytest.raises(Refused) as refused:
        access.identify(asked, "127.0.0.1", None)
    assert refused.value.status_code == 401
    text = server.keys.add("ann", "viewer", "test")[1]
    assert access.identify(asked, "127.0.0.1", text).role == "viewer"
    alone = access_to(server.keys, "127.0.0.1", ServerSettings(user="ann"), ChatSettings(slack_app_token="xapp-1"))
    assert alone.identify(asked, "127.0.0.1", None).role == "admin"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.com", False)],
)  # fmt: skip
def test_is_loopback_recognises_local_addresses_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_api_keys_are_stored_as_digests(tmp_path: Path) -> None:
    with KeyStore(tmp_path) as keys:
        assert not keys.any_good()
        key, text = keys.add("line 3", "inspector", "ann")
        assert len(text.split("_", 2)[2]) == 43
        assert keys.check(text) == key
        assert keys.check(text + "x") is None
        assert keys.any_good()
        assert keys.revoke(key.key_id).revoked_at
        assert keys.check(text) is None
        assert not keys.any_good()
        assert [k.key_id for k in keys.list()] == [key.key_id]
        with pytest.raises(UnknownRecordError):
            keys.revoke("k-00000000")
        for name in ("", " ", "a\nb", "x" * 129):
            with pytest.raises(InputError):
                keys.add(name, "viewer", "ann")
        with pytest.raises(InputError):
            keys.add("x", "boss", "ann")  # type: ignore[arg-type]
    kept = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert text.encode() not in kept
    assert text.split("_", 2)[2].encode() not in kept
