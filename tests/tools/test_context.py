"""The tool context of one inspection: each stage computed once, evidence in the form that is filed."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.agent.inspector import Inspector
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.records.captures import CaptureStore
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.encoder import Encoder
from refdiff.model.errors import DamagedError, ToolOrderError, UnknownRecordError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Pose, render
from refdiff.tools import context as context_of_tools
from refdiff.tools import workspace as workspace_of_tools
from refdiff.tools.context import ToolContext
from refdiff.tools.evidence import Evidence, ScoreEvidence, evidence_of
from refdiff.tools.framing.frames import place_of
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection import difference, inspection
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.registry import TOOLS
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.crops import zoom
from refdiff.tools.workspace import Workspace

SIZE = (160, 160)
NAMED = {t.name: t for t in TOOLS}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Four goldens, and part 1 with a missing component, turned."""
    root = tmp_path_factory.mktemp("context")
    memory = MemorySettings(home=root / "home", qdrant_url=None)
    model = ModelSettings(cache=root / "cache", working_px=160)
    with Workspace.open(memory, model, ToolsSettings(references=2)) as opened:
        (root / "goldens").mkdir()
        for i in range(4):
            image = render("circuit", 102, i, size=SIZE, noise_seed=i).image
            (root / "goldens" / f"{i}.png").write_bytes(encode_png(image))
        enroll(opened, "board", [root / "goldens"])
        broken = [DefectSpec("missing_component", seed=1, contrast=1.0)]
        part = render("circuit", 102, 40, size=SIZE, pose=Pose(angle_deg=30.0), noise_seed=9, defects=broken).image
        (root / "part.png").write_bytes(encode_png(part))
        record_capture(opened.stores, "1", "board", root / "part.png", settings=opened.model_settings)
        calibrate(opened, "board")
        yield opened


def call(context: ToolContext, evidence: list[Evidence], name: str, **arguments: Any) -> Evidence:
    """What a tool measured, filed as the agent files it."""
    state = {"evidence": [e.model_dump() for e in evidence]}
    runtime = SimpleNamespace(context=SimpleNamespace(tools=context), state=state)
    _, artifact = NAMED[name].func(**arguments, runtime=runtime)  # type: ignore[attr-defined]
    evidence += evidence_of([artifact["evidence"] | {"id": f"e{len(evidence) + 1}"}])
    return evidence[-1]


def inspect(context: ToolContext, k: int) -> list[Evidence]:
    evidence: list[Evidence] = []
    call(context, evidence, "find_part", part_id="1")
    golden_id = call(context, evidence, "retrieve_reference", k=k).slots["golden_1"]
    call(context, evidence, "align", golden_id=golden_id)
    call(context, evidence, "score_difference", golden_ids=[])
    for name in ("zoom", "measure"):
        call(context, evidence, name, region="r1")
    return evidence


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the costly parts of an inspection run."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in ((CaptureStore, "latest"), (CaptureStore, "get"), (GoldenBank, "nearest"), (Encoder, "embed"),
                        (difference, "warp_reference"), (difference.ReferenceViews, "view")):  # fmt: skip
        count(owner, name)
    return counted


def test_tool_context_computes_each_stage_once(workspace: Workspace, calls: Counter[str]) -> None:
    context = ToolContext(workspace, "1")
    evidence = inspect(context, k=2)
    assert evidence[3].images["reference"] == context.shown_reference
    # the photo is encoded and searched for twice, as it lies and in the frame of its references, which are not encoded;
    # one golden is warped to be shown
    assert calls == {"latest": 1, "nearest": 2, "view": 2, "warp_reference": 1, "embed": 2}


