"""A network for one product: trained on halves, kept only where it finds more, and never asked about what it has seen."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from refdiff.memory.records.networks import ProductNetworks
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.comparing import FittedScorer
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.difference.scorer import DifferenceScorer, pack_networks, read_network
from refdiff.model.errors import BusyError, DamagedError, InputError, StorageError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.model.training.product import ProductRecipe
from refdiff.tools.exported.export import export_product
from refdiff.tools.exported.workspace import ExportedWorkspace
from refdiff.tools.golden_samples import fit as module
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.fit import FitStopped, fit_product, is_due
from refdiff.tools.inspection.calibration import (
    calibrate,
    calibration_key,
    current_calibration,
    measured_again,
    weights_in_use,
)
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SIZE = (96, 128)
SHORT = ProductRecipe(pairs=16, passes=1, batch=8)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=1)) as opened:
        yield opened


def enrol(workspace: Workspace, folder: Path, parts: int, photos: int = 1) -> None:
    """Boards, each part with so many photos."""
    for part in range(parts):
        paths = []
        for photo in range(photos):
            paths.append(folder / f"{part:02}-{photo}.png")
            image = render("circuit", 1, part, size=SIZE, noise_seed=100 * part + photo).image
            paths[-1].write_bytes(encode_png(image))
        enroll(workspace, "board", paths, part_group=f"part {part}")


def biased(by: float) -> DifferenceNetwork:
    """The shared network, with other logits."""
    net, _, _ = read_network()
    with torch.no_grad():
        assert net.map_head.bias is not None
        net.map_head.bias.add_(by)
    return net


def keep(workspace: Workspace, trained_on: list[list[str]], biases: list[float], shared: str | None = None) -> bytes:
    weights = pack_networks([biased(by) for by in biases])
    digest = hashlib.sha256(weights).hexdigest()
    known = ProductNetworks("board", digest, shared or workspace.difference.sha256, trained_on, found=(1, 2, 3))
    workspace.stores.networks.save(known, weights, "ana")
    return weights


def score(workspace: Workspace, golden: int, exclude: bool) -> float:
    goldens = sorted(workspace.bank.list("board"), key=lambda g: g.golden_id)
    g = goldens[golden]
    others = [h for h in goldens if h.group != g.group][:1]
    return compare(
        workspace, workspace.golden_image(g), "board", query_key=g.sha256,
        exclude_ids=[g.golden_id] if exclude else [h.golden_id for h in goldens if h not in others],
    ).difference.score  # fmt: skip


def test_a_golden_sample_is_scored_by_the_networks_that_did_not_see_it(workspace: Workspace, tmp_path: Path) -> None:
    enrol(workspace, tmp_path, 4)
    ids = sorted(g.golden_id for g in workspace.bank.list("board"))
    shared = workspace.network("board")
    assert isinstance(shared, DifferenceScorer)
    keep(workspace, [ids[:2], ids[2:]], [0.0, 6.0])
    low, high = (workspace.network("board", [i]) for i in (ids[3], ids[0]))
    both = workspace.network("board")
    assert isinstance(both, FittedScorer)
    found = {}
    for name, network in (("first", low), ("second", high), ("both", both), ("all", workspace.network("board", ids))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "network", lambda self, product, unseen=(), network=network: network)
            found[name] = score(workspace, 0, exclude=True)
    assert found["first"] < found["both"] < found["second"]
    assert found["all"] == found["both"]
    # as `calibrate` asks: the first golden sample was seen by the first network
    assert score(workspace, 0, exclude=True) == pytest.approx(found["second"])


def test_export_of_an_installation_in_bfloat16_is_calibrated_by_the_fitted_networks_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(number_format: str) -> Workspace:
        monkeypatch.setenv("REFDIFF_NUMBER_FORMAT", number_format)
        memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
        model = ModelSettings(cache=tmp_path / "cache", working_px=128, engine="torch", threads=1)
        return Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=1))

    path = tmp_path / "board.refdiff"
    with opened("bfloat16") as workspace:
        enrol(workspace, tmp_path, 4)
        ids = sorted(g.golden_id for g in workspace.bank.list("board"))
        keep(workspace, [ids[::2], ids[1::2]], [8.0, 9.0])
        rounded = calibrate(workspace, "board")  # and its networks stay loaded, as in a server
        made = export_product(workspace, "board", path, graphs="onnx")
    with opened("float32") as workspace:
        exact = measured_again(workspace, "board", rounded)
    with closing(ExportedWorkspace.of_file(path, threads=1)) as device:
        kept = device.content.calibration
        computed = measured_again(device, "board", kept)
    assert kept.scores == pytest.approx(exact.scores, abs=1e-5)
    assert computed.scores == pytest.approx(kept.scores, abs=1e-5), "the device computes what it is calibrated by"
    assert max(abs(a - b) for a, b in zip(rounded.scores, exact.scores, strict=True)) == made.rounding > 1e-5


def test_networks_are_in_use_until_they_are_removed_or_the_shared_one_is_replaced(
    workspace: Workspace, tmp_path: Path
) -> None:
    enrol(workspace, tmp_path, 4)
    before = calibration_key(workspace, "board", 1)
    assert "product" not in weights_in_use(workspace)
    keep(workspace, [["g-1"], ["g-2"]], [1.0, 2.0])
    known = workspace.fitted("board")
    assert known is not None
    assert known.found == (1, 2, 3)
    assert weights_in_use(workspace, known.sha256)["product"] == known.sha256
    assert calibration_key(workspace, "board", 1) != before
    assert workspace.network("other") is workspace.difference
    keep(workspace, [["g-1"], ["g-2"]], [1.0, 2.0], shared="0" * 64)  # fitted before an upgrade
    assert workspace.fitted("board") is None
    assert workspace.network("board") is workspace.difference
    keep(workspace, [["g-1"], [next(iter(workspace.bank.list("board"))).golden_id]], [1.0, 2.0])
    assert workspace.fitted("board") is not None
    workspace.bank.set_status(next(iter(workspace.bank.list("board"))).golden_id, "retired", "a scratch", "ana")
    assert workspace.fitted("board") is None  # it may have learned from a defect
    assert workspace.stores.networks.remove("board", "ana")
    assert not workspace.stores.networks.remove("board", "ana")
    records = workspace.stores.audit.changes("network", "board")
    assert [r.by for r in records] == ["ana"] * 4
    assert workspace.stores.audit.verify_store().problem is None


def test_changed_weights_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    enrol(workspace, tmp_path, 2)
    keep(workspace, [["g-1"], ["g-2"]], [1.0, 2.0])
    with closing(sqlite3.connect(workspace.stores.settings.home / "refdiff.sqlite")) as conn:
        conn.execute("UPDATE networks SET weights = zeroblob(1000)")
        conn.commit()
    with pytest.raises(DamagedError, match="refdiff fit"):
        workspace.network("board")
    assert "network" in str(workspace.stores.audit.verify_store().problem)
    known = workspace.stores.networks.get("board")
    assert known is not None
    with pytest.raises(DamagedError):
        workspace.stores.networks.save(known, b"others", "ana")
    weights = b"no safetensors file"
    other = replace(known, sha256=hashlib.sha256(weights).hexdigest())
    workspace.stores.networks.save(other, weights, "ana")
    with pytest.raises(StorageError, match="fit them again"):
        workspace.network("board")


def test_halves_are_of_whole_parts_and_an_interrupted_fit_goes_on(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enrol(workspace, tmp_path, 4)
    with pytest.raises(InputError, match="4 part"):
        fit_product(workspace, "board", "ana", SHORT)
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    enrol(workspace, tmp_path, 1, photos=3)
    stages: list[str] = []

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        stages.append(what)
        if stages.count("training") > 2:  # in the second half
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_product(workspace, "board", "ana", SHORT, progress=stop)
    assert workspace.fitted("board") is None
    stages.clear()
    made = fit_product(workspace, "board", "ana", SHORT, progress=lambda what, *more: stages.append(what))
    assert stages.count("training") == 2  # the half that was finished is not trained again
    groups = {g.golden_id: g.group for g in workspace.bank.list("board")}
    halves = [{groups[i] for i in half} for half in made.networks.trained_on]
    assert sorted(i for half in made.networks.trained_on for i in half) == sorted(groups)
    assert not halves[0] & halves[1]
    shared, fitted, of = made.networks.found
    assert 0 <= shared <= of <= len(groups)
    assert made.kept == (fitted > shared) == (workspace.fitted("board") is not None)


def test_what_finds_no_more_is_not_kept(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    enrol(workspace, tmp_path, 4)
    # untrained: the shared network itself, counted otherwise
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(FittedScorer, "power", DifferenceScorer.power)
    made = fit_product(workspace, "board", "ana", SHORT)
    shared, fitted, _ = made.networks.found
    assert fitted == shared
    assert not made.kept
    assert workspace.fitted("board") is None


def test_what_finds_less_than_the_network_in_use_does_not_replace_it(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 4)
    assert fit_product(workspace, "board", "ana", SHORT).kept
    monkeypatch.undo()
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    asked: list[tuple[int, ...]] = []
    real = module._Fit.found
    by_used = 3

    def found(*arguments: Any) -> tuple[int, ...]:
        asked.append(real(*arguments))
        return 1, 2, by_used, 4

    monkeypatch.setattr(module._Fit, "found", found)
    assert not fit_product(workspace, "board", "ana", SHORT).kept
    by_used = 2
    assert fit_product(workspace, "board", "ana", SHORT).kept
    assert {len(counts) for counts in asked} == {4}
    assert all(fitted == used for _, fitted, used, _ in asked)  # the same network, of the half that was not seen


def quick(monkeypatch: pytest.MonkeyPatch, found: tuple[int, int, int]) -> None:
    """Fits without training, that find so many defects."""
    monkeypatch.setattr(module, "MIN_PARTS", 4)
    monkeypatch.setattr(module, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(module._Fit, "found", lambda self, half, *more: found if half else (0, 0, 0))


def no_network(workspace: Workspace) -> Any:
    raise InputError("the difference weights were trained with a different encoder")


def failing_disk(product: str) -> Any:
    raise StorageError("the disk fails")


def calibrations(workspace: Workspace) -> list[str]:
    return [r.by for r in workspace.stores.audit.changes("calibration")]


def test_network_comes_into_use_with_its_calibration(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 4)
    before = calibrate(workspace, "board")
    current: list[bool] = []

    def moved(what: str, done: int, total: int, note: str = "") -> None:
        known = current_calibration(workspace, "board")
        current.append(known is not None and known.key == before.key)

    made = fit_product(workspace, "board", "ana", SHORT, progress=moved)
    assert made.kept
    assert all(current)  # what is inspected meanwhile finds the former calibration, and never measures one itself
    after = current_calibration(workspace, "board")
    assert after is not None
    assert after.key != before.key
    assert calibrations(workspace) == ["refdiff", "ana"]


def test_fit_is_due_once_for_the_same_golden_samples(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 1, 3))
    networks = workspace.stores.networks
    assert not is_due(workspace, "board")
    enrol(workspace, tmp_path, 4)
    assert is_due(workspace, "board")
    with pytest.MonkeyPatch.context() as patch:  # an encoder of the customer's own, and no network for it
        patch.setattr(Workspace, "trained_difference", property(no_network))
        assert not is_due(workspace, "board")

    def raising(error: BaseException) -> Any:
        def moved(*_: Any) -> None:
            raise error

        return moved

    for error, outcome, due in (
        (FitStopped(), "stopped", True), (KeyboardInterrupt(), "stopped", True), (InputError("no"), "failed", True),
        (FitStopped(), "stopped", True), (ZeroDivisionError(), "failed", False),
    ):  # fmt: skip
        with pytest.raises(type(error)):
            fit_product(workspace, "board", "ana", SHORT, progress=raising(error))
        last = networks.last_attempt("board")
        assert last is not None
        assert (last.outcome, is_due(workspace, "board")) == (outcome, due)
    assert not fit_product(workspace, "board", "ana", SHORT).kept
    last = networks.last_attempt("board")
    assert last is not None
    assert (last.outcome, last.found, last.by, last.n) == ("not kept", (2, 2, 6), "ana", 4)
    assert not is_due(workspace, "board")
    more = tmp_path / "more"
    more.mkdir()
    enrol(workspace, more, 7)  # three of them are new
    assert not is_due(workspace, "board")  # whatever was tried is tried again with twice the golden samples, ...
    with pytest.MonkeyPatch.context() as patch:  # ... with another shared network, ...
        patch.setattr(networks, "last_attempt", lambda product: replace(last, shared="another"))
        assert is_due(workspace, "board")
    enrol(workspace, more, 8)
    assert is_due(workspace, "board")
    with pytest.MonkeyPatch.context() as patch:  # ... and never where the disk fails: it is a hint
        patch.setattr(networks, "last_attempt", failing_disk)
        assert not is_due(workspace, "board")
    with pytest.raises(FitStopped):
        fit_product(workspace, "board", "ana", SHORT, progress=raising(FitStopped()))
    assert is_due(workspace, "board")  # it goes on
    quick(monkeypatch, (1, 2, 3))
    assert fit_product(workspace, "board", "ana", SHORT).kept
    assert not is_due(workspace, "board")
    more = tmp_path / "many"
    more.mkdir()
    enrol(workspace, more, 15)
    assert not is_due(workspace, "board")  # one in use is fitted anew to twice the golden samples
    enrol(workspace, more, 16)
    assert is_due(workspace, "board")
    with pytest.raises(FitStopped):
        fit_product(workspace, "board", "ana", SHORT, progress=raising(FitStopped()))
    assert is_due(workspace, "board")
    workspace.bank.set_status(max(g.golden_id for g in workspace.bank.list("board")), "retired", "a scratch", "ana")
    networks.remove("board", "ana")
    assert not is_due(workspace, "board")  # a person does without
    fit_product(workspace, "board", "ana", SHORT)
    taught = networks.get("board")
    assert taught is not None
    workspace.bank.set_status(taught.trained_on[0][0], "retired", "a scratch", "ana")
    assert is_due(workspace, "board")  # out of use


def test_two_fits_of_a_product_never_run_at_once(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 4)
    refused: list[str] = []

    def moved(*_: object) -> None:
        with pytest.raises(BusyError, match="'board'") as caught:
            fit_product(workspace, "Board", "bert", SHORT)
        refused.append(str(caught.value))

    assert fit_product(workspace, "board", "ana", SHORT, progress=moved).kept
    assert refused
    assert [r.by for r in workspace.stores.audit.changes("network")] == ["ana"]


def test_removed_network_stays_removed_though_a_fit_ends_later(workspace: Workspace) -> None:
    networks = workspace.stores.networks
    assert not networks.remove("board", "bert")
    assert networks.last_attempt("board") is None
    attempt = networks.begin("board", "digest", 20, "ana")
    assert networks.remove("board", "bert")
    networks.end(attempt, "stopped")
    last = networks.last_attempt("board")
    assert last is not None
    assert (last.outcome, last.by) == ("declined", "bert")
    networks.end(networks.begin("board", "digest", 20, "ana"), "not kept")
    last = networks.last_attempt("board")
    assert not networks.remove("board", "bert")  # nothing to remove: nothing is noted
    assert networks.last_attempt("board") == last


@pytest.mark.parametrize("before", [False, True])
def test_network_that_is_removed_after_the_last_step_of_its_fit_does_not_come_into_use(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 4)
    if before:
        assert fit_product(workspace, "board", "ana", SHORT).kept
    calibrated = module.current_calibration

    def removed_meanwhile(*arguments: Any) -> Any:
        found = calibrated(*arguments)
        assert workspace.stores.networks.remove("board", "bert")
        return found

    monkeypatch.setattr(module, "current_calibration", removed_meanwhile)
    with pytest.raises(FitStopped, match="nothing was kept"):
        fit_product(workspace, "board", "ana", SHORT)
    assert workspace.stores.networks.get("board") is None
    last = workspace.stores.networks.last_attempt("board")
    assert last is not None
    assert (last.outcome, last.by) == ("declined", "bert")
    assert not is_due(workspace, "board")
    assert [r.by for r in workspace.stores.audit.changes("network")] == ["ana", "bert"][: 2 * before]
    assert workspace.stores.audit.verify_store().problem is None


def test_golden_sample_that_is_retired_during_a_fit_is_no_failure(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 6)
    teach = [g.golden_id for g in workspace.bank.list("board")]
    left = len(teach)

    def retire(what: str, done: int, total: int, note: str = "") -> None:
        if what == "registering" and len(teach) > left:
            workspace.bank.set_status(teach.pop(), "retired", "a scratch", "ana")

    for _ in range(2):  # as often as would be in vain
        left -= 1
        with pytest.raises(FitStopped, match="retired since"):
            fit_product(workspace, "board", "automatic fit", SHORT, progress=retire)
        last = workspace.stores.networks.last_attempt("board")
        assert last is not None
        assert (last.outcome, last.vain, "retired since" in last.message) == ("stopped", 0, True)
        assert is_due(workspace, "board")
        assert workspace.fitted("board") is None
    assert fit_product(workspace, "board", "automatic fit", SHORT).kept


def test_halves_of_fits_that_nobody_took_up_again_make_room(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, (1, 2, 3))
    enrol(workspace, tmp_path, 4)
    folder = workspace.model_settings.cache / "fits"

    def stop(what: str, *more: Any) -> None:
        if what == "calibrating":
            raise FitStopped

    for seed in range(4):
        with pytest.raises(FitStopped):
            fit_product(workspace, "board", "ana", replace(SHORT, seed=10 * seed), progress=stop)
        kept = list(folder.iterdir())
        monkeypatch.setattr(module, "_HALVES_BYTES", int(4.5 * kept[0].stat().st_size))
    assert 2 <= len(kept) <= 4
    monkeypatch.setattr(module, "fit_network", lambda *_: pytest.fail("it was trained again"))
    assert fit_product(workspace, "board", "ana", replace(SHORT, seed=30)).kept
    assert len(list(folder.iterdir())) == len(kept) - 2


@pytest.mark.parametrize("outcome", ["kept", "not kept", "failed", "begun", "stopped"])
def test_fit_is_declined_while_it_runs_or_where_it_brought_nothing_yet(workspace: Workspace, outcome: Any) -> None:
    networks = workspace.stores.networks
    networks.decline("board", "bert")
    assert networks.last_attempt("board") is None
    attempt = networks.begin("board", "digest", 20, "ana")
    if outcome != "begun":
        networks.end(attempt, outcome)
    before = networks.last_attempt("board")
    networks.decline("board", "bert")
    last = networks.last_attempt("board")
    assert last is not None
    if outcome in ("begun", "stopped", "failed"):
        assert (last.outcome, last.by) == ("declined", "bert")
    else:
        assert last == before
    assert workspace.stores.audit.changes("network", "board") == []  # nothing that decides has changed
