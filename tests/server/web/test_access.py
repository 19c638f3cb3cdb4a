"""Access: keys and roles, keyless loopback, cross-site requests, rate limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Headers

from refdiff.agent.inspector import Inspector
from refdiff.memory.records.api_keys import KeyStore
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.server.sockets import is_loopback
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.errors import Refused
from refdiff.server.web.middleware import STREAMS
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


def test_request_without_a_key_gets_401_except_the_probes(strict: httpx2.Client) -> None:
    assert strict.get("/healthz").status_code == strict.get("/readyz").status_code == 200
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


@pytest.mark.parametrize("path", ["/v1/captures", "/v1/inspections", "/v1/lines/cam/photos", "/v1/goldens"])
def test_role_that_may_send_no_photo_is_refused_before_the_body_is_read(
    server: Running, strict: httpx2.Client, path: str
) -> None:
    """A body that is announced and never sent: whoever answers has not waited for it."""
    key = server.key("viewer")["Authorization"]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 2000000\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    with socket.create_connection((strict.base_url.host, strict.base_url.port or 0), timeout=10) as peer:
        peer.sendall(head.encode())
        assert peer.recv(1000).startswith(b"HTTP/1.1 403")


@pytest.fixture
def limited(server: Running) -> Iterator[httpx2.Client]:
    """The same service with low limits."""
    settings = ServerSettings(rate_per_minute=0, bytes_per_minute=300_000, http_max_bytes=3_000_000)
    app = create_app(server.service, Access(server.keys, loopback=True, user="ann"), settings, requests=40)
    running, thread, url = start(app)
    with httpx2.Client(base_url=url, timeout=30, limits=httpx2.Limits(max_connections=200)) as client:
        yield client
    running.should_exit = True
    thread.join(10)


@pytest.mark.parametrize("stated", [True, False])
def test_bytes_of_photos_above_the_limit_of_a_minute_get_429(
    server: Running, limited: httpx2.Client, stated: bool
) -> None:
    key, other = server.key("inspector"), server.key("inspector")

    def send(headers: dict[str, str]) -> httpx2.Response:
        form = (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n'
            + bytes(200_000)
            + b"\r\n--b--\r\n"
        )
        body: Any = form if stated else iter([form[:9], form[9:]])
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        return limited.post("/v1/captures", content=body, headers=headers | kind)

    assert send(key).status_code == 422, "the fields are missing"
    refused = send(key)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert "REFDIFF_BYTES_PER_MINUTE" in refused.json()["error"]["message"]
    assert send(other).status_code == 422, "another key has its own"
    assert "refdiff_http_received_bytes_total" in limited.get("/metrics").text


def test_caller_has_a_few_event_streams_and_others_are_served(
    server: Running, limited: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.inspected("good.png", "300")
    hold = threading.Event()
    run = Inspector.run
    monkeypatch.setattr(Inspector, "run", lambda self, r: hold.wait(30) and run(self, r))
    made = limited.post("/v1/inspections", json={"part_id": "300"}).json()
    events = made["links"]["events"]
    one, other = server.key("viewer"), server.key("viewer")
    try:
        with ExitStack() as stack:
            for _ in range(STREAMS):
                answer = stack.enter_context(limited.stream("GET", events, headers=one))
                assert answer.status_code == 200
            refused = limited.get(events, headers=one)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
            assert limited.get("/v1/version", headers=one).status_code == 200
            with limited.stream("GET", events, headers=other) as answer:
                assert answer.status_code == 200
        deadline = time.monotonic() + 10
        status = 0
        while status != 200:  # closed streams are free again
            assert time.monotonic() < deadline, status
            with limited.stream("GET", events, headers=one) as answer:
                status = answer.status_code
    finally:
        hold.set()
    server.service.wait(made["inspection_id"], 60)


def test_caller_with_half_of_all_requests_gets_503_and_others_are_served(
    server: Running, limited: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()
    monkeypatch.setattr(server.service.stores.captures, "history", lambda _: (hold.wait(20), [])[1])
    one, other = server.key("viewer"), server.key("viewer")
    with ThreadPoolExecutor(25) as people:
        asked = [people.submit(limited.get, "/v1/captures?part_id=1", headers=one) for _ in range(25)]
        try:
            time.sleep(1)
            assert limited.get("/v1/me", headers=other).status_code == 200
            assert limited.get("/v1/me", headers=one).status_code == 503
            assert limited.get("/healthz").status_code == 200
        finally:
            hold.set()
        assert sorted({a.result().status_code for a in asked}) == [200, 503]
