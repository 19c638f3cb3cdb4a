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
from refdiff.memory.photos.bucket_images import BucketImages
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
    assert json.loads(capsys.readouterr().out) == {"photos": 22, "damaged": [], "url": url}
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


def test_backup_needs_the_bucket_and_its_restore_leaves_no_photo_in_the_home(
    ready: Path,
    bucket: str,
    s3: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, again = tmp_path / "b", str(s3.new_bucket("again"))
    monkeypatch.delenv("REFDIFF_OBJECTS_URL")
    assert main.run(["backup", str(made)]) == 69
    assert f"its photos are in {bucket}; set REFDIFF_OBJECTS_URL" in capsys.readouterr().err
    assert not made.exists()
    monkeypatch.setenv("REFDIFF_OBJECTS_URL", bucket)
    broken, *others = sorted(BucketImages(bucket).ids())
    s3.overwrite(BucketImages(bucket).where(broken), b"another")
    assert main.run(["backup", str(made)]) == 0

    monkeypatch.setenv("REFDIFF_OBJECTS_URL", again)
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("refdiff.memory.photos.bucket_images._TRIES", 1)
    s3.stop()
    try:
        assert main.run(["restore", str(made)]) == 69
    finally:
        s3.start()
    assert "repeat: refdiff move-photos" in capsys.readouterr().err
    assert main.run(["move-photos", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"photos": 21, "damaged": [broken], "url": again}
    assert f"1 photos are damaged, and not in the bucket: {broken}" in said.err
    assert sorted(BucketImages(again).ids()) == others

    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "home2"))
    assert main.run(["restore", str(made)]) == 0
    assert broken in capsys.readouterr().err
    assert not [p.name for p in (tmp_path / "home2").glob("images*")]


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
