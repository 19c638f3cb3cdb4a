"""The scorers and latency benchmarks on a few small rendered parts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_rendered import RenderedProduct, draw
from latency import measure_latency, measure_pair
from scorers import (
    BANK,
    OURS,
    PEER,
    _escapes_at,
    _rates,
    _Scores,
    main,
    peer_cells,
    peer_map,
    run_seed,
)

from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.scorer import PACKAGED, load_difference
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    draw(RenderedProduct("boards", "circuit", structural=True), root, seed=0, good=8, bad=3, size=96)
    return root


def _options(**other: object) -> argparse.Namespace:
    plain: dict[str, object] = dict.fromkeys(("random_golden", "no_alignment"), False)
    plain |= {"goldens": 3, "test": 3, "references": 1, "alpha": 0.05}
    return argparse.Namespace(**(plain | other))


def test_all_scorers_score_the_same_images_of_a_seed(bench: Path) -> None:
    models = {"shipped": load_difference(PACKAGED)}
    run = run_seed(bench / "boards", 0, models, _options())
    names = {PEER, BANK, OURS, "shipped", "shipped, network alone"}
    assert run.labels == [0, 0, 0, 1, 1, 1]
    assert set(run.scores) == set(run.goldens) == set(run.pixels) == names
    assert {len(s) for s in run.scores.values()} == {6}
    assert {len(s) for s in run.goldens.values()} == {3}
    # a bank holds the nearest golden too, so that it never finds a larger distance
    assert all(b <= p + 1e-6 for b, p in zip(run.scores[BANK], run.scores[PEER], strict=True))
    pixel_auroc = run.pixels["shipped"].auroc()
    assert pixel_auroc is not None
    assert pixel_auroc > 0.9, pixel_auroc
    again = run_seed(bench / "boards", 0, models, _options())
    for name in names:  # registration repeats to a millionth of a pixel only
        assert again.scores[name] == pytest.approx(run.scores[name], abs=5e-3)
    assert run_seed(bench / "boards", 1, {}, _options()).scores[PEER] != run.scores[PEER]


@pytest.mark.parametrize("option", ["random_golden", "no_alignment", "references"])
def test_comparison_option_changes_the_scores_but_not_the_images(bench: Path, option: str) -> None:
    plain = run_seed(bench / "boards", 0, {}, _options())
    other = run_seed(bench / "boards", 0, {}, _options(**{option: 2 if option == "references" else True}))
    assert other.labels == plain.labels
    assert other.scores[OURS] != plain.scores[OURS]
    assert other.scores[BANK] == plain.scores[BANK]


def test_rates_use_the_conformal_threshold_of_the_goldens() -> None:
    run = _Scores(
        labels=[0, 0, 0, 1, 1],
        scores={"a": [0.1, 0.2, 0.9, 0.95, 0.3], "b": [0.1, 0.2, 0.3, 0.25, 0.4]},
        goldens={"a": [0.1 + 0.01 * i for i in range(19)], "b": [0.0] * 19},
    )
    # one in twenty may fail: what lies above all 19 goldens
    assert _rates(run, "a", 0.05) == (1, 0)
    assert _rates(run, "a", 0.0) == (1, 0)  # never stricter than the goldens can say
    assert _escapes_at(run, "a", 0) == 1  # above the strongest good one is .95 alone
    assert _escapes_at(run, "a", 1) == 0
    assert _escapes_at(run, "b", 1) == 0
    assert _escapes_at(run, "b", 0) == 1


def test_peer_map_of_identical_features_is_zero() -> None:
    features = Encoder(ModelSettings(working_px=96)).embed(render("label", 1, 0, size=(96, 96)).image)
    cells = peer_cells(features)
    assert torch.allclose(cells.norm(dim=0), torch.ones(cells.shape[1:]), atol=1e-5)
    assert peer_map(cells, [cells.roll(1, 2), cells]).abs().max() < 1e-5


def test_scorers_command_prints_tables_and_saves_the_scores(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    common = ["scorers", "--bench", str(bench), "--sets", "boards", "--seeds", "1", "--goldens", "3", "--test", "3"]
    monkeypatch.setattr(sys, "argv", [*common, "--out", str(out)])
    main()
    assert "training-free" in capsys.readouterr().out
    [kept] = json.loads(out.read_text())["boards"]
    assert kept["labels"] == [0, 0, 0, 1, 1, 1]
    monkeypatch.setattr(sys, "argv", [*common, "--weights", "nameless.safetensors"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "expected NAME=FILE" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*common, "--weights", f"x={tmp_path / 'no.safetensors'}"])
    with pytest.raises(SystemExit, match="69"):
        main()
    assert "error: weights" in capsys.readouterr().err


def test_latency_laps_cover_every_query_and_add_up() -> None:
    laps = measure_latency(2, 2, 1)
    assert {len(v) for v in laps.values()} == {2}
    assert np.allclose(laps["in all"], sum(v for k, v in laps.items() if k != "in all"))
    pair = measure_pair(2)
    assert {len(v) for v in pair.values()} == {2}
    assert all((v > 0).all() for v in pair.values())
    assert {"encoder pass", "patch distance", "soft matching, pixels", "network", "pair in all"} <= set(pair)
