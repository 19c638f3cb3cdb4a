"""`refdiff goldens list` and `reenroll` about golden samples of another encoder; `refdiff fit`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from refdiff.model.images import encode_png
from refdiff.model.synthesis.marks import Mark
from refdiff.model.synthesis.render import render
from refdiff.model.training.product import ProductRecipe
from refdiff.server.cli import main
from refdiff.tools.golden_samples import fit
from refdiff.tools.inspection import detectable

from .conftest import said


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


def test_network_is_fitted_shown_and_removed(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "ProductRecipe", partial(ProductRecipe, pairs=32, passes=1, batch=8))
    monkeypatch.setattr(fit, "_CHECKED", 3)
    code, found = said(capsys, "fit", "--product", "board", "--remove")
    assert (code, found) == (0, {"product": "board", "removed": False})
    hint = "refdiff fit --product board"
    for command in (("enroll", "--product", "board", str(ready / "photos")), ("calibrate", "--product", "board")):
        assert hint in run(capsys, *command)[2]
    code, found = said(capsys, "fit", "--product", "board")
    defects = found["synthetic_defects"]
    assert (code, found["kept"], defects["replaced"]) == (0, defects["fitted"] > defects["shared"], None)
    assert 0 < defects["n"] <= 6
    code, product = said(capsys, "product", "show", "board")
    assert (product["network"] is not None) == found["kept"]
    assert not product["calibration"]["stale"]
    assert hint not in run(capsys, "calibrate", "--product", "board")[2]
    code, gone = said(capsys, "fit", "--product", "board", "--remove")
    assert gone["removed"] == found["kept"]
    code, found = said(capsys, "fit", "--product", "none")
    assert code != 0
    assert found["error"]["type"] == "UnknownProductError"


def test_calibrate_says_how_small_a_defect_is_found(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectable, "_MARKS", 6)
    monkeypatch.setattr(detectable, "_SIZES", [("spot", Mark(d, d, 0.4)) for d in (2, 30)])
    assert "detectable" not in said(capsys, "calibrate", "--product", "board")[1]
    code, found = said(capsys, "calibrate", "--product", "board", "--detectable")
    assert (code, found["detectable"]["marks"]) == (0, 6)
    assert {row["alpha"]: row["smallest"]["working_px"] for row in found["detectable"]["found"]} == {
        0.01: 30, 0.02: 30, 0.05: 30
    }  # fmt: skip
    attained = {row["alpha"]: row["attained"] for row in found["detectable"]["found"]}
    assert attained[0.01] == found["alpha"]["attained"]  # one rule in one table
    assert said(capsys, "product", "show", "board")[1]["calibration"]["detectable"] == found["detectable"]
    for command in (("calibrate", "--product", "board"), ("product", "show", "board")):
        assert main.run([*command]) == 0
        assert "spots from 30 px across" in capsys.readouterr().out


def test_calibrate_asks_for_more_parts_before_it_measures(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for golden in said(capsys, "goldens", "list")[1]["goldens"][:3]:
        assert said(capsys, "goldens", "retire", golden["golden_id"])[0] == 0
    known = said(capsys, "product", "show", "board")[1]["calibration"]
    assert known["stale"]
    code, _, errors = run(capsys, "calibrate", "--product", "board", "--detectable")
    assert (code, "19 parts" in errors) == (65, True)
    assert said(capsys, "product", "show", "board")[1]["calibration"] == known  # nothing was measured


def test_calibration_is_shown_where_no_tried_size_fits_on_the_golden_samples(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detectable, "_SIZES", [("stroke", Mark(300, 2, 0.4))])
    code, found, errors = run(capsys, "calibrate", "--product", "board", "--detectable")
    assert (code, found["n"], "detectable" in found) == (0, 22, False)
    assert "none of the tried sizes fits" in " ".join(errors.split())


def test_fit_says_what_the_network_in_use_finds(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(fit._Fit, "found", lambda self, half, *more: (3, 5, 8))
    assert said(capsys, "fit", "--product", "board")[1]["kept"]
    for by_fitted, by_used, words in (
        (4, 5, "not kept: the network in use finds more"),
        (3, 2, "not kept: the shared network finds as many, or more"),
        (5, 5, "kept, and calibrated"),
    ):
        # of each half
        monkeypatch.setattr(fit._Fit, "found", lambda *_, counts=(3, by_fitted, by_used, 8): counts)
        assert main.run(["fit", "--product", "board"]) == 0
        shown = capsys.readouterr().out
        rows = dict(line.strip().split("  ", 1) for line in shown.splitlines() if "  " in line.strip())
        assert (rows["Network in use before"].strip(), rows["Outcome"].strip()) == (f"finds {2 * by_used}", words)
    found = said(capsys, "fit", "--product", "board")[1]
    assert found["synthetic_defects"] == {"n": 16, "shared": 6, "fitted": 10, "replaced": 10}
