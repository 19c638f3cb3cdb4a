"""What the golden sample has where a finding is, from photos to the report: a lower level, a missing part."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff.agent.inspector import Inspector
from refdiff.agent.language.questions import answer
from refdiff.agent.report.markdown import render_markdown
from refdiff.agent.report.schema import DefectReport, Expected, Location
from refdiff.agent.report.summary import finding_line, golden_sentences
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, PartKind, Scene, render
from refdiff.tools.evidence import MeasureEvidence
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.workspace import Workspace

SIZE, MM_PER_PX = (320, 320), 0.15


def scene(kind: PartKind, instance: int, *defects: DefectSpec, design: int = 5) -> Scene:
    return render(kind, design, instance, size=SIZE, noise_seed=instance, noise_sigma=1.5, defects=defects)


def inspected(home: Path, kind: PartKind, photo: Scene) -> DefectReport:
    """The report about a photo, without a language model; goldens are other parts of the same design."""
    with Workspace.open(MemorySettings(home=home, qdrant_url=None)) as workspace:
        uploads = [Upload(f"{i}.png", encode_png(scene(kind, i, design=photo.design_seed).image)) for i in range(6)]
        enroll(workspace, kind, uploads)
        sha256 = workspace.stores.images.put(encode_png(photo.image))
        workspace.stores.captures.add("7", kind, sha256, MM_PER_PX)
        with Inspector(workspace, AgentSettings(llm="off")) as inspector:
            return inspector.run(InspectionRequest("inspect part 7", "7"))


def test_report_says_by_how_much_a_level_is_lower_in_px_and_mm_with_its_evidence(tmp_path: Path) -> None:
    photo = scene("bottle", 50, DefectSpec("wrong_fill_level", size_px=22, contrast=0.9, seed=3))
    truth = photo.defects[0].moved_px
    assert truth is not None
    report = inspected(tmp_path, "bottle", photo)
    (finding,) = [f for f in report.findings if f.moved is not None]
    moved = finding.moved
    assert moved is not None
    # the golden is another bottle, whose level differs too
    assert moved.y_px == pytest.approx(truth[1], abs=6)
    assert moved.distance_mm == pytest.approx(moved.distance_px * MM_PER_PX, rel=0.01)
    said = f"{moved.distance_px:.3g} px ({moved.distance_mm:.3g} mm) {'lower' if truth[1] > 0 else 'higher'}"
    assert f"{said} than on the golden sample." in finding.description
    assert said in finding_line(finding)
    assert said in render_markdown(report)
    assert said.replace("lower", "tiefer").replace("higher", "höher") in answer(report, "Wie tief ist die Kante?")
    record = next(e for e in report.evidence if e.id == moved.evidence)
    assert isinstance(record, MeasureEvidence)
    assert moved.evidence in finding.evidence
    assert (record.numbers.moved_px, record.numbers.moved_mm) == (moved.distance_px, moved.distance_mm)
    assert (record.slots["moved_px"], record.numbers.moved_direction) == (moved.distance_px, moved.direction)


def test_report_says_that_a_level_has_sunk_at_least_to_the_label_that_hides_it(tmp_path: Path) -> None:
    lower = DefectSpec("wrong_fill_level", size_px=40, contrast=0.9, seed=3)
    photo = scene("bottle", 50, lower, design=1521630214)
    truth = photo.defects[0].moved_px
    assert truth is not None
    report = inspected(tmp_path, "bottle", photo)
    (finding,) = [f for f in report.findings if f.moved is not None]
    moved = finding.moved
    assert moved is not None
    assert moved.at_least
    assert 10 < moved.distance_px < truth[1] == pytest.approx(40, abs=0.1)
    said = f"at least {moved.distance_px:.3g} px ({moved.distance_mm:.3g} mm) lower"
    assert f"The level is {said} than on the golden sample, and hidden in one of the two." in finding.description
    assert said in finding_line(finding)
    assert "mindestens" in answer(report, "Wie tief ist der Füllstand?")
    record = next(e for e in report.evidence if e.id == moved.evidence)
    assert isinstance(record, MeasureEvidence)
    assert record.numbers.moved_at_least
    assert "at least" in record.summary


def test_nothing_is_claimed_of_the_golden_sample_where_it_does_not_tell(tmp_path: Path) -> None:
    """The empty socket stands out more than the part in it, so no outline is the golden sample's alone."""
    report = inspected(tmp_path, "moulded", scene("moulded", 50, DefectSpec("missing_component", contrast=0.9, seed=1)))
    (finding,) = [f for f in report.findings if f.type == "missing_component"]
    assert finding.expected is None
    assert "golden sample" not in finding.description


@pytest.mark.parametrize(
    ("component", "name", "outlined", "said"),
    [
        (
            None,
            None,
            True,
            "The golden sample shows something there (box 1, 2, 30, 40 px) that the photo does not show.",
        ),
        (2, None, False, "The golden sample shows component 2 there (box 1, 2, 30, 40 px)."),
        (2, "clip", True, "The golden sample shows clip there (box 1, 2, 30, 40 px) that the photo does not show."),
    ],
)
def test_what_the_golden_sample_shows_where_a_part_is_missing_is_said(
    component: int | None, name: str | None, outlined: bool, said: str
) -> None:
    place = Location(x0=1, y0=2, x1=30, y1=40, region="upper left")
    expected = Expected(place=place, component=component, name=name, outlined=outlined, evidence="e5")
    assert golden_sentences("missing_component", None, expected) == [said]


def test_nothing_is_said_of_the_golden_sample_where_a_good_part_was_scratched(tmp_path: Path) -> None:
    report = inspected(
        tmp_path, "moulded", scene("moulded", 50, DefectSpec("scratch", size_px=60, contrast=0.9, seed=2))
    )
    assert report.findings
    assert all(f.moved is None and f.expected is None for f in report.findings)
    assert all("moved_px" not in e.slots for e in report.evidence)
