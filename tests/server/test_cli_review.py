"""`refdiff review`, `rates` and `evaluate --learned` on real inspections."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from refdiff.memory.records.adoptions import AdoptionStore
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, Light, render
from refdiff.server.cli import main

from .conftest import SIZE, bad_photo, said

OTHER_LAMP = Light(azimuth_deg=300)  # good parts from a second station, which no golden sample shows


def lamp_photo(instance: int, *defects: DefectSpec) -> bytes:
    scene = render("circuit", 1, instance, size=SIZE, noise_seed=instance, light=OTHER_LAMP, defects=defects)
    return encode_png(scene.image)


def inspect(capsys: pytest.CaptureFixture[str], part: str, photo: bytes) -> dict[str, Any]:
    Path(f"{part}.png").write_bytes(photo)
    code, report = said(capsys, "inspect", "--part", part, "--image", f"{part}.png", "--product", "board")
    assert code in (0, 1, 2), report
    return report


def test_overridden_part_becomes_a_reference_excluded_from_calibration(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Good parts under another lamp go to a person until some are taken as references; defects pass neither way."""
    data = ready / "data"
    for name in ("train/good", "test/good", "test/stain"):
        (data / name).mkdir(parents=True)
    for i in range(22):
        (data / "train/good" / f"{i}.png").write_bytes((ready / "photos" / f"{i:02}.png").read_bytes())
    stain = DefectSpec("stain", size_px=14, where=(64, 48), contrast=0.6)
    for i in range(4):
        (data / "test/good" / f"lamp{i}.png").write_bytes(lamp_photo(200 + i))
        (data / "test/stain" / f"lamp{i}.png").write_bytes(lamp_photo(300 + i, stain))
    learned = []
    for i in range(2):
        report = inspect(capsys, f"L{i}", lamp_photo(400 + i))
        assert report["verdict"] == "REVIEW", report["verdict_reason"]
        assert "lit from another direction" in report["verdict_reason"]
        command = [
            "review",
            report["inspection_id"],
            "--override",
            "--good",
            "--as-reference",
            "--reason",
            "other lamp, part is good",
        ]
        code, made = said(capsys, *command)
        assert (code, made["judged"]) == (0, "good")
        assert made["learned"]["outcome"].startswith("enrolled")
        learned.append(made["learned"]["golden_id"])
    (data / "test/good" / "seen.png").write_bytes(lamp_photo(400))  # a learned photo must not test itself

    code, shown = said(capsys, "goldens", "list", "--product", "board")
    sources = {g["golden_id"]: g["source"] for g in shown["goldens"]}
    assert [sources[g] for g in learned] == ["disposition"] * 2
    code, shown = said(capsys, "calibrate", "--product", "board")
    assert shown["n"] == 22  # as before: they are compared with, and do not count

    code, results = said(capsys, "evaluate", str(data), "--learned", "board")
    assert code == 0
    effect = results["learned"]
    assert sorted(effect["references"]) == sorted(learned)
    assert effect["left_out"] == ["test/good/seen.png"]
    assert results["n_good"] == results["n_bad"] == 4
    assert effect["before"]["false_reject_rate"] == results["false_reject_rate"] == 0.0
    assert effect["before"]["review_rate"] >= 0.5 > results["review_rate"]
    assert effect["before"]["escape_rate"] == results["escape_rate"] == 0.0
    assert {(c["before"], c["after"]) for c in effect["changed"] if not c["label"]} == {("REVIEW", "PASS")}

    code, trail = said(capsys, "audit", "verify", "--store")
    assert (code, trail["intact"]) == (0, True)
    with contextlib.closing(sqlite3.connect(MemorySettings().home / "refdiff.sqlite")) as conn:
        kinds = dict(conn.execute("SELECT kind, COUNT(*) FROM audit WHERE inspection_id != '' GROUP BY kind"))
    assert kinds == {"filed": 2, "disposition": 2, "approval": 2, "learned": 2}


