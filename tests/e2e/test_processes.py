"""Several commands on one home at once, killed, and with a disk that fills up in the middle: real processes of the installed
script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.server.cli import main
from refdiff.tools.workspace import Workspace

REFDIFF = Path(sys.executable).with_name("refdiff")
LIMITED = """import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(sys.argv[1]),))
os.execv(sys.argv[2], sys.argv[2:])
"""
VERDICTS = {"PASS": 0, "FAIL": 1, "REVIEW": 2}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with good/00.png to good/19.png and part.png; the working directory. Small, so that processes are quick."""
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    folder = tmp_path / "photos"
    (folder / "good").mkdir(parents=True)
    for i in range(20):
        (folder / "good" / f"{i:02}.png").write_bytes(photo(i))
    (folder / "part.png").write_bytes(photo(77))
    monkeypatch.chdir(folder)
    return folder


def photo(instance: int) -> bytes:
    return encode_png(render("circuit", 1, instance, size=(96, 128), noise_seed=instance).image)


def start(*arguments: str, file_limit: int | None = None) -> subprocess.Popen[str]:
    """file_limit: no file may grow past so many bytes; writes then fail in the kernel as they do on a full disk."""
    command = [str(REFDIFF), *arguments, "--json"]
    if file_limit is not None:
        command = [sys.executable, "-c", LIMITED, str(file_limit), *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = process.communicate(timeout=200)
    assert "Traceback" not in err
    return process.returncode, json.loads(out)


def here(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """A command in this process: as good where nothing is shared or limited, and faster."""
    capsys.readouterr()
    code = main.run([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def check_bank(wanted: int) -> None:
    """Every golden is whole: its photo reads, its vectors are there and find it."""
    settings = ModelSettings()
    with Workspace.open(MemorySettings(qdrant_url=None), settings) as workspace:
        goldens = workspace.bank.list("board")
        assert len(goldens) == wanted
        for golden in goldens:
            assert workspace.golden_image(golden).shape == (96, 128, 3)
            vectors = workspace.bank.vectors(golden.golden_id)
            assert workspace.bank.nearest("board", *vectors, 1)[0].golden == golden


@pytest.mark.long
def test_concurrent_enrol_and_inspect_commands_all_succeed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes on one home give the same results as one after the other."""
    assert here(capsys, "enroll", "--product", "board", *(f"good/{i:02}.png" for i in range(4)))[0] == 0
    assert here(capsys, "capture", "--part", "1", "--product", "board", "part.png")[0] == 0
    crowd = [
        start("enroll", "--product", "board", "good"),
        start("inspect", "--part", "1"),
        start("enroll", "--product", "board", *(f"good/{i:02}.png" for i in range(8, 20))),
    ]
    (code_a, first), (code_i, report), (code_b, second) = map(finish, crowd)
    assert (code_a, code_b) == (0, 0), (first, second)
    assert code_i == VERDICTS[report["verdict"]]
    # whoever came first, each photo is enrolled by one and known to the other
    assert len(first["added"]) + len(second["added"]) == 16
    assert len(first["already_there"]) + len(second["already_there"]) == 16
    check_bank(20)
    filed = here(capsys, "inspections", "list")[1]["inspections"]
    assert [i["inspection_id"] for i in filed] == [report["inspection_id"]]
    assert all(Path(p).is_file() for p in report["artefacts"].values())


def test_command_gives_up_when_the_bank_stays_busy(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here(capsys, "enroll", "--product", "board", "good/00.png")[0] == 0
    monkeypatch.setenv("REFDIFF_BANK_WAIT_S", "0.2")
    with GoldenBank.open(MemorySettings(qdrant_url=None), "another", 4, 3):
        code, document = finish(start("enroll", "--product", "board", "good/01.png"))
        assert (code, document["error"]["type"]) == (69, "BankBusyError")
        assert here(capsys, "capture", "--part", "1", "--product", "board", "part.png")[0] == 0  # needs no bank
    check_bank(1)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("limit", [300_000, 400_000, 500_000])
def test_full_disk_while_enrolling_keeps_what_was_acknowledged(
    photos: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    code, document = finish(start("enroll", "--product", "board", "good", file_limit=limit))
    message = document["error"]["message"]
    assert (code, document["error"]["type"]) == (69, "StorageError"), message
    assert "the disk" in message
    done = int(message.partition(" photos were enrolled before")[0].rpartition("(")[2])
    assert 0 < done < 20
    check_bank(done)  # what was acknowledged is there, and nothing half
    code, again = here(capsys, "enroll", "--product", "board", "good")
    assert (code, len(again["already_there"]), len(again["added"]), again["refused"]) == (0, done, 20 - done, [])
    check_bank(20)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("limit", [20_000, 150_000], ids=["at the start", "in the middle"])
def test_full_disk_while_inspecting_files_nothing_and_can_be_repeated(
    photos: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    assert here(capsys, "enroll", "--product", "board", *(f"good/{i:02}.png" for i in range(5)))[0] == 0
    assert here(capsys, "capture", "--part", "1", "--product", "board", "part.png")[0] == 0
    code, document = finish(start("inspect", "--part", "1", file_limit=limit))
    assert (code, document["error"]["type"]) == (69, "StorageError"), document
    assert not (Path(os.environ["REFDIFF_HOME"]) / "logs").exists()  # nothing internal failed
    assert here(capsys, "inspections", "list")[1] == {"inspections": []}  # no exit 1 or 2, so nothing is filed
    code, report = here(capsys, "inspect", "--part", "1")
    assert code == VERDICTS[report["verdict"]]
    assert len(here(capsys, "inspections", "list")[1]["inspections"]) == 1
    assert not list(Path(os.environ["REFDIFF_HOME"]).rglob(".tmp-*"))


KILLED: dict[str, tuple[tuple[str, ...], str]] = {  # arguments, and what is there once it is at work
    "capture": (("capture", "--part", "2", "--product", "board", "good/19.png"), "home/refdiff.sqlite-wal"),
    "inspect": (("inspect", "--part", "1"), "home/locks/*.lock"),
    "calibrate": (("calibrate", "--product", "board"), "home/goldens.sqlite-wal"),
    "enroll": (("enroll", "--product", "board", "good"), "home/images/*/.tmp-*"),
    "backup": (("backup", "made/b.tar"), "made/.tmp-*/*.sqlite"),
    "restore": (("restore", "whole.tar"), "home/.restoring/**/*.sqlite"),
    "watch": (("watch", "camera", "--product", "board", "--once"), "camera/done/*"),
}


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("command", KILLED)
def test_doctor_mends_what_a_killed_command_leaves_and_the_command_can_be_repeated(
    photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    home = photos / "home"
    monkeypatch.setenv("REFDIFF_HOME", str(home))
    assert here(capsys, "enroll", "--product", "board", *(f"good/{i:02}.png" for i in range(5)))[0] == 0
    assert here(capsys, "capture", "--part", "1", "--product", "board", "part.png")[0] == 0
    assert here(capsys, "backup", "whole.tar")[0] == 0
    (photos / "made").mkdir()
    (photos / "camera").mkdir()
    for i in range(15, 20):
        (photos / "camera" / f"p-{i}.png").write_bytes(photo(i))
    if command == "restore":
        home = photos / "new" / "home"
        monkeypatch.setenv("REFDIFF_HOME", str(home))
    arguments, sign = KILLED[command]

    process = start(*arguments)
    while process.poll() is None and not any(home.parent.glob(sign)):
        time.sleep(0.001)
    process.kill()
    process.communicate()

    for place in home.parent.rglob("*"):
        os.utime(place, (0, 0), follow_symlinks=False)  # an hour has passed
    if (home / "refdiff.sqlite").exists():
        findings = here(capsys, "doctor", "--deep", "--repair")[1]["findings"]
        assert [f for f in findings if f["kind"] not in ("leftover", "orphaned")] == []
        found = here(capsys, "doctor", "--deep")[1]["findings"]
        assert [f for f in found if f["kind"] != "orphaned"] == []
    code, document = finish(start(*arguments))
    assert code == (VERDICTS[document["verdict"]] if command == "inspect" else 0), document
    code, document = here(capsys, "doctor", "--deep")
    assert [f for f in document["findings"] if f["kind"] != "orphaned"] == []
    here(capsys, "capture", "--part", "1", "--product", "board", "part.png")  # opened and closed: nothing is in use
    left = [p for p in home.parent.rglob("*") if p.name.startswith((".tmp-", ".restoring")) or p.parent.name == "locks"]
    assert left == []
