"""`refdiff defects`: names of findings on the command line, in backups, and to the doctor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refdiff.agent.people.names import DefectNames
from refdiff.memory.records.defect_names import Sight
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.cli import main
from refdiff.tools.naming import examples
from refdiff.tools.workspace import Workspace

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
    assert [n["why"] for n in made["names"]] == ["given from findings of 3 parts on"]
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


def test_name_that_only_findings_of_two_parts_have_is_not_listed_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "weights_digest", lambda workspace: "w1")
    seen = Sight("a" * 64, "b" * 64, True, (1.0, 0, 0, 0, 1, 0, 0, 0, 1), (3, 4, 13, 24), 20.5, 9.25, 180)
    with Workspace.open(MemorySettings(home=tmp_path / "home", qdrant_url=None)) as workspace:
        stores = workspace.stores

        def named(inspection_id: str, part: str, name: str, *at: float) -> None:
            report = {"findings": [{"id": f"f{i}"} for i in range(len(at))], "verdict": "FAIL"}
            stores.inspections.file(inspection_id, part, "board", "FAIL", "2026-01-01", report)
            for i, x in enumerate(at):
                vector = np.array([x, x], np.float32)
                stores.defect_names.name(
                    inspection_id, f"f{i}", name, "ana", picture="c" * 64, sight=seen, weights="w1", vector=vector
                )

        for i in range(3):
            named(f"dust {i}", f"dust {i}", "dust", 9.0 + i / 10)
        named("chips", "1", "chip", 0.0, 0.1)
        named("chip", "2", "chip", 0.2)
        found = DefectNames(workspace).overview("board")
        told = [(n.name, n.findings, n.given, n.why) for n in found]
        assert told[0] == ("chip", 3, False, "given from findings of 3 parts on")
        named("another chip", "3", "chip", 0.3)
        assert [n.given for n in DefectNames(workspace).overview("board")] == [True, True]
