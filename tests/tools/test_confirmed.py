"""Confirmed defects join the training of a product's network: only those, outlined, and never what somebody found good."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refdiff.memory.golden_bank.golden import group_of_part
from refdiff.memory.records.networks import LearnedDefect, ProductNetworks
from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import DIFFERENCE_TYPES
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.matching import STRIDES, ReferenceView
from refdiff.model.difference.network import DifferenceNetwork, DifferenceOutput
from refdiff.model.difference.scorer import read_network
from refdiff.model.images import encode_png
from refdiff.model.progress import silent
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.training import product as product_module
from refdiff.model.training.difference import losses
from refdiff.model.training.pairs import NO_TYPE
from refdiff.model.training.pool import Batch, batch_of, target_row
from refdiff.model.training.product import Confirmed, Example, ProductRecipe, confirmed_turn, fit_network
from refdiff.tools.caches.feature_cache import Picture
from refdiff.tools.golden_samples import fit as module
from refdiff.tools.golden_samples.confirmed import ConfirmedDefect, confirmed_defects
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import fit_product, is_due
from refdiff.tools.inspection.inspection import inspect_photo
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
    picture_of: str = "",
    **finding: Any,
) -> None:
    """An inspection of a photo, and what people said about it."""
    stores = workspace.stores
    picture = render(
        "circuit", 1, 50 + (photo or sum((picture_of or name).encode())), size=SIZE, noise_seed=7
    ).image.copy()
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


def photo_of(workspace: Workspace, name: str) -> str:
    return str(workspace.stores.inspections.get(name).report["query_sha256"])


@pytest.mark.parametrize("same", ["photo", "part"])
def test_network_is_out_of_use_once_a_golden_sample_shows_a_part_that_it_learned_as_a_defect(
    workspace: Workspace, tmp_path: Path, same: str
) -> None:
    name = f"later {same}"
    filed(workspace, name, product=name, judged="bad")
    photo, trained_on = photo_of(workspace, name), [["g-1"], ["g-2"]]
    learned = [LearnedDefect(name, photo, name)]
    networks = ProductNetworks(name, "0", workspace.difference.sha256, trained_on, confirmed=learned)
    assert workspace.outdated(networks) == ""
    path = tmp_path / "later.png"
    path.write_bytes(workspace.stores.images.get(photo) if same == "photo" else another_photo())
    enroll(workspace, name, [path], part_group=group_of_part(name if same == "part" else "another"))
    [golden] = workspace.bank.list(name)
    assert f"inspection {name}, whose part a golden sample shows since" in workspace.outdated(networks)
    workspace.bank.set_status(golden.golden_id, "retired", "test", "ana")
    assert workspace.outdated(networks) == ""


def another_photo() -> bytes:
    return encode_png(render("circuit", 1, 40, size=SIZE, noise_seed=40).image)


def test_nothing_is_learned_about_what_lies_outside_of_a_confirmed_defect() -> None:
    """A second defect, which was missed, must not be taught as good."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), bool)
    mask[8:16, 8:16] = True
    types = np.full((32, 32), NO_TYPE, np.uint8)
    learns = {}
    for rest_known in (True, False):
        truth = target_row(True, mask, types, None)
        unsure = torch.zeros_like(truth["mask"]) if rest_known else 1 - truth["mask"]
        logits = torch.from_numpy(rng.normal(size=(1, 1, 8, 8)).astype(np.float32)).requires_grad_()
        row = {k: v[None] for k, v in (truth | {"unsure": unsure}).items()}
        inputs = dict.fromkeys(("query", "reference", "covered", "source"), torch.zeros(1))
        maps = {f"{c}{s}": torch.zeros(1) for c in "qrd" for s in STRIDES}
        nothing = torch.zeros(1, len(DIFFERENCE_TYPES), 8, 8)
        out = DifferenceOutput(logits, nothing, torch.zeros(1), torch.zeros(1), torch.zeros(1))
        torch.stack(list(losses(out, batch_of(row | inputs | maps)).values())).sum().backward()
        assert logits.grad is not None
        learns[rest_known] = logits.grad[0, 0].numpy()
    inside = mask[::4, ::4]
    assert (learns[True][~inside] != 0).any()
    assert (learns[False][~inside] == 0).all()
    assert (learns[False][inside] < 0).all()  # raised


def test_rest_of_a_confirmed_defect_is_unknown_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []

    def noted(out: DifferenceOutput, batch: Batch) -> Any:
        seen.append(batch)
        return losses(out, batch)

    monkeypatch.setattr(product_module, "losses", noted)
    encoder = Encoder(ModelSettings(working_px=128))
    picture = render("circuit", 1, 1, size=(64, 64)).image
    maps = encoder.embed(picture, (64, 64)).maps
    valid, covered = torch.ones(8, 8, dtype=torch.bool), torch.ones(64, 64, dtype=torch.bool)
    view = ReferenceView(maps, valid, True, Picture.of(picture).pixels, covered)
    mask = np.zeros((64, 64), bool)
    mask[8:16, 8:16] = True
    net, _, _ = read_network()
    recipe = ProductRecipe(pairs=8, passes=1, batch=8)
    example = Example(picture, [view])
    fit_network(net, [example], lambda p: encoder.embed(p, (64, 64)).maps, recipe, defects=[[Confirmed(example, mask)]])
    [batch] = seen
    of_confirmed = batch.unsure.flatten(1).any(1)
    assert int(of_confirmed.sum()) == 2
    assert (batch.unsure[of_confirmed] == (batch.mask[of_confirmed] == 0)).all()
    assert (batch.mask[of_confirmed].flatten(1).sum(1) == 4).all()


