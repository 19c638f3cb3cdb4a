"""The service and the command line with the records, and the checkpoints, in a real Postgres."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from refdiff.agent.checkpoints import open_checkpoints
from refdiff.agent.inspector import Inspector
from refdiff.agent.service import InspectionService
from refdiff.memory.journals.jobs import JobStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnavailableError
from refdiff.server.cli import main
from refdiff.server.settings import ServerSettings
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.workspace import Workspace

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.parametrize("database", ["postgres"], indirect=True),
    pytest.mark.usefixtures("database"),
]


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")


def _photo(ready: Path) -> Upload:
    return Upload("good.png", (ready / "good.png").read_bytes())


def test_inspection_waits_while_postgres_is_down(
    ready: Path, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, stopped, inspect = threading.Event(), threading.Event(), InspectionService._inspect

    def held(service: InspectionService, job: Any) -> str:
        begun.set()
        assert stopped.wait(60)
        return inspect(service, job)

    monkeypatch.setattr(InspectionService, "_inspect", held)
    with InspectionService.open() as service:
        first = service.submit(part_id="1", product="board", photo=_photo(ready), by="me")
        assert begun.wait(60)
        postgres_server.stop()
        try:
            stopped.set()
            deadline = time.monotonic() + 60
            while "is unavailable" not in (service._queue.outage or ""):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with pytest.raises(UnavailableError, match="is unavailable"):  # not accepted, so not lost
                service.submit(part_id="2", product="board", photo=_photo(ready), by="me")
        finally:
            postgres_server.start()
        assert service.wait(first.inspection_id, 120).state == "done"
        second = service.submit(part_id="2", product="board", photo=_photo(ready), by="me")
        assert service.wait(second.inspection_id, 120).state == "done"
        assert service.stores.inspections.search().total == 2
        assert service.stores.audit.verify_store(photos=True).problem is None


def test_job_accepted_in_the_moment_in_which_postgres_goes_down_is_run_when_it_is_back(
    ready: Path, postgres_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = JobStore.add

    def then_down(*given: Any, **more: Any) -> Any:
        accepted = add(*given, **more)
        postgres_server.stop()
        return accepted

    with InspectionService.open() as service:
        with monkeypatch.context() as m:
            m.setattr(JobStore, "add", then_down)
            try:
                job = service.submit(part_id="1", product="board", photo=_photo(ready), by="me")
            finally:
                postgres_server.start()
        assert service.wait(job.inspection_id, 120).state == "done"


def test_postgres_that_does_not_answer_is_an_outage(
    ready: Path, postgres_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Workspace.open() as workspace:
        postgres_server.stop()
        try:
            with pytest.raises(UnavailableError, match="checkpoint database is unavailable"):
                Inspector(workspace).__enter__()
            with pytest.raises(UnavailableError, match="is it running"):
                Stores.open()
            assert main.run(["inspections", "list"]) == 69
            assert "is it running, and REFDIFF_DATABASE_URL right?" in capsys.readouterr().err
            assert main.run(["doctor"]) == 65
            assert "the records could not be read, so not all was examined" in capsys.readouterr().out
        finally:
            postgres_server.start()


def test_requests_are_answered_503_while_postgres_is_down(ready: Path, postgres_server: Any) -> None:
    settings = ServerSettings()
    with InspectionService.open() as service:
        key = {"Authorization": f"Bearer {service.stores.keys.add('line 3', 'inspector', 'me')[1]}"}
        app = create_app(service, Access(service.stores.keys, loopback=False, user="me"), settings)
        with TestClient(app, base_url="http://localhost") as client:
            assert client.get("/v1/products", headers=key).status_code == 200
            postgres_server.stop()
            try:
                answer = client.get("/v1/products", headers=key)
            finally:
                postgres_server.start()
            assert answer.status_code == 503
            assert "is unavailable" in answer.json()["error"]["message"]
            assert answer.headers["retry-after"]
            assert client.get("/v1/products", headers=key).status_code == 200


def test_processes_that_begin_at_once_share_a_fresh_database(tmp_path: Path, postgres_server: Any) -> None:
    url, errors = SecretStr(postgres_server.new_database()), []
    together = threading.Barrier(4)

    def begin() -> None:
        try:
            together.wait(10)
            with open_checkpoints(tmp_path, url) as checkpoints:
                assert checkpoints.threads() == []
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=begin, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def test_one_server_at_a_time_uses_a_database(ready: Path, tmp_path: Path) -> None:
    elsewhere = MemorySettings(home=tmp_path / "elsewhere")
    with (
        InspectionService.open(),
        pytest.raises(UnavailableError, match="another refdiff server is using the database"),
    ):
        InspectionService.open(elsewhere)
    InspectionService.open(elsewhere).close()


def test_commands_inspect_decide_and_examine(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, postgres_server: Any
) -> None:
    def run(*command: str) -> tuple[int, Any]:
        code = main.run([*command, "--json"])
        return code, json.loads(capsys.readouterr().out or "null")

    code, report = run("inspect", "--part", "7", "--image", "bad.png", "--product", "board")
    assert code == 1
    assert run("review", report["inspection_id"], "--accept", "--reason", "seen")[0] == 0
    assert run("keys", "add", "line 3", "--role", "viewer")[0] == 0
    assert run("audit", "verify", "--store")[0] == 0
    assert run("audit", "export", "--out", "a.jsonl")[0] == 0
    assert run("audit", "verify", "a.jsonl", "--store")[0] == 0
    assert run("inspections", "list")[1]["inspections"][0]["inspection_id"] == report["inspection_id"]
    code, found = run("doctor", "--deep")
    assert (code, found["findings"]) == (0, [])
    assert not list((ready / "home").glob("refdiff.sqlite"))
    assert run("backup", "b.tar")[0] == 0
    monkeypatch.setenv("REFDIFF_HOME", str(ready / "again"))
    assert run("restore", "b.tar")[0] == 65  # that database has records
    monkeypatch.setenv("REFDIFF_DATABASE_URL", postgres_server.new_database())
    assert run("restore", "b.tar")[1]["audit"]["intact"]
    assert run("doctor", "--deep")[1]["findings"] == []
    assert run("inspections", "show", report["inspection_id"])[1]["verdict"] == "FAIL"


def test_records_are_moved_once_and_not_lost_sight_of(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main.run(["move-records"]) == 65
    assert "nothing is to be moved" in capsys.readouterr().err
    (ready / "home" / "refdiff.sqlite-moved").rename(ready / "home" / "refdiff.sqlite")
    assert main.run(["move-records"]) == 65
    assert "already has records" in capsys.readouterr().err
    assert main.run(["goldens", "list"]) == 69
    assert "refdiff move-records" in capsys.readouterr().err
