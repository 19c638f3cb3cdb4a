"""The command line as its callers see it: exit codes, one JSON document, no traceback, files where it says."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.memory.rows.calibrations import Calibration, Component
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.images import encode_png
from refdiff.model.weights_file import WEIGHTS
from refdiff.server.cli import inspections, invocation, main

REFDIFF = Path(sys.executable).parent / "refdiff"
PHOTO = encode_png(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    """(exit code, the JSON document on stdout, stderr) of a command with --json."""
    capsys.readouterr()
    code = main.run([*arguments, "--json"])
    written = capsys.readouterr()
    return code, json.loads(written.out), written.err


def script(*arguments: str | bytes, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([REFDIFF, *arguments], capture_output=True, timeout=120, check=False, **options)


# ---- help and usage ----

COMMANDS = [
    ["enroll"], ["capture"], ["inspect"], ["ask"], ["calibrate"], ["evaluate"], ["demo"], ["review"],
    ["product", "set"], ["product", "show"], ["product", "remove"], ["product", "name"],
    ["captures", "list"], ["captures", "remove"],
    ["goldens", "list"], ["goldens", "flag"], ["goldens", "retire"],
    ["goldens", "activate"], ["inspections", "list"], ["inspections", "show"], ["inspections", "resume"],
    ["serve"], ["keys", "add"], ["keys", "list"], ["keys", "revoke"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_help_shows_an_example_and_json(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"refdiff {' '.join(command)}" in " ".join(text.split())
    assert "--json" in text


def test_watch_help_shows_the_pattern_unescaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["watch", "--help"]) == 0
    assert "(?P<product>[a-z]+)_" in "".join(capsys.readouterr().out.split())


def test_main_help_loads_neither_networks_nor_databases() -> None:
    code = "import sys; from refdiff.server.cli import main; main.run(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "typer" in loaded
    assert {"torch", "sqlalchemy", "qdrant_client", "langgraph", "fastapi"}.isdisjoint(loaded)


@pytest.mark.parametrize("command", ["inspect", "calibrate", "watch", "serve", "mcp"])
def test_command_help_needs_neither_torch_nor_settings(command: str) -> None:
    code = "import sys; from refdiff.server.cli.main import run; print(run(sys.argv[1:]), 'torch' in sys.modules)"
    env = os.environ | {"REFDIFF_ALPHA": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout.splitlines()[-1] == "0 False"


def test_command_options_override_settings_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_ALPHA", "0.2")
    with invocation.begin(as_json=False):
        first = invocation.settings()
        assert invocation.settings() is first
        assert invocation.settings(references=None, alpha=None) is first
        assert (first.tools.alpha, invocation.settings(alpha=0.3, references=2).tools.alpha) == (0.2, 0.3)
        assert invocation.settings(threads=3).tools.references == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["inspect"],
        ["inspect", "--part", "1", "--nonsense"],
        ["inspect", "--part", "1", "--references", "0"],
        ["inspect", "--part", "1", "--references", "many"],
        ["inspect", "--part", "1", "--scale-mm-per-px", "1"],
        ["inspect", "--part", "1", "--image", "x.png"],
        ["inspect", "--part", "1", "--image", "x.png", "--image", "y.png", "--product", "p"],
        ["inspect", "--part", "1", "--part=2"],
        ["capture", "--part", "1", "--product", "p", "--scale-mm-per-px", "nan", "x.png"],
        ["calibrate", "--product", "p", "--alpha", "0.7"],
        ["evaluate", ".", "--format", "zip"],
        ["goldens", "list", "--status", "lost"],
        ["inspections", "list", "--verdict", "MAYBE"],
        ["inspections", "list", "--limit", "0"],
        ["review", "--accept", "--reason", "x"],
        ["review", "i", "--accept", "--override", "--reason", "x"],
        ["review", "i", "--accept"],
        ["review", "i", "--reason", "x"],
        ["product", "set", "p"],
    ],
    ids=" ".join,
)
def test_usage_mistake_exits_with_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 64
    assert "Traceback" not in capsys.readouterr().err
    if arguments:
        code, document, _ = call(capsys, *arguments)
        assert (code, document["error"]["exit_code"], document["error"]["type"]) == (64, 64, "UsageError")


def test_invalid_setting_exits_with_64_and_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_BANK_WAIT_S", "soon")
    code, document, _ = call(capsys, "goldens", "list")
    assert code == 64
    assert "REFDIFF_BANK_WAIT_S=soon" in document["error"]["message"]


# ---- bad input and other ends, through the installed script ----


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["inspect", "--part", "1", "--alpha", "2"], 64),
        (["inspect", "--part", "4412"], 65),
        (["inspect", "--part", "../../etc/passwd"], 65),
        (["inspect", "--part", b"\xff\xfe"], 65),
        (["inspect", "--part", "x" * 1000], 65),
        (["capture", "--part", "1", "--product", "p", "missing.png"], 65),
        (["capture", "--part", "1", "--product", "../p", "missing.png"], 65),
        (["inspections", "show", "../../x"], 65),
        (["product", "set", "p", "--spec", "missing.yaml"], 65),
        (["evaluate", "missing"], 65),
        (["ask", " "], 65),
        (["ask", "how are you?", "--image", "x.png"], 65),
    ],
)
def test_installed_script_ends_with_the_exit_code(arguments: list[str | bytes], code: int, tmp_path: Path) -> None:
    done = script(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr + done.stdout


def test_capture_of_an_invalid_image_exits_with_65(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"GIF89a")
    code, document, _ = call(capsys, "capture", "--part", "1", "--product", "p", str(bad))
    assert (code, document["error"]["type"]) == (65, "ImageError")


def test_capturing_the_same_photo_twice_gives_one_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(PHOTO)
    arguments = ("capture", "--part", "#44", "--product", "p", str(tmp_path / "a.png"), "--scale-mm-per-px", "0.1")
    first, again = call(capsys, *arguments), call(capsys, *arguments)
    assert first[0] == again[0] == 0
    assert (first[1]["part_id"], first[1]["scale_mm_per_px"]) == ("44", 0.1)
    assert first[1] == again[1]
    assert "is new" in first[2]
    assert "is new" not in again[2]


def test_full_disk_exits_with_69(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PHOTO)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, document, _ = call(capsys, "capture", "--part", "1", "--product", "p", str(tmp_path / "a.png"))
    assert (code, document["error"]["type"]) == (69, "StorageError")
    assert "disk is full" in document["error"]["message"]


def test_home_that_cannot_be_written_exits_with_69(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("REFDIFF_HOME", str(tmp_path / "file" / "home"))
    assert call(capsys, "inspections", "list")[0] == 69


def test_bank_held_by_another_process_exits_with_69(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    monkeypatch.setenv("REFDIFF_BANK_WAIT_S", "0.1")
    with FileLock(ready / "home" / "qdrant.lock"):
        code, document, _ = call(capsys, "goldens", "list")
    assert (code, document["error"]["type"]) == (69, "BankBusyError")


def test_internal_error_exits_with_70_and_leaves_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Stores:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(inspections, "open_stores", broken)
    code, document, err = call(capsys, "inspections", "list")
    assert code == 70
    assert "Traceback" not in err
    [log] = (tmp_path / "home" / "logs").iterdir()
    assert str(log) in document["error"]["message"]
    assert "ZeroDivisionError: a bug" in log.read_text()


def test_ctrl_c_exits_with_130(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setenv("REFDIFF_LOG_LEVEL", "DEBUG")
    with FileLock(ready / "home" / "qdrant.lock"):
        process = subprocess.Popen(
            [REFDIFF, "goldens", "list"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stderr is not None
        for line in process.stderr:
            if b"qdrant.lock" in line:  # now it surely waits for the bank
                break
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.parametrize("arguments", [["goldens", "list"], ["product", "show", "--json"], ["--help"]], ids=" ".join)
def test_closed_stdout_pipe_is_no_error(ready: Path, arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([REFDIFF, *arguments], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


# ---- the work itself ----


def test_inspect_exits_with_0_for_a_good_and_1_for_a_bad_part(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, good, _ = call(capsys, "inspect", "--part", "1", "--image", "good.png", "--product", "board")
    assert (code, good["verdict"], good["findings"]) == (0, "PASS", [])
    code, bad, _ = call(
        capsys, "inspect", "--part", "#2", "--image", "bad.png", "--product", "board",
        "--scale-mm-per-px", "0.1", "--html", "new/page.html", "--out", "copies",
    )  # fmt: skip
    assert (code, bad["verdict"], bad["part_id"]) == (1, "FAIL", "2")
    assert bad["findings"]
    assert all(Path(p).is_file() for p in bad["artefacts"].values())
    assert (ready / "new" / "page.html").read_bytes() == Path(bad["artefacts"]["html"]).read_bytes()
    assert {"report.json", "report.html"} <= {p.name for p in (ready / "copies").iterdir()}

    capsys.readouterr()
    assert main.run(["inspect", "--part", "2"]) == 1  # the newest capture, again
    shown = capsys.readouterr().out
    assert "FAIL" in shown
    assert bad["findings"][0]["location"]["region"] in shown
    paths = [line.split(maxsplit=1)[1] for line in shown.splitlines() if line.startswith("html")]
    assert Path(paths[0]).is_file()

    code, listed, _ = call(capsys, "inspections", "list", "--part", "2")
    assert [i["verdict"] for i in listed["inspections"]] == ["FAIL", "FAIL"]
    code, one, _ = call(capsys, "inspections", "show", bad["inspection_id"])
    assert (code, one["findings"], one["disposition"]) == (0, bad["findings"], None)


def test_inspect_with_few_goldens_exits_with_2_and_is_decided_by_review(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_USER", "Ada")
    main.run(["enroll", "--product", "few", *(f"photos/0{i}.png" for i in range(3))])
    code, report, _ = call(
        capsys, "ask", "inspect part #9 against the nearest good sample", "--image", "bad.png", "--product", "few"
    )
    assert (code, report["verdict"], report["requested_by"]) == (2, "REVIEW", "Ada")
    inspection = report["inspection_id"]
    assert [r["inspection_id"] for r in call(capsys, "review")[1]["open_reviews"]] == [inspection]
    assert call(capsys, "review", inspection)[0] == 0
    assert main.run(["review", inspection]) == 0
    hint = f"decide it: refdiff review {inspection} --accept|--override --good|--bad --reason TEXT"
    assert hint in capsys.readouterr().out
    assert call(capsys, "review", inspection, "--accept", "--reason", " ")[0] == 65
    code, decided, _ = call(capsys, "review", inspection, "--override", "--reason", "dust")
    assert (code, decided["decision"], decided["by"], decided["reason"]) == (0, "override", "Ada", "dust")
    assert call(capsys, "review", inspection, "--accept", "--reason", "no")[1]["error"]["type"] == "DuplicateError"
    assert call(capsys, "review")[1] == {"open_reviews": [], "references": []}
    shown = call(capsys, "inspections", "show", inspection)[1]
    assert (shown["verdict"], shown["disposition"]["decision"]) == ("REVIEW", "override")
    assert main.run(["review", inspection]) == 0
    assert "decide it" not in capsys.readouterr().out
    assert call(capsys, "inspections", "resume")[1] == {"inspections": [], "failed": {}}


def test_inspect_of_a_new_part_without_product_exits_with_64(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = call(capsys, "inspect", "--part", "new", "--image", "good.png")
    assert code == 64
    assert "part new is new (products: board): say which product" in document["error"]["message"]


def test_inspect_of_a_product_without_goldens_names_enroll(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = call(capsys, "inspect", "--part", "7", "--image", "good.png", "--product", "bracket")
    assert (code, document["error"]["type"]) == (65, "UnknownProductError")
    assert document["error"]["message"] == (
        "product 'bracket' (part 7) has no golden samples; add some: refdiff enroll --product bracket FOLDER "
        "(products that have some: board)"
    )


def test_ask_without_a_part_prints_an_answer(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = call(capsys, "ask", "what can you do?")
    assert (code, document["verdict"]) == (0, None)
    assert document["answer"]


@pytest.mark.parametrize("target", [["--html", "photos"], ["--out", "good.png"], ["--html", "good.png/x.html"]])
def test_unwritable_output_path_is_refused_before_inspecting(
    ready: Path, capsys: pytest.CaptureFixture[str], target: list[str]
) -> None:
    main.run(["capture", "--part", "1", "--product", "board", "good.png"])
    assert call(capsys, "inspect", "--part", "1", *target)[0] == 65
    assert call(capsys, "inspections", "list")[1] == {"inspections": []}


def test_enroll_lists_refused_files_and_fails_only_without_any_golden(
    ready: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready / "bad.txt").write_text("no image")
    code, document, _ = call(capsys, "enroll", "--product", "new", "bad.txt", "missing.png")
    assert (code, document["error"]["exit_code"], len(document["refused"])) == (65, 65, 2)
    code, document, err = call(capsys, "enroll", "--product", "board", "bad.txt", "photos")
    assert (code, len(document["refused"]), len(document["already_there"])) == (0, 1, 22)
    assert "refused: bad.txt" in err


def test_goldens_are_listed_retired_and_reactivated(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = call(capsys, "goldens", "list", "--product", "board")[1]["goldens"]
    first, second = listed[0]["golden_id"], listed[1]["golden_id"]
    assert call(capsys, "goldens", "retire", first, second, "--note", "old revision")[0] == 0
    retired = call(capsys, "goldens", "list", "--status", "retired")[1]["goldens"]
    assert [(g["golden_id"], g["note"]) for g in retired] == [(first, "old revision"), (second, "old revision")]
    assert call(capsys, "product", "show", "board")[1]["calibration"]["stale"] is True
    assert call(capsys, "goldens", "activate", first, "g-000000000000")[0] == 65  # all or none
    assert len(call(capsys, "goldens", "list", "--status", "retired")[1]["goldens"]) == 2
    call(capsys, "goldens", "activate", first, second)
    assert call(capsys, "product", "show", "board")[1]["calibration"]["stale"] is False
    call(capsys, "goldens", "flag", first)
    assert call(capsys, "goldens", "list", "--status", "flagged")[1]["goldens"][0]["golden_id"] == first


def test_calibrate_reports_attained_alpha_and_goldens_needed(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = call(capsys, "calibrate", "--product", "board", "--alpha", "0.01")
    assert (code, document["n"], document["goldens_needed_for_alpha"]) == (0, 22, 99)
    assert document["alpha"] == {"requested": 0.01, "attained": pytest.approx(1 / 23)}
    capsys.readouterr()
    assert main.run(["product", "show", "board"]) == 0
    assert "needs 99 parts" in capsys.readouterr().out
    assert call(capsys, "calibrate", "--product", "bord")[1]["error"]["message"].startswith(
        "product 'bord' has no golden samples"
    )


def test_a_golden_in_doubt_sets_no_limit_until_a_person_decides(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    arguments = ("inspect", "--product", "board", "--image", "bad.png")
    before = call(capsys, *arguments, "--part", "1")[1]
    with Stores.open(MemorySettings()) as stores:
        known = stores.calibrations.latest("board")
        assert known is not None
        second, doubted = known.scores[-2], known.golden_ids[-1]
        assert second < before["image_score"]
        stores.calibrations.save(replace(known, scores=[*known.scores[:-1], 10 * before["image_score"]]))
    call(capsys, "goldens", "flag", doubted)
    found = call(capsys, "product", "show", "board")[1]["calibration"]
    assert (found["in_doubt"], found["limit"]) == (1, second)
    assert found["limit_if_good"] == 10 * before["image_score"]
    report = call(capsys, *arguments, "--part", "2")[1]
    assert (report["verdict"], report["threshold"]) == ("FAIL", second)
    assert report["alpha"]["attained"] == pytest.approx(2 / 23)
    assert report["p_value"] == pytest.approx(2 / 23)
    assert report["findings"]
    with Stores.open(MemorySettings()) as stores:
        odd = stores.calibrations.latest("board")
    asked = f"{doubted} scores"
    monkeypatch.setattr("refdiff.tools.inspection.calibration.calibrate", lambda *_: odd)
    assert asked in call(capsys, "calibrate", "--product", "board")[2]
    call(capsys, "goldens", "activate", doubted)
    assert asked not in call(capsys, "calibrate", "--product", "board")[2]
    report = call(capsys, *arguments, "--part", "3")[1]
    assert (report["verdict"], report["threshold"]) == ("REVIEW", 10 * before["image_score"])
    assert report["alpha"]["attained"] == pytest.approx(1 / 23)


def test_product_specification_is_set_shown_and_checked(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "spec.yaml").write_text("scale_mm_per_px: 0.1\nlimits:\n  - {severity: major, reject: true}\n")
    code, document, _ = call(capsys, "product", "set", "board", "--spec", "spec.yaml")
    assert (code, document["scale_mm_per_px"], document["spec_version"]) == (0, 0.1, 1)
    assert call(capsys, "product", "show", "board")[1]["spec"]["limits"][0]["severity"] == "major"
    (ready / "spec.yaml").write_text("limits: [{severity: awful}]")
    code, document, _ = call(capsys, "product", "set", "board", "--spec", "spec.yaml")
    assert (code, document["error"]["type"]) == (65, "SpecError")
    assert [p["name"] for p in call(capsys, "product", "show")[1]["products"]] == ["board"]


def test_rules_that_make_a_calibration_stale_are_said_to(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zone = "zones: [{name: label, kind: ignore, box: [0, 0, 9, 9]}]\n"
    for text, stale in ((zone, True), (zone, False), ("max_turn_deg: 0\n", True), ("max_turn_deg: 5\n", False)):
        (ready / "spec.yaml").write_text(text)
        code, _, err = call(capsys, "product", "set", "board", "--spec", "spec.yaml")
        assert (code, "calibrates again" in err) == (0, stale), text


def test_show_tells_a_rule_of_zero_from_none(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["product", "show", "board"]) == 0
    assert "No specification: the score alone decides." in capsys.readouterr().out
    (ready / "spec.yaml").write_text("max_turn_deg: 0\n")
    call(capsys, "product", "set", "board", "--spec", "spec.yaml")
    assert main.run(["product", "show", "board"]) == 0
    assert "max_turn_deg: 0" in capsys.readouterr().out


def test_a_product_that_set_makes_is_said_to_be_new(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "spec.yaml").write_text("max_turn_deg: 5\n")
    code, _, err = call(capsys, "product", "set", "baord", "--spec", "spec.yaml")
    assert (code, "baord is a new product; known: board" in err) == (0, True)
    assert "new product" not in call(capsys, "product", "set", "baord", "--spec", "spec.yaml")[2]


def test_a_list_that_a_filter_empties_says_so(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command, says in (
        (["inspections", "list"], "no inspections filed; start one"),
        (["inspections", "list", "--verdict", "FAIL"], "no inspection matches"),
        (["inspections", "list", "--product", "nosuch"], "no product 'nosuch'; known: board"),
        (["defects", "list", "--product", "board"], "no finding of board has a name yet"),
        (["defects", "list", "--product", "nosuch"], "no product 'nosuch'; known: board"),
        (["captures", "list"], "no captured photos"),
        (["captures", "list", "--part", "nosuch"], "no captured photo matches"),
        (["captures", "list", "--product", "nosuch"], "no product 'nosuch'; known: board"),
    ):
        assert main.run(command) == 0
        assert says in capsys.readouterr().out


def test_station_is_listed_where_one_was_said(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["goldens", "list"]) == 0
    assert "Station" not in capsys.readouterr().out
    call(capsys, "enroll", "--product", "board", "--station", "line 3", "good.png")
    assert main.run(["goldens", "list"]) == 0
    assert "line 3" in capsys.readouterr().out


def test_an_interrupted_fit_says_how_it_goes_on(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refdiff.tools.golden_samples.fit.fit_product", interrupted)
    code, document, _ = call(capsys, "fit", "--product", "board")
    assert code == 130
    assert document["error"]["message"].endswith("run it again: refdiff fit --product board")
    monkeypatch.setattr("refdiff.tools.inspection.calibration.calibrate", interrupted)
    document = call(capsys, "calibrate", "--product", "board")[1]
    assert document["error"]["message"] == "interrupted; what was filed or enrolled before is kept"


def test_counted_component_is_named_and_shown_by_its_name(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Stores.open(MemorySettings()) as stores:
        stores.products.ensure("tray")
        rows = np.eye(4, dtype=np.float32)
        counted = [Component(rows, [1], 20.0, 6), Component(rows, [2], 9.0, 2)]
        stores.calibrations.save(Calibration("tray", "k", [0.1], 0.2, 1, 1, components=counted))
    code, document, _ = call(capsys, "product", "name", "tray", "1", "clip")
    assert (code, document["component_names"]) == (0, ["clip"])
    shown = call(capsys, "product", "show", "tray")[1]
    assert shown["component_names"] == ["clip"]
    assert shown["calibration"]["component_names"] == ["clip", None]
    assert main.run(["product", "show", "tray"]) == 0
    assert "clip: 6; component 2: 2" in capsys.readouterr().out
    assert call(capsys, "product", "name", "tray", "5", "nut")[0] == 65
    assert call(capsys, "product", "name", "tray", "1")[0] == 64
    code, document, _ = call(capsys, "product", "name", "tray", "clip", "--remove")
    assert (code, document["component_names"]) == (0, [])


def test_smallest_defect_is_set_and_what_is_too_small_is_said(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "spec.yaml").write_text("limits:\n  - {severity: major, reject: true}\n")
    call(capsys, "product", "set", "board", "--spec", "spec.yaml")
    before = call(capsys, "product", "show", "board")[1]["smallest_defect"]
    code, document, err = call(capsys, "product", "set", "board", "--smallest-defect-px", "6")
    assert (code, document["spec"]["smallest_defect_px"], document["spec_version"]) == (0, 6, 2)
    assert document["spec"]["limits"][0]["severity"] == "major", "the rules that were set before stay"
    assert "calibrates again" in err
    assert "defects under about 8 px are not looked for: the photos do not show smaller ones" in err
    code, _, err = call(capsys, "product", "set", "board", "--smallest-defect-px", "9")
    assert "calibrates again" in err
    assert "not looked for" not in err
    assert "calibrates again" not in call(capsys, "product", "set", "board", "--smallest-defect-px", "9")[2]
    (ready / "scaled.yaml").write_text("scale_mm_per_px: 0.1\nsmallest_defect_mm: 0.3\n")
    code, _, err = call(capsys, "product", "set", "board", "--spec", "scaled.yaml")
    assert "calibrates again" in err
    assert "defects under about 0.8 mm (8 px) are not looked for" in err
    call(capsys, "product", "set", "board", "--spec", "spec.yaml")
    call(capsys, "product", "set", "board", "--smallest-defect-px", "6")
    after = call(capsys, "product", "show", "board")[1]["smallest_defect"]
    assert after["px"] <= before["px"]
    assert after["summary"].startswith("defects under about ")
    for wrong in (("--smallest-defect-px", "0"), ("--smallest-defect-px", "3", "--smallest-defect-mm", "1")):
        assert call(capsys, "product", "set", "board", *wrong)[0] == 65
    assert call(capsys, "product", "set", "board", "--smallest-defect-mm", "0.2", "--spec", "spec.yaml")[0] == 65


def test_evaluate_writes_results_and_leaves_the_home_unchanged(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, name in (("train/good", "photos"), ("test/good", "good.png"), ("test/stain", "bad.png")):
        (ready / "data" / place).mkdir(parents=True)
        sources = sorted((ready / name).iterdir()) if (ready / name).is_dir() else [ready / name]
        for source in sources:
            (ready / "data" / place / source.name).write_bytes(source.read_bytes())
    before = sorted(p.name for p in (ready / "home").rglob("*"))
    code, document, err = call(capsys, "evaluate", "data", "--goldens", "4", "--out", "new/results.json", "--seed", "3")
    assert (code, document["goldens"], document["n_bad"], document["seed"]) == (0, 4, 1, 3)
    assert "Image AUROC" in err
    assert json.loads((ready / "new" / "results.json").read_text()) == document
    assert sorted(p.name for p in (ready / "home").rglob("*")) == before


def test_ask_about_a_report_refuses_inspection_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ask", "how long is it?", "--about", "insp-1", "--part", "4412", "--alpha", "0.1"]) == 64
    assert "--part, --alpha" in capsys.readouterr().err


def test_ask_about_an_unknown_report_exits_with_65(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ask", "how long is it?", "--about", "insp-1", "--json"]) == 65
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "UnknownRecordError"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "record"], "give --data, --research or both"),
        (["train", "language", "--recordings", "nowhere"], "refdiff train record"),
        (["train", "record", "--data", "nowhere"], "nowhere"),
    ],
)
def test_train_with_wrong_folders_exits_with_65(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 65
    assert told in " ".join(capsys.readouterr().err.split())


def test_model_build_without_the_difference_network_of_its_training_exits_with_65(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["model", "info", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["built"] is False
    assert about["language"]["kind"] == "language"
    (tmp_path / "other.json").write_text('{"sha256": "0"}')
    monkeypatch.setenv("REFDIFF_DIFFERENCE_WEIGHTS", str(tmp_path / "other.safetensors"))
    assert main.run(["model", "info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == about["folder"]  # it has its own
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"alone{suffix}").symlink_to((WEIGHTS / "language").with_suffix(suffix))
    monkeypatch.setenv("REFDIFF_LANGUAGE_WEIGHTS", str(tmp_path / "alone.safetensors"))
    assert main.run(["model", "build"]) == 65
    assert "another difference network" in " ".join(capsys.readouterr().err.split())


def test_ask_about_several_parts_is_refused_and_names_them(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("4412", "4413"):
        assert main.run(["capture", "--part", part, "--product", "BOARD", "good.png"]) == 0
    for text in (
        "inspect part #4412 and #4413",
        "part 4412 to 4415",
        "4412/4413",
        "Teil 4412 und 4413",
        "零件4412到4415",
    ):
        code, document, _ = call(capsys, "ask", text)
        assert code == 65, text
        assert "several parts (4412, 441" in document["error"]["message"]
    code, document, _ = call(capsys, "ask", "inspect part #4413", "--part", "4412")
    assert (code, "4413" in document["error"]["message"]) == (65, True)
    assert call(capsys, "inspections", "list")[1]["inspections"] == []


def test_refused_inspection_leaves_neither_capture_nor_product(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, _ = call(capsys, "inspect", "--part", "80", "--product", "bords", "--image", "good.png")
    assert code == 65
    assert "board" in document["error"]["message"]
    assert call(capsys, "captures", "list")[1] == {"captures": []}
    assert [p["name"] for p in call(capsys, "product", "show")[1]["products"]] == ["board"]
    assert call(capsys, "enroll", "--product", "bords", __file__)[0] == 65
    assert [p["name"] for p in call(capsys, "product", "show")[1]["products"]] == ["board"]


def test_wrong_captures_and_products_are_removed(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = call(capsys, "capture", "--part", "80", "--product", "bords", "good.png")[1]
    assert call(capsys, "product", "remove", "bords")[0] == 65
    assert call(capsys, "captures", "remove", "--part", "#80")[1] == {"removed": [taken]}
    assert call(capsys, "product", "remove", "Bords")[0] == 0
    code, document, _ = call(capsys, "product", "remove", "board")
    assert (code, "22 golden samples" in document["error"]["message"]) == (65, True)


@pytest.mark.parametrize(
    ("runs_long", "named", "engine"),
    [(False, "", "torch"), (True, "", "auto"), (True, "torch", "torch")],
    ids=["a short command", "a long one", "somebody chose"],
)
def test_commands_that_run_long_take_the_engine_that_is_slower_to_start(
    monkeypatch: pytest.MonkeyPatch, runs_long: bool, named: str, engine: str
) -> None:
    monkeypatch.setenv("REFDIFF_ENGINE", named)
    with invocation.begin(as_json=False) as run:
        run.runs_long = runs_long
        assert invocation.settings().model.engine == engine
        assert invocation.settings(threads=1).model.engine == engine


def test_inspector_without_a_language_model_loads_none_of_its_libraries() -> None:
    code = "import sys, refdiff.agent.inspector; print({'transformers', 'openai', 'llguidance'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
