"""A photo that registers to none of its golden samples never passes where good parts register; nor does a black one fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from refdiff.agent.evaluation.run import evaluate
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import Verdict
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import render
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate, summary
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SAID = "The photo fits its golden samples only when mirrored"


def photo(instance: int) -> RgbImage:
    return render("label", 3, instance, size=(96, 128), noise_seed=instance).image


def mirrored(image: RgbImage) -> RgbImage:
    return np.ascontiguousarray(image[:, ::-1])


PARTS = 40
BLACK = np.zeros((96, 128, 3), np.uint8)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None)
    model = ModelSettings(cache=tmp_path / "cache", working_px=128)
    with Workspace.open(memory, model, ToolsSettings(references=2)) as opened:
        photos = [Upload(f"{i}.png", encode_png(photo(i))) for i in range(PARTS)]
        enroll(opened, "label", photos)
        yield opened


def verdict(workspace: Workspace, image: RgbImage, part: str) -> tuple[Verdict, str]:
    upload = Upload(f"{part}.png", encode_png(image))
    record_capture(workspace.stores, part, "label", upload, settings=workspace.model_settings)
    with Inspector(workspace, AgentSettings(llm="off")) as inspector:
        report = inspector.run(InspectionRequest("inspect the part", part))
    return report.verdict, report.verdict_reason


def test_mirrored_part_fails_and_a_black_photo_goes_to_a_person(workspace: Workspace) -> None:
    good = verdict(workspace, photo(51), "1")
    assert good[0] is Verdict.PASS, good
    found, reason = verdict(workspace, mirrored(photo(51)), "2")
    assert found is Verdict.FAIL, reason
    assert reason.startswith(f"{SAID}, which no good part shows"), reason
    found, reason = verdict(workspace, BLACK, "3")
    assert found is Verdict.REVIEW, reason


def test_golden_sample_that_does_not_register_is_named_and_flagged(workspace: Workspace) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    enroll(workspace, "label", [Upload("wrong.png", encode_png(noise))])
    [wrong] = [g for g in workspace.bank.list("label") if g.filename == "wrong.png"]
    workspace.bank.set_status(wrong.golden_id, "active", "")  # it was flagged as an outlier
    calibration = calibrate(workspace, "label")
    assert calibration.unregistered == [wrong.golden_id]
    assert summary(calibration, 0.01)["unregistered"] == [wrong.golden_id]
    flagged = workspace.bank.get(wrong.golden_id)
    assert flagged.status == "flagged"
    assert flagged.note.startswith("registers to none of the other golden samples")


def test_data_set_is_evaluated_as_parts_are_inspected(tmp_path: Path) -> None:
    def save(image: RgbImage, where: str) -> None:
        (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / where), image[..., ::-1])

    for i in range(PARTS):
        save(photo(i), f"train/good/{i:02}.png")
    save(photo(51), "test/good/0.png")
    save(mirrored(photo(51)), "test/mirrored/0.png")
    save(BLACK, "test/black/0.png")
    results = evaluate(tmp_path, references=2)
    assert {r.kind: r.verdict for r in results.per_image} == {
        "good": Verdict.PASS, "mirrored": Verdict.FAIL, "black": Verdict.REVIEW,
    }  # fmt: skip
