"""Loose parts, from photos to the verdict: found without labels, counted, and failed where one is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from loose_parts import photo

from refdiff.agent.inspector import Inspector
from refdiff.agent.language.questions import answer
from refdiff.agent.report.html import PagePictures, render_html
from refdiff.agent.report.schema import Verdict
from refdiff.agent.report.summary import facts
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import _uncontradicted, calibrate
from refdiff.tools.inspection.component_names import name_component, names_of
from refdiff.tools.inspection.components import look_of
from refdiff.tools.workspace import Workspace


def test_a_missing_clip_fails_by_its_name_without_a_region_and_what_people_contradict_is_not_counted(
    tmp_path: Path,
) -> None:
    rng, counts = np.random.default_rng(5), (5, 3)
    taken = {
        "good": photo(counts, rng, 256),
        "missing": photo((4, 3), rng, 256),
        "cropped": photo(counts, rng, 256)[:, :160],
    }
    with Workspace.open(MemorySettings(home=tmp_path / "home", qdrant_url=None)) as workspace:
        enroll(workspace, "tray", [Upload(f"{i}.png", encode_png(photo(counts, rng, 256))) for i in range(21)])
        calibration = calibrate(workspace, "tray")
        assert sorted(c.count for c in calibration.components) == [3, 5]
        clips = next(i for i, c in enumerate(calibration.components, start=1) if c.count == 5)
        name_component(workspace.stores, "tray", str(clips), "clip", "ana")
        for name, image in taken.items():
            sha256 = workspace.stores.images.put(encode_png(np.ascontiguousarray(image)))
            workspace.stores.captures.add(part_id=name, product="tray", sha256=sha256, filename=name)
        with Inspector(workspace, AgentSettings(llm="off")) as inspector:
            reports = {name: inspector.run(InspectionRequest(f"inspect part {name}", name)) for name in taken}
            # the same photo against wrong numbers: it fails by counting alone
            wrong = [replace(c, count=c.count + 1) for c in calibration.components]
            workspace.stores.calibrations.save(replace(calibration, components=wrong))
            reports["miscounted"] = inspector.run(InspectionRequest("inspect part good", "good"))
        # a person finds the part with four clips good: what it contradicts is not counted any more
        rescued = [Upload("rescued.png", encode_png(taken["missing"]))]
        enroll(workspace, "tray", rescued, golden_source="disposition")
        later = calibrate(workspace, "tray").components
        assert [c.count for c in later] == [3]
        assert names_of(workspace.stores, "tray", later) == ([None], ["clip"])
        # with all of the rescued photo ignored, it contradicts the other component, too
        (golden,) = [g for g in workspace.bank.list("tray") if g.source == "disposition"]
        everything = {"name": "all", "kind": "ignore", "box": [0, 0, 256, 256]}
        workspace.stores.products.set_spec("tray", {"frame": golden.golden_id, "zones": [everything]})
        shapes = {look_of(workspace.golden_features(golden)).shape}
        assert _uncontradicted(workspace, "tray", later, shapes) == []
    assert reports["missing"].verdict is Verdict.FAIL
    assert reports["missing"].verdict_reason.startswith("Clip: 4 of 5")
    told = {fact.label: fact.value for fact in facts(reports["missing"])}
    assert told["Counted"].startswith("clip: 4 of 5; component ")
    assert "clip: 4 von 5" in answer(reports["missing"], "Wie viele clip sind da?")
    photo_of_part = encode_png(taken["missing"])
    assert f"(c{clips}: clip)" in render_html(reports["missing"], PagePictures(photo_of_part, photo_of_part))
    assert "clip: 4 of 5" in next(e.summary for e in reports["missing"].evidence if e.kind == "score")
    assert [(c.found, len(c.seen)) for c in reports["missing"].components if c.wrong] == [(4, 4)]
    assert [c.wrong for c in reports["good"].components] == [False, False]
    assert [c.wrong for c in reports["miscounted"].components] == [True, True]
    assert reports["miscounted"].verdict is Verdict.FAIL
    assert [f.location for f in reports["miscounted"].findings] == [f.location for f in reports["good"].findings]
    assert reports["good"].verdict is not Verdict.FAIL
    assert reports["cropped"].verdict is Verdict.REVIEW
    assert "another shape" in reports["cropped"].verdict_reason
    assert not reports["cropped"].components
