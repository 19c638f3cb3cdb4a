"""`refdiff doctor`, `backup` and `restore`, and a home that was moved, on real inspections."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import pytest

from refdiff.agent.filing import filed_report
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import main

from .conftest import said


def test_backup_is_restored_elsewhere_and_its_reports_name_the_new_place(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    _, first = said(capsys, "inspect", "--part", "1", "--product", "board", "--image", "good.png")
    _, second = said(capsys, "inspect", "--part", "2", "--product", "board", "--image", "bad.png")
    with contextlib.closing(sqlite3.connect(ready / "home" / "refdiff.sqlite", isolation_level=None)) as conn:
        filed = {i: json.loads(text) for i, text in conn.execute("SELECT inspection_id, report FROM inspections")}
    for report in (first, second):
        kept = filed[report["inspection_id"]]["artefacts"]
        assert kept.keys() == report["artefacts"].keys()
        assert not any(Path(p).is_absolute() for p in kept.values())
        assert {n: str(ready / "home" / p) for n, p in kept.items()} == report["artefacts"]
        assert str(ready) not in Path(report["artefacts"]["markdown"]).read_text()
        assert str(ready) not in Path(report["artefacts"]["report"]).read_text()

    code, made = said(capsys, "backup", "backup.tar")
    assert (code, made["damaged"]) == (0, [])
    (ready / "home").rename(ready / "lost")
    monkeypatch.setenv("REFDIFF_HOME", str(ready / "moved"))
    code, restored = said(capsys, "restore", "backup.tar")
    assert (code, restored["files"], restored["sha256"]) == (0, made["files"], made["sha256"])
    assert restored["audit"]["intact"]

    # a report of an earlier version names the place of the home at the time of filing
    old = filed[second["inspection_id"]]
    old["artefacts"] = {n: f"/nowhere/home/{p}" for n, p in old["artefacts"].items()}
    with contextlib.closing(sqlite3.connect(ready / "moved" / "refdiff.sqlite", isolation_level=None)) as conn:
        conn.execute(
            "UPDATE inspections SET report = ? WHERE inspection_id = ?", (json.dumps(old), second["inspection_id"])
        )
    moved = {n: p.replace("/home/", "/moved/") for n, p in second["artefacts"].items()}
    with Stores.open() as stores:
        found = filed_report(stores, second["inspection_id"]).artefacts
    assert found.model_dump(exclude_none=True) == moved
    shown = said(capsys, "inspections", "show", first["inspection_id"])[1]["artefacts"]
    assert shown == {n: p.replace("/home/", "/moved/") for n, p in first["artefacts"].items()}
    assert all(Path(p).is_file() for p in (*shown.values(), *moved.values()))
    code, again = said(capsys, "inspect", "--part", "2")
    assert (code, again["verdict"]) == (1, second["verdict"])
    assert said(capsys, "restore", "backup.tar")[0] == 65


def test_doctor_ends_with_65_where_something_is_missing(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, sound = said(capsys, "doctor")
    assert (code, sound["sound"], sound["findings"]) == (0, True, [])
    goldens = said(capsys, "goldens", "list")[1]["goldens"]
    photo = ready / "home" / "images" / goldens[0]["sha256"][:2] / goldens[0]["sha256"]
    photo.unlink()
    code, found = said(capsys, "doctor")
    assert (code, found["sound"]) == (65, False)
    [finding] = found["findings"]
    assert (finding["kind"], finding["count"]) == ("missing", 1)
    assert goldens[0]["golden_id"] in finding["names"][0]
    assert goldens[0]["filename"] in finding["names"][0]
    capsys.readouterr()
    assert main.run(["doctor"]) == 65
    assert "something is missing or damaged" in capsys.readouterr().out


def test_lost_main_database_is_refused_by_every_command(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "home" / "refdiff.sqlite").unlink()
    for command in (["inspections", "list"], ["audit", "verify", "--store"], ["capture", "--part", "1", "--product", "board",
                    "good.png"], ["goldens", "list"], ["keys", "list"], ["review"]):  # fmt: skip
        code, document = said(capsys, *command)
        assert (code, document["error"]["type"]) == (69, "StorageError"), command
        assert "refdiff restore" in document["error"]["message"]
    assert not (ready / "home" / "refdiff.sqlite").exists()
    code, found = said(capsys, "doctor")
    assert code == 65
    assert ["refdiff.sqlite"] in [f["names"] for f in found["findings"] if f["kind"] == "missing"]


@pytest.mark.parametrize("value", [""])
def test_empty_folder_settings_are_unset(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as m:
        m.delenv("REFDIFF_HOME")
        m.delenv("REFDIFF_CACHE")
        usual = MemorySettings().home, ModelSettings().cache
    monkeypatch.setenv("REFDIFF_HOME", value)
    monkeypatch.setenv("REFDIFF_CACHE", value)
    assert (MemorySettings().home, ModelSettings().cache) == usual
    assert tmp_path not in (usual[0], usual[1])


def test_home_that_is_made_by_a_look_at_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "typo"))
    told = f"{tmp_path / 'typo'} was not there and is a new home folder now; if yours is elsewhere, set REFDIFF_HOME"
    for expected in (True, False):
        assert main.run(["inspections", "list", "--json"]) == 0
        assert (told in " ".join(capsys.readouterr().err.split())) is expected


def test_doctor_names_keys_that_expire_soon_until_they_are_rotated(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line() -> tuple[str, str]:
        checks = said(capsys, "doctor")[1]["checks"]
        (found,) = (c for c in checks if c["name"] == "API keys")
        return found["status"], found["says"]

    assert said(capsys, "keys", "add", "ana", "--role", "viewer", "--expires", "90d")[0] == 0
    assert line() == ("ok", "1 valid")
    _, key = said(capsys, "keys", "add", "line 3", "--role", "inspector", "--expires", "10d")
    status, says = line()
    assert status == "warning"
    assert f"line 3 ({key['key_id']}" in says
    assert "ana" not in says
    code, new = said(capsys, "keys", "rotate", "line 3", "--keep", "2d", "--expires", "8w")
    assert (code, new["replaces"]["key_id"]) == (0, key["key_id"])
    assert new["replaces"]["expires_at"] < key["expires_at"] < new["expires_at"]
    assert line() == ("ok", "3 valid")
    listed = {k["key_id"]: k["expires_at"] for k in said(capsys, "keys", "list")[1]["keys"]}
    assert listed[key["key_id"]] == new["replaces"]["expires_at"]
    assert said(capsys, "keys", "add", "x", "--role", "viewer", "--expires", "soon")[0] == 64
    assert said(capsys, "keys", "rotate", "ana")[0] == 0
