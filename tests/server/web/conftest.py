"""A real server: uvicorn on a free port of loopback over a calibrated home, asked over real HTTP."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from refdiff.agent.service import InspectionService
from refdiff.memory.records.api_keys import KeyStore
from refdiff.server.settings import ServerSettings
from refdiff.server.web.access import Access, cookie_name
from refdiff.server.web.app import create_app
from refdiff.server.web.connections import CONNECTIONS, patient
from refdiff.server.web.serve import access_to
from refdiff.server.web.sign_in import OperatorSignIn
from refdiff.tools.exported.export import export_product


@dataclass
class Running:
    """client: calls with the operator's key. photos: bytes by name (good.png, bad.png)."""

    url: str
    service: InspectionService
    keys: KeyStore
    access: Access
    client: httpx2.Client
    photos: dict[str, bytes]
    home: Path
    settings: ServerSettings = field(default_factory=ServerSettings)
    made: dict[tuple[str, str], str] = field(default_factory=dict)

    def key(self, role: Any, name: str = "") -> dict[str, str]:
        """Headers of the key of that name."""
        name = name or f"a {role}"
        if (role, name) not in self.made:
            self.made[role, name] = self.keys.add(name, role, "test")[1]
        return {"Authorization": f"Bearer {self.made[role, name]}"}

    def cookie(self, url: str = "") -> dict[str, str]:
        """What a browser keeps that opened the operator's link."""
        assert self.access.sign_in
        sign_in = OperatorSignIn(self.access.sign_in.key, self.access.sign_in.text)
        value = sign_in.exchange(sign_in.link("").rpartition("/")[2])
        assert value
        url = url or self.url
        return {"name": cookie_name(int(url.rpartition(":")[2])), "value": value, "url": url}

    def inspected(self, name: str, part: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """The inspection of a photo, filed."""
        files, data = {"image": (name, self.photos[name])}, {"part_id": part, "product": "board"}
        answer = self.client.post("/v1/inspections?wait_s=60", files=files, data=data, headers=headers)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


def start(app: Any) -> tuple[uvicorn.Server, threading.Thread, str]:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=patient(CONNECTIONS))
    )
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    return server, thread, f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def server(_made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """On loopback, as `refdiff serve` makes it; the scripted driver inspects."""
    root = tmp_path_factory.mktemp("served") / "ready"
    shutil.copytree(_made_once, root, symlinks=True, ignore=shutil.ignore_patterns("converted"))
    with pytest.MonkeyPatch.context() as m:
        for name in [n for n in os.environ if n.startswith("REFDIFF_")]:
            m.delenv(name)
        m.setenv("REFDIFF_HOME", str(root / "home"))
        m.setenv("REFDIFF_CACHE", str(root / "cache"))
        m.setenv("REFDIFF_WORKING_PX", "128")
        m.setenv("REFDIFF_LLM", "off")
        m.setenv("REFDIFF_BLIND_SHARE", "0")  # what is drawn at random would be another test's to judge
        settings = ServerSettings(user="ann", http_max_bytes=3_000_000, rate_per_minute=0)
        with InspectionService.open() as service:
            keys = service.stores.keys
            access = access_to(keys, "127.0.0.1", settings)
            assert access.sign_in
            running, thread, url = start(create_app(service, access, settings))
            photos = {name: (root / name).read_bytes() for name in ("good.png", "bad.png")}
            operator = {"Authorization": f"Bearer {access.sign_in.text}"}
            with httpx2.Client(base_url=url, timeout=90, headers=operator) as client:
                yield Running(url, service, keys, access, client, photos, root / "home", settings)
            running.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def export(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of `refdiff export`, of the product of the server."""
    path = tmp_path_factory.mktemp("export") / "board.refdiff"
    export_product(server.service.workspace, "board", path, by="the first")
    return path
