"""Commands with the golden samples on a Qdrant server: its HTTP API, with Qdrant's engine behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from qdrant_contract import Contract

from refdiff.server.cli import main

from .conftest import said


@pytest.fixture
def on_server(ready: Path, contract: Contract, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home with its golden samples enrolled on the server again."""
    monkeypatch.setenv("QDRANT_URL", contract.url)
    monkeypatch.setenv("QDRANT_API_KEY", str(contract.api_key))
    assert main.run(["enroll", "--product", "board", "photos"]) == 0
    return ready


def checks(document: Any) -> dict[str, Any]:
    return {check["name"]: check for check in document["checks"]}


def test_home_inspects_backs_up_and_prunes_by_a_server_as_by_its_own_bank(
    ready: Path, contract: Contract, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    photos = {"good.png": 0, "bad.png": 1}
    embedded = {
        photo: said(capsys, "inspect", "--part", photo, "--product", "board", "--image", photo) for photo in photos
    }
    request.getfixturevalue("on_server")
    (ready / "home" / "goldens.sqlite").unlink()
    for photo, code in photos.items():
        code_here, report = said(capsys, "inspect", "--part", photo, "--product", "board", "--image", photo)
        assert code_here == embedded[photo][0] == code
        for field in ("verdict", "p_value"):
            assert report[field] == embedded[photo][1][field]
    code, found = said(capsys, "doctor")
    assert (code, found["sound"]) == (0, True)
    assert checks(found)["golden bank"]["says"] == "Qdrant server, 22 golden samples of 1 products"
    capsys.readouterr()
    assert main.run(["backup", "copy.tar"]) == 0
    assert "take a snapshot there too" in "".join(capsys.readouterr())
    code, pruned = said(capsys, "prune", "--older-than", "0d")
    assert (code, pruned["inspections"]) == (0, 4)
    assert said(capsys, "doctor")[0] == 0, "the photos of golden samples are there still"


def test_doctor_tells_settings_that_come_after_the_collection(
    on_server: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_QDRANT_QUANTIZATION", "int8")
    found = checks(said(capsys, "doctor")[1])["golden bank"]
    assert found["status"] == "warning"
    assert "REFDIFF_QDRANT_QUANTIZATION is int8, it was made with none" in json.dumps(found)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("QDRANT_API_KEY", "", "refuses the key (401"),
        ("QDRANT_URL", "http://127.0.0.1:9", "does not answer (ConnectError)"),
    ],
)
def test_server_that_cannot_be_asked_ends_commands_with_69_and_loses_nothing(
    on_server: Path, contract: Contract, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    variable: str, value: str, message: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as m:
        m.setenv(variable, value)
        for command in (
            ["enroll", "--product", "board", "good.png"],
            ["inspect", "--part", "1", "--product", "board", "--image", "good.png"],
            ["goldens", "list"],
        ):
            code, document = said(capsys, *command)
            assert (code, document["error"]["type"]) == (69, "UnavailableError"), command
            assert message in document["error"]["message"]
            assert str(contract.api_key) not in document["error"]["message"]
    assert len(said(capsys, "goldens", "list")[1]["goldens"]) == 22