def test_duplicate_reference_is_refused_with_the_reason(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = lamp_photo(400)
    first, again = inspect(capsys, "a", photo), inspect(capsys, "b", photo)
    outcomes = []
    for report in (first, again):
        command = ["review", report["inspection_id"], "--override", "--good", "--as-reference", "--reason", "good"]
        outcomes.append(said(capsys, *command)[1]["learned"])
    assert outcomes[0]["golden_id"]
    assert outcomes[1]["golden_id"] is None
    assert outcomes[0]["golden_id"] in outcomes[1]["outcome"]
    assert outcomes[1]["outcome"].startswith("refused: already enrolled")
    bad = inspect(capsys, "c", bad_photo(5))
    code, error = said(capsys, "review", bad["inspection_id"], "--accept", "--as-reference", "--reason", "scratched")
    assert (code, error["error"]["type"]) == (65, "InputError")
    with Stores.open() as stores:
        assert stores.dispositions.get(bad["inspection_id"]) is None  # nothing was decided by half


def test_reference_is_adopted_later_while_the_bank_is_in_use(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    report = inspect(capsys, "a", lamp_photo(400))
    monkeypatch.setenv("REFDIFF_BANK_WAIT_S", "0.1")
    with FileLock(ready / "home" / "qdrant.lock"):
        command = ["review", report["inspection_id"], "--override", "--good", "--as-reference", "--reason", "good"]
        code, made = said(capsys, *command)
        assert (code, made["decision"], made["learned"]) == (0, "override", None)
    code, shown = said(capsys, "goldens", "adopt")
    assert (code, shown["learned"][0]["inspection_id"]) == (0, report["inspection_id"])
    assert shown["learned"][0]["golden_id"]
    assert said(capsys, "goldens", "adopt")[1] == {"learned": []}


def test_reference_proposed_by_an_inspector_is_listed_and_decided(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspect(capsys, "a", lamp_photo(400))
    with Stores.open() as stores:  # as the server does for an inspector
        stores.dispositions.add(report["inspection_id"], "override", "carol", "dust", "good", as_reference=True)
    code, shown = said(capsys, "review")
    assert [(r["part_id"], r["by"], r["reason"]) for r in shown["references"]] == [("a", "carol", "dust")]
    assert said(capsys, "goldens", "adopt")[1] == {"learned": []}
    assert main.run(["review"]) == 0
    assert "--approve-reference" in capsys.readouterr().out
    for usage in (["--approve-reference"], [report["inspection_id"], "--approve-reference", "--accept"]):
        assert said(capsys, "review", *usage)[0] == 64
    code, made = said(
        capsys, "review", report["inspection_id"], "--approve-reference", "--reason", "seen", "--by", "dave"
    )
    assert (code, made["approved"], made["by"], made["note"]) == (0, True, "dave", "seen")
    assert made["learned"]["outcome"].startswith("enrolled")
    assert said(capsys, "review")[1]["references"] == []
    assert said(capsys, "review", report["inspection_id"], "--refuse-reference")[0] == 65


def test_adoption_killed_after_enrolling_is_recorded_as_enrolled(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    report = inspect(capsys, "a", lamp_photo(400))
    command = ["review", report["inspection_id"], "--override", "--good", "--as-reference", "--reason", "good"]
    with monkeypatch.context() as m:
        m.setattr(AdoptionStore, "add", killed)
        with pytest.raises(Killed):
            main.run([*command, "--json"])
    capsys.readouterr()
    code, shown = said(capsys, "goldens", "adopt")
    assert (code, len(shown["learned"])) == (0, 1)
    assert shown["learned"][0]["golden_id"]
    assert shown["learned"][0]["outcome"].startswith("enrolled")


def test_confirmed_defect_is_reported_as_seen_before(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(2):
        report = inspect(capsys, f"p{i}", bad_photo(30 + i))
        assert not any(f["seen_before"] for f in report["findings"] if i == 0)
        assert said(capsys, "review", report["inspection_id"], "--accept", "--reason", "as reported")[0] == 0
    report = inspect(capsys, "p9", bad_photo(40))
    seen = [f["seen_before"] for f in report["findings"]]
    assert {"parts": 2, "days": 30} in [{"parts": s["parts"], "days": s["days"]} for s in seen if s]
    assert "other part" in Path(report["artefacts"]["markdown"]).read_text()
    assert "Seen before" in Path(report["artefacts"]["html"]).read_text()
    code, reply = said(capsys, "ask", "has this been seen before?", "--about", report["inspection_id"])
    assert code == 0
    assert "the same on 2 other parts, last 30 days" in reply["answer"]


def test_blind_checks_are_drawn_answered_and_counted_in_the_rates(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_BLIND_SHARE", "1")
    reports = {
        p: inspect(capsys, p, photo) for p, photo in (("g", (ready / "good.png").read_bytes()), ("b", bad_photo(7)))
    }
    code, queue = said(capsys, "review", "--blind")
    assert [c["part_id"] for c in queue["blind_checks"]] == ["g", "b"]
    assert Path(queue["blind_checks"][1]["photo"]).read_bytes() == bad_photo(7)
    assert not {"verdict", "p_value", "image_score"} & set(json.dumps(queue).replace('"', " ").split())
    assert main.run(["review", "--blind"]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    assert "PASS" not in out
    code, error = said(capsys, "review", reports["g"]["inspection_id"], "--blind", "--good")
    assert (code, "asked for" in error["error"]["message"]) == (65, True)  # whoever had it inspected saw the verdict
    for part, word in (("g", "--good"), ("b", "--bad")):
        code, made = said(capsys, "review", reports[part]["inspection_id"], "--blind", word, "--by", "bob")
        assert (code, made["judged_by"]) == (0, "bob")
    code, error = said(capsys, "review", reports["g"]["inspection_id"], "--blind", "--bad")
    assert (code, error["error"]["type"]) == (65, "DuplicateError")
    code, found = said(capsys, "rates", "--product", "board")
    assert (code, found["n_inspections"], found["n_drawn"], found["n_waiting"]) == (0, 2, 2, 0)
    assert found["overall"]["escape"] == {"value": 0.0, "interval": pytest.approx([0, 0.79], abs=0.01), "events": 0,
                                          "n": 1, "enough": False}  # fmt: skip
    assert found["overall"]["kappa"]["value"] == 1.0
    assert main.run(["rates"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "kappa has no interval" in out


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["--blind", "--accept"], 64),
        (["x", "--blind"], 64),
        (["--blind", "--good"], 64),
        (["x", "--good"], 64),
        (["x", "--as-reference"], 64),
        (["x", "--blind", "--good"], 65),
        (["x", "--accept", "--good", "--reason", "y"], 65),
        (["--blind"], 0),
    ],
)
def test_review_command_with_wrong_options_ends_with_the_exit_code(command: list[str], code: int) -> None:
    assert main.run(["review", *command]) == code


def test_evaluate_learned_without_adopted_references_exits_with_65(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready / "data/train/good").mkdir(parents=True)
    (ready / "data/test/good").mkdir(parents=True)
    for name in ("train/good/a.png", "test/good/b.png"):
        (ready / "data" / name).write_bytes((ready / "good.png").read_bytes())
    code, error = said(capsys, "evaluate", "data", "--learned", "board")
    assert code == 65
    assert "has not learned any references yet" in error["error"]["message"]
