"""The service with its photos in a bucket: the same inspections, the same rights, and a worker that has another home."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from refdiff.agent.service import InspectionService
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import UnavailableError
from refdiff.server.cli import main
from refdiff.server.settings import ServerSettings
from refdiff.server.web.access import Access
from refdiff.server.web.app import create_app
from refdiff.tools.golden_samples.photos import Upload

from .conftest import bad_photo, good_photo


@pytest.fixture(autouse=True)
def bucket(ready: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Of the photos of the home that is ready."""
    url = str(s3.new_bucket("line"))
    monkeypatch.setenv("REFDIFF_LLM", "off")
    monkeypatch.setenv("REFDIFF_OBJECTS_URL", url)
    assert main.run(["move-photos", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"photos": 22, "url": url}
    return url


def test_inspection_and_its_pictures_need_no_photo_in_the_home(ready: Path) -> None:
    with InspectionService.open() as service:
        key = service.stores.keys.add("page", "viewer", "me")[1]
        job = service.submit(part_id="1", product="board", photo=Upload("p.png", bad_photo(50)), by="me")
        assert service.wait(job.inspection_id, 120).state == "done"
        assert service.artefact(job.inspection_id, "html").is_file()
        app = create_app(service, Access(service.stores.keys, loopback=False, user="me"), ServerSettings())
        with TestClient(app, base_url="http://localhost") as client:
            place = f"/v1/inspections/{job.inspection_id}/artefacts/overlay"
            assert client.get(place).status_code == 401
            answer = client.get(place, headers={"Authorization": f"Bearer {key}"})
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert service.stores.audit.verify_store(photos=True).problem is None
    assert not (ready / "home" / "images").exists()


def test_inspection_waits_while_the_object_store_is_away(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.memory.photos.bucket_images._TRIES", 1)
    with InspectionService.open() as service:
        part = service.capture("1", Upload("p.png", good_photo(51)), "board")
        s3.stop()
        try:
            job = service.submit(part_id="1", capture_id=part.capture_id, by="me")
            with pytest.raises(UnavailableError, match="does not answer"):
                service.submit(part_id="2", product="board", photo=Upload("p.png", good_photo(52)), by="me")
            assert service.wait(job.inspection_id, 2).state in ("queued", "running")
        finally:
            s3.start()
        assert service.wait(job.inspection_id, 120).state == "done"
        assert [r.part_id for r in service.stores.inspections.list()] == ["1"]


@pytest.mark.postgres
def test_worker_with_a_home_of_its_own_shares_database_and_bucket(
    ready: Path, tmp_path: Path, postgres: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden bank would be on a Qdrant server; here it is copied."""
    monkeypatch.setenv("REFDIFF_DATABASE_URL", postgres)
    assert main.run(["move-records"]) == 0
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(ready / "home" / "goldens.sqlite", other)
    elsewhere = MemorySettings(home=other, database_url=SecretStr(postgres), objects_url=bucket)
    with (
        InspectionService.open(role="server") as server,
        InspectionService.open(elsewhere, role="worker") as worker,
    ):
        jobs = [
            server.submit(part_id=str(i), product="board", photo=Upload("p.png", good_photo(60 + i)), by="me")
            for i in range(2)
        ]
        assert [server.wait(j.inspection_id, 120).state for j in jobs] == ["done", "done"]
        assert worker.finished["done"] == 2
        assert server.artefact(jobs[0].inspection_id, "html").is_file()
        assert server.stores.audit.verify_store(photos=True).problem is None