def test_inspections_do_not_wait_for_each_other(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two at once meet inside of their longest stage."""
    meeting, inspect_photo = threading.Barrier(2), context_of_tools.inspect_photo

    def met(*args: Any, **kwargs: Any) -> Any:
        meeting.wait(timeout=30)
        return inspect_photo(*args, **kwargs)

    monkeypatch.setattr(context_of_tools, "inspect_photo", met)
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: ToolContext(workspace, "1").canonical, range(2))
    assert one.comparison.difference.score == other.comparison.difference.score


def test_tools_that_were_called_before_change_nothing(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the nearest golden sample does not register, but another one of its frame does, for which a model asks."""
    upright = Upload("2.png", encode_png(render("circuit", 102, 41, size=SIZE, noise_seed=8).image))
    record_capture(workspace.stores, "2", "board", upright, settings=workspace.model_settings)
    nearest, *others = ToolContext(workspace, "2").nearest(4)
    register, lost = workspace.registration, {nearest.golden.sha256, place_of(workspace, nearest.golden).anchor_sha256}

    def registered(query: Any, key: str, sha256: str, product: str) -> Any:
        found = register(query, key, sha256, product)
        return replace(found, ok=False) if sha256 in lost else found

    monkeypatch.setattr(workspace, "registration", registered)
    alone, driven = ToolContext(workspace, "2"), ToolContext(workspace, "2")
    driven.nearest(workspace.settings.references)
    assert any(driven.align(hit.golden).ok for hit in others)
    driven.nearest(1)
    driven.compare([others[-1].golden.golden_id])
    one, other = alone.canonical.comparison, driven.canonical.comparison
    assert not one.alignments[0].ok
    assert one.difference.score == other.difference.score
    assert [a.ok for a in one.alignments] == [a.ok for a in other.alignments]


def test_photo_is_not_judged_by_golden_samples_that_were_retired_meanwhile(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was compared with one before; the calibration that judges it has none of it."""
    context, retired = ToolContext(workspace, "1"), []
    calibrated = inspection.current_calibration

    def calibrates(*args: Any, **kwargs: Any) -> Any:
        if not retired:
            retired.append(context.nearest(2)[0].golden.golden_id)
            workspace.bank.set_status(retired[0], "retired", "a defect")
        return calibrated(*args, **kwargs)

    monkeypatch.setattr(inspection, "current_calibration", calibrates)
    try:
        found = context.canonical
        assert found.calibration is not None
        assert retired[0] not in found.calibration.golden_ids
        assert retired[0] not in [hit.golden.golden_id for hit in found.comparison.hits]
        assert len(found.comparison.hits) == 2
    finally:
        workspace.bank.set_status(retired[0], "active")


def test_photo_is_read_again_where_its_specification_changes_meanwhile(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, searched = ToolContext(workspace, "1"), []
    search = context_of_tools.search

    def searches(*args: Any) -> Any:
        searched.append(args[1])
        if len(searched) == 1:
            workspace.stores.products.set_spec("board", {"limits": [{"max_length_px": 5, "severity": "minor"}]})
        return search(*args)

    monkeypatch.setattr(context_of_tools, "search", searches)
    try:
        assert context.canonical.regions
        assert context.judged_by.spec["limits"]
        assert len(searched) == 2
        assert searched[0] is not searched[1]
    finally:
        workspace.stores.products.set_spec("board", {})


def test_registration_is_of_files_as_they_are_read_now(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    golden, read = workspace.bank.list("board")[0], Workspace.how
    image, registered = workspace.golden_image(golden), []
    align = workspace_of_tools.align
    monkeypatch.setattr(workspace_of_tools, "align", lambda *of: registered.append(of) or align(*of))
    for rules in ("", "", "emissivity .85"):
        monkeypatch.setattr(Workspace, "how", lambda self, product, r=rules: replace(read(self, product), rules=r))
        workspace.registration(image, "a photo", golden.sha256, "board")
    assert len(registered) == 2
    assert registered[0][0] is not registered[1][0]


def test_lent_picture_is_there_as_long_as_anyone_lends_it(workspace: Workspace) -> None:
    lenders = [ToolContext(workspace, "1", keeps_pictures=False) for _ in range(2)]
    ids = {lender.keep_image(np.full((4, 4, 3), 7, np.uint8)) for lender in lenders}
    assert len(ids) == 1
    del lenders[0]
    assert workspace.picture(*ids).shape == (4, 4, 3)
    lenders.clear()
    gc.collect()
    with pytest.raises(UnknownRecordError):
        workspace.picture(*ids)


def test_tools_that_run_at_the_same_time_share_one_inspection(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int] = []

    def slow(*args: Any, **kwargs: Any) -> Any:
        began.append(1)
        time.sleep(0.2)  # the other thread asks meanwhile
        return inspect_photo(*args, **kwargs)

    inspect_photo = context_of_tools.inspect_photo
    monkeypatch.setattr(context_of_tools, "inspect_photo", slow)
    context = ToolContext(workspace, "1")
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: context.canonical, range(2))
    assert one is other
    assert len(began) == 1


def test_comparison_with_other_references_is_not_canonical(workspace: Workspace, calls: Counter[str]) -> None:
    canonical = inspect(ToolContext(workspace, "1"), k=2)[3]
    context = ToolContext(workspace, "1")
    evidence = inspect(context, k=1)
    assert calls["nearest"] == 2 * 3
    assert evidence[3] == canonical
    last = [h.golden.golden_id for h in context.nearest(4)][-1]
    other = call(context, evidence, "score_difference", golden_ids=[last])
    assert isinstance(other, ScoreEvidence)
    assert not other.numbers.canonical
    assert other.numbers.p_value is None
    assert context.score_evidence(context.canonical.comparison).numbers == canonical.numbers


def test_zoom_shows_the_nearest_of_the_references_that_were_scored(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ToolContext(workspace, "1")
    evidence = inspect(context, k=1)[:4]
    others = [h.golden for h in context.nearest(4)][2:]
    scored = call(context, evidence, "score_difference", golden_ids=sorted(g.golden_id for g in others))
    assert scored.arguments.golden_ids == [g.golden_id for g in others]
    shown: list[Any] = []
    monkeypatch.setattr("refdiff.tools.zoom.zoom", lambda *args: shown.append(args) or zoom(*args))
    call(context, evidence, "zoom", region="r1")
    ((_, reference, registered, _),) = shown
    assert np.array_equal(reference, workspace.golden_image(others[0]))
    assert np.array_equal(registered.matrix, context.align(others[0]).matrix)


def test_resumed_run_keeps_its_capture_when_a_newer_one_exists(workspace: Workspace, calls: Counter[str]) -> None:
    evidence = inspect(ToolContext(workspace, "1"), k=2)[:4]
    found = workspace.stores.captures.latest("1")
    newer = workspace.stores.captures.add(part_id="1", product="board", sha256=found.sha256, scale_mm_per_px=0.5)
    calls.clear()
    resumed = ToolContext(workspace, "1")
    measured = call(resumed, evidence, "measure", region="r1")
    assert measured.slots["length_mm"] is None
    assert (calls["latest"], calls["get"]) == (0, 1)
    assert ToolContext(workspace, "1").find_capture() == newer


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_part_whose_photo_is_lost_ends_the_inspection_with_the_way_out(workspace: Workspace, how: str) -> None:
    photo = Upload("lost.png", encode_png(render("circuit", 1, 77, size=(96, 128), noise_seed=77).image))
    capture = record_capture(workspace.stores, f"lost {how}", "board", photo, settings=workspace.model_settings)
    path = workspace.stores.images.path(capture.sha256)
    path.unlink() if how == "missing" else path.write_bytes(path.read_bytes()[:200])
    inspector = Inspector(workspace, AgentSettings(llm="off"))
    with (
        inspector,
        pytest.raises(DamagedError, match=rf"is {how}; send it again \(refdiff capture --part 'lost {how}'"),
    ):
        inspector.run(InspectionRequest("inspect", f"lost {how}", "board"))


@pytest.mark.parametrize(
    ("done", "name", "arguments", "says"),
    [
        (0, "retrieve_reference", {"k": 1}, "call find_part first"),
        (1, "align", {"golden_id": "g-0123456789ab"}, "call retrieve_reference first"),
        (2, "score_difference", {"golden_ids": []}, "call align first"),
        (3, "zoom", {"region": "r1"}, "call score_difference first"),
        (3, "measure", {"region": "r1"}, "call score_difference first"),
        (3, "submit_report", {"findings": [], "reasoning": ""}, "call score_difference first"),
    ],
)
def test_tool_called_out_of_order_names_the_missing_step(
    workspace: Workspace, done: int, name: str, arguments: dict[str, Any], says: str
) -> None:
    context = ToolContext(workspace, "1")
    evidence = inspect(context, k=2)[:done]
    with pytest.raises(ToolOrderError, match=says):
        call(context, evidence, name, **arguments)


BOX = {"x0": 1, "y0": 2, "x1": 30, "y1": 40}
REGION = {f"r1_{k}": v for k, v in (BOX | {"place": "centre", "area_px": 9, "peak": 0.5}).items()}
SCORED = {"score": 0.5, "p_value": None, "calibration_parts": 3, "regions": 1, "canonical": True}


@pytest.mark.parametrize(
    ("kind", "arguments", "numbers"),
    [
        ("capture", {"part_id": "1", "capture_id": "c", "product": "p"}, {"width_px": 3, "height_px": 4,
                                                                         "scale_mm_per_px": None}),
        ("reference", {"k": 1, "product": "p"}, {"goldens_in_bank": 3, "found": 1, "golden_1": "g", "similarity_1": 0.9}),
        ("score", {"golden_ids": ["g"]}, SCORED | REGION | {"r1_type": "crack"}),
        ("score", {"golden_ids": ["g"]}, SCORED | REGION),  # filed before regions had types
        ("score", {"golden_ids": ["g"]}, SCORED | REGION | {"r1_new": 1, "r9_x0": 1, "other": "x"}),
        ("zoom", {"region": "r1", "score": "e4"}, BOX | {"reference_covers": True}),
    ],
)  # fmt: skip
def test_evidence_round_trips_through_its_record(kind: str, arguments: dict[str, Any], numbers: dict[str, Any]) -> None:
    record = {
        "id": "e1",
        "kind": kind,
        "arguments": arguments,
        "numbers": numbers,
        "images": {"query": "a"},
        "summary": "s",
    }
    (evidence,) = evidence_of([record])
    assert evidence.model_dump(mode="json") == record
    assert evidence.slots == numbers
