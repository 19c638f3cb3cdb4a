"""Access: keys and roles, keyless loopback, cross-site requests, rate limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Headers

from refdiff.agent.inspector import Inspector
from refdiff.memory.kinds import OPERATOR_FILE
from refdiff.memory.records.api_keys import KeyStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.server.settings import ServerSettings, load_settings
from refdiff.server.sockets import check_open_to, is_loopback
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.server.web.errors import Refused
from refdiff.server.web.middleware import STREAMS
from refdiff.server.web.serve import access_to

from .conftest import Running, start

HOW = {
    "viewer": [("GET", "/v1/inspections"), ("GET", "/v1/products"), ("GET", "/metrics"), ("GET", "/v1/version")],
    "inspector": [
        ("POST", "/v1/inspections"),
        ("POST", "/v1/inspections/x/disposition"),
        ("PUT", "/v1/inspections/x/findings/1/name"),
        ("DELETE", "/v1/inspections/x/findings/1/name"),
        ("POST", "/v1/defect-names/rename"),
    ],
    "admin": [
        ("PATCH", "/v1/goldens/g-000000000000"),
        ("PUT", "/v1/products/board/spec"),
        ("PUT", "/v1/products/board/components/1"),
        ("DELETE", "/v1/products/board/components/1"),
    ],
}


@contextmanager
def serving(server: Running, access: Access, settings: ServerSettings | None = None) -> Iterator[httpx2.Client]:
    """The same service under other rules."""
    running, thread, url = start(create_app(server.service, access, settings or server.settings))
    with httpx2.Client(base_url=url, timeout=90) as client:
        yield client
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def strict(server: Running) -> Iterator[httpx2.Client]:
    """The same service as on an address that other machines can reach."""
    with serving(server, Access(server.keys, loopback=False, user="ann")) as client:
        yield client


@pytest.fixture
def keyless(server: Running, tmp_path: Path) -> Iterator[tuple[httpx2.Client, KeyStore]]:
    """`refdiff serve --without-keys` on loopback, and its own keys: none."""
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        access = access_to(stores.keys, "127.0.0.1", server.settings, True)
        with serving(server, access) as client:
            yield client, stores.keys


@pytest.mark.parametrize("loopback", [False, True])
def test_request_without_a_key_gets_401_except_the_probes(server: Running, loopback: bool) -> None:
    access = server.access if loopback else Access(server.keys, loopback=False, user="ann")
    with serving(server, access) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        for method, path in [route for routes in HOW.values() for route in routes]:
            answer = client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            way_in = "`refdiff serve` printed" if loopback else "`refdiff keys add`"
            assert way_in in answer.json()["error"]["message"]


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
    good = server.key("viewer", "x")["Authorization"].partition(" ")[2]
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
def test_loopback_host_names_are_local(server: Running, keyless: tuple[httpx2.Client, KeyStore], host: str) -> None:
    assert server.client.get("/v1/products", headers={"Host": host}).status_code == 200
    assert keyless[0].get("/v1/products", headers={"Host": host}).status_code == 200


def test_operators_link_signs_one_browser_in_once(server: Running) -> None:
    access = access_to(server.keys, "127.0.0.1", server.settings)
    assert access.sign_in
    token = access.sign_in.link("http://127.0.0.1:1").rpartition("/")[2]
    with serving(server, access) as client:
        assert client.post("/login", json={"token": "guessed"}).status_code == 401
        assert (
            client.post("/login", json={"token": token}, headers={"Origin": "https://evil.example"}).status_code == 403
        )
        signed_in = client.post("/login", json={"token": token})
        assert signed_in.status_code == 204
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(signed_in.headers["set-cookie"].split("; "))
        assert client.get("/v1/me").json() == {"name": "ann", "role": "admin", "needs_key": True}
        for name in ("Via", "X-Forwarded-For"):  # the cookie is for this machine alone
            assert client.get("/v1/me", headers={name: "x"}).status_code == 401
        other_page = {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:9"}
        assert client.post("/v1/inspections", json={"part_id": "1"}, headers=other_page).status_code == 403
        again = httpx2.post(f"{client.base_url}/login", json={"token": token})
        assert (again.status_code, "used already" in again.json()["error"]["message"]) == (401, True)
        kept = dict(client.cookies)
        assert client.post("/logout").status_code == 204
        assert client.get("/v1/me").status_code == 401
    restarted = access_to(server.keys, "127.0.0.1", server.settings)
    with serving(server, restarted) as client:  # on another port, so under another name
        assert restarted.sign_in
        [value] = kept.values()
        assert restarted.sign_in.holds(value)
        assert not restarted.sign_in.holds(value[:-1])
        assert not restarted.sign_in.holds(f"9{value}")


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_operators_key_is_kept_in_a_private_file_until_it_is_revoked(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    settings = ServerSettings(user="ann")
    url = request.getfixturevalue("postgres") if kind == "postgres" else None
    with Stores.open(MemorySettings(home=tmp_path, database_url=url)) as stores:
        keys = stores.keys
        first = access_to(keys, "127.0.0.1", settings).sign_in
        assert first
        file = tmp_path / OPERATOR_FILE
        assert (file.read_text(), file.stat().st_mode & 0o777) == (first.text, 0o600)
        again = access_to(keys, "127.0.0.1", settings).sign_in
        assert again
        assert again.text == first.text
        assert not keys.any_good()  # it opens the server to nobody else
        keys.revoke(first.key.key_id)
        new = access_to(keys, "127.0.0.1", settings).sign_in
        assert new
        assert keys.check(first.text) is None
        file.unlink()
        last = access_to(keys, "127.0.0.1", settings).sign_in
        assert last
        assert keys.check(new.text) is None  # whoever has the lost file has nothing
        file.unlink()
        keys.add("line 3", "admin", "ann")
        assert access_to(keys, "127.0.0.1", settings).sign_in is None
        assert keys.check(last.text) is None
        assert access_to(keys, "0.0.0.0", settings).sign_in is None


def test_no_operators_key_is_made_beside_other_keys(tmp_path: Path) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        keys = stores.keys
        keys.add("line 3", "admin", "ann")
        access = access_to(keys, "127.0.0.1", ServerSettings(user="ann"))
        assert access.sign_in is None
        with pytest.raises(Refused, match="refdiff keys add"):
            access.identify(Headers({"host": "localhost"}), "127.0.0.1", None)
    assert not (tmp_path / OPERATOR_FILE).exists()


def test_server_without_keys_takes_any_key_until_there_is_one(keyless: tuple[httpx2.Client, KeyStore]) -> None:
    client, keys = keyless
    for headers in ({}, {"Authorization": "Bearer local"}, {"X-API-Key": "made up"}):
        assert client.get("/v1/me", headers=headers).json() == {"name": "ann", "role": "admin", "needs_key": False}
    foreign = {"Authorization": "Bearer local", "Origin": "https://evil.example"}
    assert client.post("/v1/inspections", json={"part_id": "1"}, headers=foreign).status_code == 403
    key, _ = keys.add("line 3", "viewer", "ann")
    assert client.get("/v1/me").status_code == 401
    assert client.get("/v1/me", headers={"X-API-Key": "made up"}).status_code == 401
    keys.revoke(key.key_id)
    assert client.get("/v1/me").status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_cross_site_post_without_a_key_gets_403(server: Running, headers: dict[str, str]) -> None:
    with httpx2.Client(base_url=server.url) as browser:
        browser.cookies.set(server.cookie()["name"], server.cookie()["value"])
        answer = browser.post("/v1/inspections", data={"part_id": "77"}, headers=headers)
        assert answer.status_code == 403
        own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
        assert browser.post("/v1/inspections", data={"part_id": "nobody"}, headers=own).status_code == 404


@pytest.mark.parametrize(
    "name",
    ["Forwarded", "Via", "CDN-Loop", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Server",
     "X-Forwarded-Port", "X-Real-IP", "X-Client-IP", "True-Client-IP", "Client-IP", "Fastly-Client-IP", "Fly-Client-IP",
     "X-Cluster-Client-IP", "CF-Connecting-IP", "CF-Ray", "X-Original-Forwarded-For", "X-Envoy-External-Address",
     "X-Amzn-Trace-Id", "X-Remote-Addr"],
)  # fmt: skip
def test_request_through_a_proxy_needs_a_key(
    server: Running, keyless: tuple[httpx2.Client, KeyStore], name: str
) -> None:
    for headers in ({name: "127.0.0.1"}, {name: "127.0.0.1", "X-API-Key": "made up"}):
        assert keyless[0].get("/v1/products", headers=headers).status_code == 401
    assert name.lower() in keyless[0].get("/v1/products", headers={name: "x"}).json()["error"]["message"]
    assert server.client.get("/v1/products", headers={name: "127.0.0.1"}).status_code == 200


def test_requests_above_the_rate_get_429_with_retry_after(server: Running) -> None:
    key, other = server.key("viewer"), server.key("viewer", "another viewer")
    with serving(server, server.access, ServerSettings(rate_per_minute=5)) as client:
        answers = [client.get("/v1/products", headers=key) for _ in range(6)]
        assert [a.status_code for a in answers] == [200] * 5 + [429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 60
        assert client.get("/v1/products", headers=other).status_code == 200  # has its own count
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "paths", [["/v1/me"], ["/openapi.json"], ["/"], ["/page/style.css"], ["/nothing"], ["/docs", "/v1/me", "/metrics"]]
)
def test_requests_without_a_key_are_counted_by_address_on_every_path(server: Running, paths: list[str]) -> None:
    with serving(server, server.access, ServerSettings(rate_per_minute=4)) as client:
        statuses = [client.get(path).status_code for path in (paths * 5)[:5]]
        assert 429 not in statuses[:4]
        assert statuses[4] == 429
        assert client.get("/v1/products", headers=server.key("viewer")).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_other_host_names_of_a_loopback_server_need_a_key(server: Running) -> None:
    access = access_to(server.keys, "127.0.0.1", ServerSettings(user="ann", allowed_hosts=["QA.example"]))
    headers = server.key("viewer")
    with serving(server, access) as client:
        assert client.get("/v1/products", headers={"Host": "qa.example"}).status_code == 401
        assert client.get("/v1/products", headers=headers | {"Host": "qa.example"}).status_code == 200
        assert client.get("/v1/products", headers=headers | {"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "told", "why"),
    [
        ("0.0.0.0", {}, "reachable from other machines"),
        ("127.0.0.1", {"allowed_hosts": ["qa.example"]}, "REFDIFF_ALLOWED_HOSTS"),
        ("127.0.0.1", {"require_key": True}, "REFDIFF_REQUIRE_KEY"),
        ("127.0.0.1", {"public_url": "https://qa.example"}, "REFDIFF_PUBLIC_URL"),
        ("127.0.0.1", {"slack_signing_secret": "s"}, "SLACK_SIGNING_SECRET"),
        ("127.0.0.1", {"teams_client_id": "t"}, "REFDIFF_TEAMS_CLIENT_ID"),
        ("127.0.0.1", {"a key": True}, "has API keys"),
        ("127.0.0.1", {"slack_app_token": "xapp-1"}, None),
        ("::1", {}, None),
    ],
)
def test_serve_without_keys_is_refused_where_strangers_could_call(
    tmp_path: Path, host: str, told: dict[str, Any], why: str | None
) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        keys = stores.keys
        if told.pop("a key", False):
            keys.add("line 3", "viewer", "ann")
        if why is None:
            check_open_to(host, keys, True, load_settings(**told).behind_a_proxy)
            return
        with pytest.raises(InputError, match=f"--without-keys is not possible here: .*{why}"):
            check_open_to(host, keys, True, load_settings(**told).behind_a_proxy)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.2", False), ("example.com", False)],
)  # fmt: skip
def test_is_loopback_recognises_local_addresses_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_api_keys_are_stored_as_digests(tmp_path: Path) -> None:
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        keys = stores.keys
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
        keys.add("line 3", "viewer", "ann")  # its name is free again
        for name in ("", " ", "a\nb", "x" * 129, "line 3", " LINE  3"):
            with pytest.raises(InputError):
                keys.add(name, "viewer", "ann")
        with pytest.raises(InputError):
            keys.add("x", "boss", "ann")  # type: ignore[arg-type]
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert text.encode() not in kept
    assert text.split("_", 2)[2].encode() not in kept


@pytest.mark.parametrize(
    "path", ["/v1/captures", "/v1/inspections", "/v1/lines/cam/photos", "/v1/devices/reports", "/v1/goldens"]
)
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
    most = httpx2.Limits(max_connections=200)
    with httpx2.Client(base_url=url, timeout=30, limits=most, headers=server.key("admin")) as client:
        yield client
    running.should_exit = True
    thread.join(10)


@pytest.mark.parametrize("stated", [True, False])
def test_bytes_of_photos_above_the_limit_of_a_minute_get_429(
    server: Running, limited: httpx2.Client, stated: bool
) -> None:
    key, other = server.key("inspector"), server.key("inspector", "another inspector")

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
    assert "refdiff_http_received_bytes_total" in limited.get("/metrics", headers=key).text


def test_caller_has_a_few_event_streams_and_others_are_served(
    server: Running, limited: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.inspected("good.png", "300")
    hold = threading.Event()
    run = Inspector.run
    monkeypatch.setattr(Inspector, "run", lambda self, r: hold.wait(30) and run(self, r))
    made = limited.post("/v1/inspections", json={"part_id": "300"}).json()
    events = made["links"]["events"]
    one, other = server.key("viewer"), server.key("viewer", "another viewer")
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
    one, other = server.key("viewer"), server.key("viewer", "another viewer")
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
