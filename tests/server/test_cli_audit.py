"""`refdiff audit` on a real inspection: export, check, and the record that was changed."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from refdiff.agent.service import InspectionService
from refdiff.model.errors import TamperedError
from refdiff.server.cli import main

from .conftest import said


def test_audit_export_traces_an_inspection_and_reports_tampering(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_USER", "ana")
    code, report = said(capsys, "inspect", "--part", "7", "--image", "bad.png", "--product", "board")
    assert code == 1
    inspection = report["inspection_id"]
    code, _ = said(capsys, "review", inspection, "--accept", "--reason", "scratched", "--by", "bob")
    assert code == 0
    code, written = said(capsys, "audit", "export", inspection, "--out", "a.jsonl")
    assert (code, written["records"]) == (0, 2)
    filed, decided = [json.loads(line) for line in (ready / "a.jsonl").read_text().splitlines()[1:-1]]
    assert filed["by"] == "ana"
    assert filed["content"] | {"artefacts": {}} == report | {"artefacts": {}}  # shown where the home lies now
    assert filed["facts"]["query_sha256"] == report["query_sha256"]
    assert filed["facts"]["goldens"][0]["golden_id"] == report["reference"]["golden_id"]
    assert filed["facts"]["software"]["weights_sha256"]
    assert len(filed["facts"]["tools"]) == len(report["tool_trace"])
    assert (decided["by"], decided["content"]["reason"]) == ("bob", "scratched")
    code, checked = said(capsys, "audit", "verify", "a.jsonl", "--store", "--photos")
    assert (code, checked["intact"]) == (0, True)
    assert main.run(["audit", "verify", "a.jsonl"]) == 0
    assert f"head {written['head']}" in capsys.readouterr().out

    text = (ready / "a.jsonl").read_text()
    (ready / "a.jsonl").write_text(text.replace('"by":"bob"', '"by":"eve"'))
    code, checked = said(capsys, "audit", "verify", "a.jsonl")
    assert (code, checked["intact"], checked["error"]["type"]) == (65, False, "TamperedError")
    assert f"record {decided['seq']} (inspection {inspection})" in checked["error"]["message"]
    with sqlite3.connect(ready / "home" / "refdiff.sqlite") as outside:
        outside.execute("UPDATE inspections SET report = replace(report, '\"FAIL\"', '\"PASS\"')")
    code, checked = said(capsys, "audit", "verify", "--store")
    assert code == 65
    assert f"record {filed['seq']} " in checked["error"]["message"]
    code, written = said(capsys, "audit", "export", "--out", "b.jsonl")  # no proof of a trail that is broken
    assert (code, written["error"]["type"]) == (65, "TamperedError")
    with sqlite3.connect(ready / "home" / "refdiff.sqlite") as outside:
        outside.execute("UPDATE inspections SET report = 'x'")
    code, written = said(capsys, "audit", "export", "--out", "c.jsonl")
    assert (code, written["error"]["type"]) == (65, "TamperedError")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["export", "--out", "."], 65),
        (["export", "no-such", "--out", "a"], 65),
        (["export", "--since", "soon", "--out", "a"], 65),
        (["export", "x", "--since", "2026", "--out", "a"], 64),
        (["export", "--out", "no/such/folder/a"], 69),
        (["verify"], 64),
        (["verify", "a", "--photos"], 64),
        (["verify", "no-such-file"], 65),
        (["verify", "--store"], 0),
        (["export", "--out", "a"], 0),
    ],
)
def test_audit_command_ends_with_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["audit", *command]) == code
    assert not (tmp_path / "a").exists() or code == 0


def test_fail_turned_pass_by_a_specification_that_was_put_back_is_visible(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_USER", "eve")
    monkeypatch.setenv("REFDIFF_LLM", "off")
    (ready / "lenient.yaml").write_text("limits: [{type: any, max_area_px: 1000000, severity: minor}]")
    (ready / "empty.yaml").write_text("{}")
    photo = ("--image", "bad.png", "--product", "board")
    _, fail = said(capsys, "inspect", "--part", "1", *photo)
    assert said(capsys, "product", "set", "board", "--spec", "lenient.yaml")[0] == 0
    _, passed = said(capsys, "inspect", "--part", "2", *photo)
    assert said(capsys, "product", "set", "board", "--spec", "empty.yaml")[0] == 0
    assert (fail["verdict"], passed["verdict"]) == ("FAIL", "PASS")

    code, listed = said(capsys, "audit", "list", "--kind", "product", "--about", "board")
    changed, restored = listed["changes"]
    assert (code, changed["by"], restored["by"]) == (0, "eve", "eve")
    assert '"max_area_px":1000000.0' in changed["facts"]["change"]
    assert passed["specification"]["sha256"] == changed["facts"]["after"] == restored["facts"]["before"]
    assert passed["specification"]["sha256"] != fail["specification"]["sha256"]
    page = Path(passed["artefacts"]["html"]).read_text()
    assert passed["specification"]["sha256"] in page
    assert (
        f"Specification 1, SHA-256: `{passed['specification']['sha256']}`"
        in Path(passed["artefacts"]["markdown"]).read_text()
    )
    assert main.run(["audit", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("golden", "calibration", "settings", "product", "eve"))

    forged = Path(fail["artefacts"]["html"])
    forged.write_text(forged.read_text().replace("FAIL", "PASS"))
    Path(passed["artefacts"]["overlay"]).unlink()
    code, verified = said(capsys, "audit", "verify", "--store")
    assert (code, [p["inspection_id"] for p in verified["checks"][0]["problems"]]) == (
        65, [fail["inspection_id"], passed["inspection_id"]],
    )  # fmt: skip
    assert main.run(["audit", "verify", "--store"]) == 65
    told = capsys.readouterr().err
    assert "report.html is not the file that was filed" in told
    assert "overlay.png is missing" in told
    capsys.readouterr()
    assert main.run(["inspections", "show", fail["inspection_id"]]) == 65
    assert "report.html is not the file that was filed" in capsys.readouterr().err
    with InspectionService.open() as service:
        with pytest.raises(TamperedError, match=r"report\.html is not the file that was filed"):
            service.artefact(fail["inspection_id"], "html")
        assert service.artefact(fail["inspection_id"], "overlay").is_file()
