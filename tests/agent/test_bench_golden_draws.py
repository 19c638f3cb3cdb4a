"""The benchmark of draws of golden samples, on a few small rendered parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_rendered import RenderedProduct
from bench_rendered import draw as render_product
from golden_draws import ALL, BANK, Run, bank, change, draw, known, lay_out, measure, table

from refdiff.agent.evaluation.layouts import read_mvtec

SET = RenderedProduct("boards", "circuit", structural=True)


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    render_product(SET, root, seed=0, good=9, bad=3, size=96)
    return root / SET.name


def test_more_golden_samples_hold_the_fewer_and_none_is_tested(boards: Path) -> None:
    one, other = draw(boards, 0, 30), draw(boards, 1, 30)
    assert [s.label for s in one.tested] == [0, 0, 0, 1, 1, 1]  # at most a third of the good ones
    assert set(one.goldens(2)) < set(one.goldens(4)) < set(one.goldens(ALL))
    assert len(one.goldens(ALL)) == 6
    assert not {s.path for s in one.tested} & set(one.pool)
    assert draw(boards, 0, 30) == one
    assert one.pool != other.pool
    assert sum(s.defective for s in draw(boards, 0, 2).tested) == 2


def test_layout_is_read_back_in_its_order_with_its_masks(boards: Path, tmp_path: Path) -> None:
    one = draw(boards, 0, 2)
    lay_out(one.goldens(4), one.tested, tmp_path / "set")
    data = read_mvtec(tmp_path / "set")
    assert [p.resolve() for p in data.train] == [p.resolve() for p in one.goldens(4)]
    by_place = sorted(data.test, key=lambda s: s.path.stem)
    assert [s.path.resolve() for s in by_place] == [s.path.resolve() for s in one.tested]
    assert [[m.resolve() for m in s.masks] for s in by_place] == [[m.resolve() for m in s.masks] for s in one.tested]
    assert not data.notes


def test_runs_are_measured_once_and_make_a_table(
    boards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REFDIFF_WORKING_PX", "96")
    out = tmp_path / "runs.jsonl"
    for _ in range(2):
        measure(boards, out, goldens=[4], references=[1], draws=1)
        bank(boards, out, goldens=[3, 4], draws=1)
    runs = {(r.method, r.asked): r for r in known(out)}
    assert len(known(out)) == len(runs) == 3
    ours, few, more = runs["RefDiff", 4], runs[BANK, 3], runs[BANK, 4]
    assert ours.labels == few.labels == [0, 0, 0, 1, 1, 1]
    assert ours.n == 4
    assert ours.pixel_auroc is not None
    assert ours.verdicts
    # a larger bank only finds nearer patches
    assert all(b <= a + 1e-6 for a, b in zip(few.scores, more.scores, strict=True))
    table([out])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3


def test_table_counts_failed_good_parts_and_missed_defects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("set", "RefDiff", 0, 40, 40, 4, [0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9], [0.5, 2 / 41, 3 / 41, 1 / 41],
              verdicts=["PASS", "FAIL", "PASS", "FAIL"])  # fmt: skip
    doubted = dataclasses.replace(run, draw=1, doubted=1)
    out = tmp_path / "runs.jsonl"
    out.write_text("".join(_line(r) for r in (run, doubted)), encoding="utf-8")
    table([out])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    # 1 / 41 alone fails while none is in doubt, 2 / 41 too while one is
    assert row[9] == "0.250, 0.500"
    assert row[10] == "0.500, 0.500"
    assert row[11] == "0.500, 0.500, 0.000"


def _line(run: Run) -> str:
    return json.dumps(dataclasses.asdict(run)) + "\n"


def test_change_pairs_the_same_draws_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, out = [0, 0, 1, 1], tmp_path / "runs.jsonl"
    verdicts = ["PASS", "PASS", "FAIL", "PASS"]
    runs = [
        Run("boards", "before", 0, 40, 40, 4, labels, [1, 3, 2, 4], [1.0] * 4, verdicts=verdicts),
        Run("boards", "now", 0, 40, 40, 4, labels, [1, 2, 3, 4], [1.0] * 4, verdicts=verdicts),
        Run("boards", "now", 1, 40, 40, 4, labels, [4, 3, 2, 1], [1.0] * 4, verdicts=verdicts),  # nothing beside it
        Run("boards", BANK, 0, 40, 40, 0, labels, [4, 3, 2, 1], [1.0] * 4),
    ]
    out.write_text("".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in runs))
    change([out], before="before")
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| boards | 40 | 4 | 1 | 0.750 to 1.000 (")
    assert "| 0.500 to 0.500 (0.000 to 0.000) |" in row  # PASS of defective
    change([out], before=BANK)
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| boards | 40 | 4 | 1 | 0.000 to 1.000 (")
    assert row.endswith("|  |  |  |")
