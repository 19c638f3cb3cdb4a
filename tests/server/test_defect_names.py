"""`refdiff defects`: names of findings on the command line, in backups, and to the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.cli import main

from .conftest import SIZE, said


def test_names_are_given_listed_corrected_and_kept(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defects = [DefectSpec("stain", size_px=26, contrast=1.0), DefectSpec("scratch", size_px=50, contrast=1.0)]
    scene = render("circuit", 1, 100, size=SIZE, noise_seed=100, defects=defects)
    Path("two.png").write_bytes(encode_png(scene.image))
    code, report = said(capsys, "inspect", "--part", "7", "--image", "two.png", "--product", "board")
    assert code == 1
    inspection = report["inspection_id"]
    assert len(report["findings"]) >= 2
    command = ("defects", "name", inspection)
    code, made = said(capsys, *command, "1", "Oil spot", "--by", "ana", "--note", "from the press")
    assert (code, made["finding"], made["name"], made["before"], made["note"]) == (
        0, "f1", "Oil spot", None, "from the press",
    )  # fmt: skip
    assert [n["why"] for n in made["names"]] == ["given from 3 findings on"]
    assert said(capsys, *command, "f2", "oil SPOT", "--by", "bob")[1]["name"] == "Oil spot"  # spelled as it was first
    assert said(capsys, *command, "2", "scratch", "--by", "bob")[1]["before"] == "Oil spot"
    code, found = said(capsys, "defects", "list", "--product", "board")
    assert [(n["name"], n["findings"], n["given"]) for n in found["names"]] == [
        ("Oil spot", 1, False), ("scratch", 1, False),
    ]  # fmt: skip
    assert said(capsys, "inspections", "show", inspection)[1]["findings"] == report["findings"]  # as it was filed
    assert {f: n["name"] for f, n in said(capsys, "inspections", "show", inspection)[1]["names"].items()} == {
        "f1": "Oil spot", "f2": "scratch",
    }  # fmt: skip
    assert main.run(["inspections", "show", inspection]) == 0
    assert "called        1: Oil spot, by ana" in capsys.readouterr().out

    capsys.readouterr()
    assert main.run(["defects", "list"]) == 0
    shown = capsys.readouterr().out
    assert "Oil spot" in shown
    assert inspection in shown
    for wrong, says in (
        ([*command, "9", "x"], "its findings are: f1, f2"), ([*command, "1", "<b>"], "letters, digits"),
        (["defects", "name", "insp-0", "1", "x"], "insp-0"), (["defects", "remove", inspection, "9"], "no finding '9'"),
        (["defects", "rename", "crack", "x", "--product", "board"], "its names are: Oil spot, scratch"),
    ):  # fmt: skip
        assert main.run(wrong) == 65
        assert says in capsys.readouterr().err

    code, renamed = said(capsys, "defects", "rename", "scratch", "deep scratch", "--product", "board", "--by", "cy")
    assert [(f["before"], f["name"], f["by"]) for f in renamed["findings"]] == [("scratch", "deep scratch", "cy")]
    code, gone = said(capsys, "defects", "remove", inspection, "2")
    assert (code, gone["before"], gone["name"]) == (0, "deep scratch", None)
    assert said(capsys, "audit", "verify", "--store")[0] == 0

    names = said(capsys, "defects", "list")[1]
    assert said(capsys, "backup", "home.tar")[0] == 0
    monkeypatch.setenv("REFDIFF_HOME", str(ready / "other"))
    assert said(capsys, "restore", "home.tar")[0] == 0
    assert said(capsys, "defects", "list")[1] == names
    assert said(capsys, "doctor", "--deep")[0] == 0
    picture = names["findings"][0]["picture"]
    for file in (ready / "other" / "images").rglob(f"{picture}*"):
        file.unlink()
    code, examined = said(capsys, "doctor", "--deep")
    assert code == 65
    assert any(f"picture of named finding f1 of part 7 ({picture})" in f["names"] for f in examined["findings"])
