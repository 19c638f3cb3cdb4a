"""`refdiff goldens list` and `reenroll` about golden samples of another encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import render
from refdiff.server.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main.run([*arguments, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_goldens_of_another_working_size_are_listed_as_such_and_enrolled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        picture = render("circuit", 1, i, size=(96, 128), noise_seed=i).image
        (tmp_path / f"{i}.png").write_bytes(encode_png(picture))
    photos = [str(tmp_path / f"{i}.png") for i in range(2)]
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    assert run(capsys, "enroll", "--product", "board", *photos)[0] == 0
    before = run(capsys, "goldens", "list")[1]
    assert (len(before["goldens"]), before["notes"]) == (2, [])

    monkeypatch.setenv("REFDIFF_WORKING_PX", "128")
    code, listed, errors = run(capsys, "goldens", "list")
    assert (code, listed["goldens"]) == (0, [])
    assert listed["notes"][0].startswith(
        "2 golden samples were enrolled with other weights or another REFDIFF_WORKING_PX"
    )
    assert "refdiff goldens reenroll" in errors
    assert main.run(["goldens", "list"]) == 0
    assert "no golden samples" not in capsys.readouterr().out
    code, _, errors = run(capsys, "calibrate", "--product", "board")
    assert (code, "2 golden samples were enrolled with" in errors) == (65, True)
    code, _, errors = run(capsys, "inspect", "--part", "1", "--product", "board", "--image", photos[0])
    assert (code, "refdiff goldens reenroll" in errors) == (65, True)
    code, made, _ = run(capsys, "goldens", "reenroll")
    assert (code, made) == (0, {"restored": before["goldens"], "refused": []})
    assert run(capsys, "goldens", "list")[1] == before
    assert main.run(["goldens", "reenroll"]) == 0
    assert "nothing to enrol again" in capsys.readouterr().out
