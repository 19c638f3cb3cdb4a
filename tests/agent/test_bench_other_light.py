"""The bench of other lights draws a data set that `evaluate` reads, and counts each photo once, under its own light."""

from __future__ import annotations

from pathlib import Path

import bench_other_light
import pytest
from bench_other_light import LIGHTS, draw, rows

from refdiff.agent.evaluation.run import evaluate


def test_every_light_has_its_good_and_defective_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_other_light, "GOLDENS", 3)
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    draw("label", 1, 2, tmp_path)
    results = evaluate(tmp_path)
    assert (results.goldens, results.n_good, results.n_bad) == (3, 2 * len(LIGHTS), 2 * len(LIGHTS))
    found = list(rows(results))
    assert [row[0] for row in found] == list(LIGHTS)
    for _, _, _, good, _, bad in found:
        assert [sum(map(int, verdicts.split(" / "))) for verdicts in (good, bad)] == [2, 2]
        assert good.startswith("0 /")  # three parts fail nothing
