"""Confirmed defects join the training of a product's network: only those, outlined, and never what somebody found good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np
import pytest

from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.training.product import Confirmed, confirmed_turn
from refdiff.tools.golden_samples import fit as module
from refdiff.tools.golden_samples.confirmed import confirmed_defects
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import fit_product, is_due
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SIZE = (96, 128)
NUMBER = count()
BOX = {"x0": 40, "y0": 30, "x1": 60, "y1": 50, "region": "centre"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Boards with golden samples of parts 0 to 3."""
    folder = tmp_path_factory.mktemp("confirmed")
    memory = MemorySettings(home=folder / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=folder / "cache", working_px=128)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=1)) as opened:
        for part in range(4):
            path = folder / f"{part}.png"
            path.write_bytes(encode_png(render("circuit", 1, part, size=SIZE, noise_seed=part).image))
            enroll(opened, "board", [path], part_group=f"part {part}")
        yield opened


def filed(
    workspace: Workspace,
    name: str,
    *,
    product: str = "board",
    photo: int = 0,
    part: str = "",
    verdict: Any = "FAIL",
    judged: Any = None,
    blind: Any = None,
    findings: int = 1,
    outlined: bool = True,
    **finding: Any,
) -> None:
    """An inspection of a photo, and what people said about it."""
    stores = workspace.stores
    picture = render("circuit", 1, 50 + (photo or sum(name.encode())), size=SIZE, noise_seed=7).image.copy()
    picture[35:45, 45:55] = 10
    level = np.zeros(SIZE, np.float32)
    level[35:45, 45:55] = 1.0 if outlined else 0.0
    level[80:90, 100:110] = 1.0  # outside of the finding
    sha256 = stores.images.put(encode_png(picture))
    found = [{"type": "stain", "location": BOX, **finding}] * findings
    report = {"query_sha256": sha256, "requested_by": "line", "findings": found}
    kept = KeptDifference(level, 0.5, np.eye(3)).encode()
    now = datetime.now(UTC)
    stores.inspections.file(name, part or name, product, verdict, now, report, 1.0 if blind else 0.0, difference=kept)
    if judged:
        right = (verdict == "PASS") == (judged == "good")
        decision: Any = "accept" if right or verdict == "REVIEW" else "override"
        stores.dispositions.add(name, decision, "ana", "looked at it", judged)
    if blind:
        stores.blind_checks.answer(name, blind, "bert")


@pytest.mark.parametrize(
    ("inspections", "learned", "left_out"),
    [
        ([{"judged": "bad"}], 1, ""),
        ([{"blind": "bad"}], 1, ""),
        ([{"verdict": "REVIEW", "judged": "bad"}], 1, ""),
        ([{}], 0, ""),
        ([{"judged": "good"}], 0, ""),
        ([{"judged": "bad", "blind": "good"}], 0, ""),
        ([{"judged": "bad", "photo": 9}, {"judged": "good", "photo": 9}], 0, ""),
        ([{"judged": "bad", "photo": 9}, {"judged": "bad", "photo": 9}], 1, ""),
        ([{"judged": "bad", "within_limits": True}], 0, ""),
        ([{"verdict": "PASS", "judged": "bad", "findings": 0}], 0, ""),
        ([{"judged": "bad", "outlined": False}], 0, "outlined"),
    ],
)
def test_only_outlined_defects_that_nobody_found_good_are_learned_from(
    workspace: Workspace, inspections: list[dict[str, Any]], learned: int, left_out: str
) -> None:
    product = f"product {next(NUMBER)}"
    for i, given in enumerate(inspections):
        filed(workspace, f"{product}-{i}", product=product, **given)
    found, others = confirmed_defects(workspace, product)
    assert len(found) == learned
    assert [left_out in why for why in others.values()] == [True] * bool(left_out)
    for defect in found:
        ys, xs = np.nonzero(defect.mask)
        assert abs(xs.min() - 45) + abs(xs.max() - 54) + abs(ys.min() - 35) + abs(ys.max() - 44) <= 8
        assert defect.mask.sum() == pytest.approx(100, rel=0.4)


@pytest.mark.parametrize(("defects", "pairs"), [(0, 0), (1, 8), (6, 48), (64, 64)])
def test_confirmed_defects_are_a_quarter_of_the_pairs_at_most(defects: int, pairs: int) -> None:
    turns = [turn for i in range(256) if (turn := confirmed_turn(i, defects)) is not None]
    assert len(turns) == pairs
    assert all(turns.count(turn) <= 8 for turn in turns)


def test_network_names_the_defects_that_it_learned_from_and_is_out_of_use_once_one_is_found_good(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: (1, 2, 3))
    seen: list[Sequence[Confirmed]] = []

    def noted(net: DifferenceNetwork, examples: Any, encode: Any, recipe: Any, progress: Any, defects: Any) -> Any:
        seen.append(defects)
        return net

    monkeypatch.setattr(module, "fit_network", noted)
    filed(workspace, "i1", judged="bad", blind=None)
    filed(workspace, "i2", blind="bad")
    filed(workspace, "i3", judged="bad", part="2")
    made = fit_product(workspace, "board", "ana")
    assert made.networks.learned_from == "4 golden samples and 2 confirmed defects"
    assert made.left_out == {"i3": "a golden sample shows the same part"}
    assert [len(defects) for defects in seen] == [2, 2]  # of both halves
    for defect in [d for defects in seen for d in defects]:
        assert defect.mask.shape == defect.example.picture.shape[:2]
        assert defect.mask.sum() == pytest.approx(100, rel=0.6)
        inside = defect.example.picture[defect.mask]
        assert inside.mean() < 0.5 * defect.example.picture.mean()  # where the dark square was drawn
    [record] = workspace.stores.audit.changes("network", "board")
    assert "4 golden samples and 2 confirmed defects" in str(record.facts["change"])
    assert workspace.stores.networks.get("board") == made.networks
    assert workspace.fitted("board") is not None
    with workspace.stores.db.transaction() as conn:
        conn.execute("INSERT INTO blind_checks (inspection_id, share) VALUES ('i1', 1)")
    workspace.stores.blind_checks.answer("i1", "good", "carl")
    assert (
        workspace.outdated(made.networks)
        == "trained on a defect of inspection i1, whose part a person found good since"
    )
    assert workspace.fitted("board") is None
    assert is_due(workspace, "board")
    assert fit_product(workspace, "board", "ana").networks.confirmed == ["i2"]
    assert workspace.stores.audit.verify_store().problem is None