def test_tiles_of_a_defect_share_its_eight_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Example] = []
    monkeypatch.setattr(product_module, "spoiled", lambda picture, *more: picture)
    monkeypatch.setattr(product_module, "_other_light", lambda picture, rng: picture)
    monkeypatch.setattr(product_module, "_row", lambda example, *more: made.append(example) or {})
    good, *tiles = (Example(np.full((32, 32, 3), i, np.uint8), []) for i in range(5))
    nothing = np.zeros((32, 32), bool)
    first, second, third, fourth = (Confirmed(tile, nothing) for tile in tiles)
    net, _, _ = read_network()
    recipe = ProductRecipe(pairs=100, passes=0)
    fit_network(net, [good], lambda p: {}, recipe, defects=[[first, second], [third], [fourth]])
    assert [sum(e is tile for e in made) for tile in tiles] == [4, 4, 8, 8]
    turns = [e for e in made if e is not good]
    # the first tile of every defect before the second of any: there may be fewer pairs than tiles
    assert all(a is b for a, b in zip(turns[:4], [tiles[0], tiles[2], tiles[3], tiles[1]], strict=True))


def test_defect_finer_than_a_cell_is_learned_where_it_is_strongest(workspace: Workspace) -> None:
    filed(workspace, "fine", product="fine", judged="bad")
    mask = np.zeros(SIZE, bool)
    mask[40, 50] = True
    defect = ConfirmedDefect("fine", photo_of(workspace, "fine"), "fine", mask)
    beside = replace(defect, inspection_id="nowhere", mask=np.zeros(SIZE, bool))
    fit = module._Fit(workspace, "board", 1, silent, [defect, beside])
    found = fit.defects(workspace.bank.list("board", ("active",)))
    assert list(found) == ["fine"]
    assert 16 <= sum(int(tile.mask.sum()) for tile in found["fine"]) <= 64


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
    assert [left_out in why for why in others] == [True] * bool(left_out)
    assert sum(map(len, others.values())) == bool(left_out)
    for defect in found:
        ys, xs = np.nonzero(defect.mask)
        assert abs(xs.min() - 45) + abs(xs.max() - 54) + abs(ys.min() - 35) + abs(ys.max() - 44) <= 8
        assert defect.mask.sum() == pytest.approx(100, rel=0.4)


@pytest.mark.parametrize(("defects", "pairs"), [(0, 0), (1, 8), (6, 48), (64, 64)])
def test_confirmed_defects_are_a_quarter_of_the_pairs_at_most(defects: int, pairs: int) -> None:
    turns = [turn for i in range(256) if (turn := confirmed_turn(i, defects)) is not None]
    assert len(turns) == pairs
    assert all(before < 8 for _, before in turns)
    assert len(set(turns)) == pairs


def test_network_names_the_defects_that_it_learned_from_and_is_out_of_use_once_one_is_found_good(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: (1, 2, 3))
    seen: list[Sequence[Sequence[Confirmed]]] = []

    def noted(net: DifferenceNetwork, examples: Any, encode: Any, recipe: Any, progress: Any, defects: Any) -> Any:
        seen.append(defects)
        return net

    monkeypatch.setattr(module, "fit_network", noted)
    filed(workspace, "i1", judged="bad", blind=None)
    filed(workspace, "i2", blind="bad")
    filed(workspace, "i3", judged="bad", part="2")
    made = fit_product(workspace, "board", "ana")
    assert made.networks.learned_from == "4 golden samples and 2 confirmed defects"
    assert made.left_out == {"a golden sample shows the same part": ["i3"]}
    assert made.networks.confirmed == [LearnedDefect(name, photo_of(workspace, name), name) for name in ("i2", "i1")]
    assert [len(defects) for defects in seen] == [2, 2]  # of both halves
    for defect in [tile for defects in seen for tiles in defects for tile in tiles]:
        assert defect.mask.shape == defect.example.picture.shape[:2]
        assert defect.mask.sum() == pytest.approx(100, rel=0.6)
        inside = defect.example.picture[defect.mask]
        assert inside.mean() < 0.5 * defect.example.picture.mean()  # where the dark square was drawn
    [record] = workspace.stores.audit.changes("network", "board")
    change = str(record.facts["change"]).replace(" ", "")
    assert 'learned_from:{"confirmed_defects":2,"golden_samples":4}' in change
    assert workspace.stores.networks.get("board") == made.networks
    assert workspace.fitted("board") is not None
    capture = workspace.stores.captures.add("i1 again", "board", photo_of(workspace, "i1"))
    assert "learned from this very photo" in str(inspect_photo(workspace, capture).problems)
    other = workspace.stores.captures.add("i3", "board", photo_of(workspace, "i3"))
    assert "learned from" not in str(inspect_photo(workspace, other).problems)
    with workspace.stores.db.transaction() as conn:
        conn.exec_driver_sql("INSERT INTO blind_checks (inspection_id, share) VALUES ('i1', 1)")
    workspace.stores.blind_checks.answer("i1", "good", "carl")
    assert (
        workspace.outdated(made.networks)
        == "trained on a defect of inspection i1, whose part a person found good since"
    )
    assert workspace.fitted("board") is None
    assert is_due(workspace, "board")
    fitted = fit_product(workspace, "board", "ana").networks
    assert [defect.inspection_id for defect in fitted.confirmed] == ["i2"]
    # the same photo in another inspection, of another part
    filed(workspace, "i4", judged="good", picture_of="i2", part="another")
    assert "i2, whose part a person found good since" in workspace.outdated(fitted)
    assert workspace.stores.audit.verify_store().problem is None
