"""Recordings for training: real tool results, findings from the ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.recording.record import RecordingPlan, record
from refdiff.agent.verdict.verify import prose_problem
from refdiff.model.errors import InputError
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.model.training.language.data import pairs_of, read_lines
from refdiff.model.training.pairs import Photo, Source


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("photos")
    good, bad = [], []
    for i in range(12):
        path = root / f"good-{i}.png"
        Image.fromarray(render("circuit", 5, i, size=(160, 160), noise_seed=i).image).save(path)
        good.append(Photo(path))
    for i in range(3):
        spec = [DefectSpec("missing_component", contrast=1.0, seed=i)]
        scene = render("circuit", 5, 50 + i, size=(160, 160), defects=spec, noise_seed=i)
        path, mask = root / f"bad-{i}.png", root / f"mask-{i}.png"
        Image.fromarray(scene.image).save(path)
        Image.fromarray(scene.defect_mask.astype(np.uint8) * 255).save(mask)
        bad.append(Photo(path, True, (mask,), type="missing_component"))
    return Source("board", tuple(good), tuple(bad), "drawn here")


@pytest.fixture(scope="module")
def recorded(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded")
    assert record([source], out, RecordingPlan(per_product=6, goldens=8, seed=3)) > 12
    return out


@pytest.fixture(scope="module")
def lines(recorded: Path) -> list[dict[str, Any]]:
    return read_lines(recorded)


def _calls(line: dict[str, Any], mistakes: bool = False) -> list[dict[str, Any]]:
    said = [m for m in line["messages"] if m["role"] == "assistant" and (m["train"] or mistakes)]
    return [m["tool_calls"][0] for m in said]


def test_recorded_inspection_starts_with_find_part_and_ends_with_one_report(lines: list[dict[str, Any]]) -> None:
    inspections = [x for x in lines if x["kind"] == "inspection"]
    assert len(inspections) >= 4
    for line in inspections:
        names = [c["name"] for c in _calls(line)]
        assert names[0] == "find_part"
        assert names[-1] == "submit_report"
        assert names.count("submit_report") == 1
        assert [m["role"] for m in line["messages"][:2]] == ["system", "user"]


def test_recorded_findings_match_the_ground_truth(lines: list[dict[str, Any]]) -> None:
    """Good parts have no findings; findings of a defective part have its type."""
    readings = [x["reading"] for x in lines if x["kind"] == "reading"]
    inspections = [x for x in lines if x["kind"] == "inspection"]
    assert len(readings) == len(inspections)
    found = 0
    for line, reading in zip(inspections, readings, strict=True):
        findings = _calls(line)[-1]["arguments"]["findings"]
        assert all(f["type"] == reading["type"] for f in findings)
        found += len(findings)
        if not reading["defect"]:
            assert findings == []
    assert found > 0


def test_recorded_prose_passes_verification(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        if line["kind"] == "inspection":
            report = _calls(line)[-1]["arguments"]
            texts = [
                report["reasoning"],
                *(f[k] or "" for f in report["findings"] for k in ("description", "reasoning")),
            ]
            assert not [t for t in texts if prose_problem(t)]


def test_recorded_pictures_are_saved(lines: list[dict[str, Any]], recorded: Path) -> None:
    for line in lines:
        for pair in pairs_of(line):
            assert all((recorded / "images" / f"{sha}.png").is_file() for sha in pair)


@pytest.mark.long
def test_stopped_recording_is_resumed_and_another_plan_is_refused(source: Source, recorded: Path) -> None:
    """Killed before the product was complete: its pictures exist, its file does not."""
    before = (recorded / "board.jsonl").read_text()
    assert record([source], recorded, RecordingPlan(per_product=6, goldens=8, seed=3)) == 0
    (recorded / "board.jsonl").unlink()
    assert record([source], recorded, RecordingPlan(per_product=6, goldens=8, seed=3)) > 12
    again = (recorded / "board.jsonl").read_text()
    assert [json.loads(x)["kind"] for x in again.splitlines()] == [json.loads(x)["kind"] for x in before.splitlines()]
    with pytest.raises(InputError, match="another plan"):
        record([source], recorded, RecordingPlan(per_product=6, goldens=8, seed=3, test=True))


def test_recording_from_too_few_photos_is_refused(source: Source, tmp_path: Path) -> None:
    few = Source("few", source.good[:3], (), "drawn here")
    with pytest.raises(InputError, match="few: 3 good photos"):
        record([few], tmp_path, RecordingPlan())


def test_tool_schemas_are_saved_with_the_recordings(recorded: Path) -> None:
    tools = json.loads((recorded / "tools.json").read_text())
    assert [t["function"]["name"] for t in tools][-1] == "submit_report"
    assert all(t["function"]["strict"] for t in tools)
