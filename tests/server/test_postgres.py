"""Checkpoints in a real Postgres: an inspection waits while it is down. Needs the extra `postgres` and its server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from refdiff.agent.inspector import Inspector
from refdiff.agent.service import InspectionService
from refdiff.model.errors import UnavailableError
from refdiff.server.sockets import listen
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.workspace import Workspace

pytest.importorskip("psycopg_pool")
pytestmark = pytest.mark.skipif(not shutil.which("initdb"), reason="needs a Postgres server")
_USER = "postgres" if os.geteuid() == 0 else None  # Postgres refuses to run as root


class Postgres:
    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        with listen("127.0.0.1", 0) as free:
            self._port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        self._run("initdb", "-A", "trust", "-U", "postgres", "-D", self._data)

    def start(self) -> None:
        options = f"-p {self._port} -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", self._data / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def _run(self, *command: str | Path) -> None:
        subprocess.run(command, check=True, user=_USER, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture
def postgres(monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    with tempfile.TemporaryDirectory() as folder:
        if _USER:
            shutil.chown(folder, _USER)
        server = Postgres(Path(folder))
        server.start()
        monkeypatch.setenv("REFDIFF_CHECKPOINT_URL", server.url)
        yield server
        server.stop()


def test_inspection_waits_while_postgres_is_down(
    ready: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    with InspectionService.open() as service:
        photo = Upload("good.png", (ready / "good.png").read_bytes())
        first = service.submit(part_id="1", product="board", photo=photo, by="me")
        assert service.wait(first.inspection_id, 120).state == "done"
        postgres.stop()
        second = service.submit(part_id="2", product="board", photo=photo, by="me")
        said = next(p for p in service.follow(second.inspection_id, 120) if p.kind == "retry")
        assert "the checkpoint database is unavailable" in said.message
        postgres.start()
        assert service.wait(second.inspection_id, 120).state == "done"


def test_missing_postgres_is_an_outage(ready: Path, postgres: Postgres) -> None:
    postgres.stop()
    try:
        with Workspace.open() as workspace, pytest.raises(UnavailableError, match="checkpoint database is unavailable"):
            Inspector(workspace).__enter__()
    finally:
        postgres.start()
