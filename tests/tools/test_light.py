"""A photo that fails because of its light alone goes to a person with that reason; a defect still fails."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.memory.records.calibrations import Calibration
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Light, render
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import MIN_PARTS_TO_FAIL, attained_alpha, calibrate, score_threshold
from refdiff.tools.inspection.inspection import PhotoInspection, inspect_photo
from refdiff.tools.inspection.light import other_light
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

SAME = Light()
STAIN = DefectSpec("stain", size_px=14, where=(64, 48), contrast=0.8)
# a third of the part: the network's view of every other place changes with it
LARGE = (DefectSpec("stain", size_px=30, where=(64, 48), contrast=1.0), DefectSpec("scratch", size_px=60, contrast=1.0))


def drawn(instance: int, light: Light = SAME, *defects: DefectSpec) -> NDArray[np.uint8]:
    return render("circuit", 1, instance, size=(96, 128), noise_seed=instance, light=light, defects=defects).image


@dataclass
class Line:
    """A product that is calibrated under one lamp."""

    workspace: Workspace
    calibration: Calibration

    def inspected(self, photo: NDArray[np.uint8]) -> PhotoInspection:
        upload = Upload("photo.png", encode_png(photo))
        taken = record_capture(self.workspace.stores, "1", "board", upload, settings=self.workspace.model_settings)
        return inspect_photo(self.workspace, taken)

    @property
    def attained(self) -> float:
        return attained_alpha(0.01, self.calibration.n)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    root = tmp_path_factory.mktemp("line")
    memory = MemorySettings(home=root / "home", qdrant_url=None)
    model = ModelSettings(cache=root / "cache", working_px=128)
    with Workspace.open(memory, model, ToolsSettings()) as workspace:
        photos = [Upload(f"{i}.png", encode_png(drawn(i))) for i in range(MIN_PARTS_TO_FAIL)]
        enroll(workspace, "board", photos)
        yield Line(workspace, calibrate(workspace, "board"))


PHOTOS = {
    "the same lamp": (drawn(50), False, ""),
    "another lamp": (drawn(50, Light(azimuth_deg=300)), True, "as bright as the nearest: lit from another direction"),
    "another lamp and exposure": (drawn(50, Light(azimuth_deg=300, gain=0.7)), True, "% darker"),
    "another colour of light": (drawn(50, Light(temperature=1)), True, "% more red"),
    "a stain": (drawn(50, SAME, STAIN), True, ""),
    "a large defect": (drawn(50, SAME, *LARGE), True, ""),
    "a stain under light that fails by itself": (drawn(50, Light(gain=0.6), STAIN), True, ""),
}


@pytest.mark.parametrize("name", PHOTOS)
def test_photo_that_fails_by_its_light_alone_is_a_problem_in_words(line: Line, name: str) -> None:
    photo, fails, words = PHOTOS[name]
    found = line.inspected(photo)
    assert found.p_value is not None
    assert (found.p_value <= line.attained) == fails  # by the score
    light = [p for p in found.problems if "the whole photo differs" in p]
    assert [words in p for p in light] == ([True] if words else [])


def test_part_that_is_darker_as_a_whole_never_passes(line: Line) -> None:
    """It may be the light, or the part: no photo alone tells."""
    found = line.inspected((drawn(50) * 0.5).astype(np.uint8))
    assert found.p_value is not None
    assert found.p_value <= line.attained
    [problem] = found.problems
    assert "50 % darker" in problem
    assert "in any of 20 good parts" in problem


def test_level_explains_a_score_only_where_it_is_out_of_range_itself(line: Line) -> None:
    photo, known, attained = drawn(50, Light(azimuth_deg=300)), line.calibration, line.attained
    found = line.inspected(photo)
    comparison, p = found.comparison, found.p_value
    difference = comparison.difference

    def problem(known: Calibration | None = known, p: float | None = p, **changed: float) -> str:
        return other_light(photo, replace(comparison, difference=replace(difference, **changed)), known, p, attained)

    assert problem()
    assert len(known.levels) == known.n
    assert known.levels == sorted(known.levels)
    highest, limit = known.levels[-1], score_threshold(known.scores, attained)
    assert limit is not None
    assert problem(level=highest) == ""
    assert problem(score=limit * (difference.level / highest) ** 2 * 1.01) == ""
    assert problem(p=0.5)  # the score passes, but the photo does not resemble the golden samples
    alike = replace(comparison, hits=[replace(comparison.hits[0], similarity=1.0)])
    assert other_light(photo, alike, known, 0.5, attained) == ""  # what passes is left alone
    assert problem(replace(known, levels=known.levels[:7])) == ""  # of so few, none is usual
    assert problem(replace(known, levels=[])) == ""  # of an earlier version
    assert problem(None, None) == ""
    # edges lie elsewhere than in good parts: another label, say
    assert len(known.edges) == known.n
    assert known.edges == sorted(known.edges)
    other = replace(comparison, alignments=[replace(a, ncc=0.79 * known.edges[0]) for a in comparison.alignments])
    assert other_light(photo, other, known, p, attained) == ""
    assert other_light(photo, other, replace(known, edges=[]), p, attained)  # measured by an earlier version
    assert "another light, exposure or camera?" in other_light(
        photo,
        replace(
            comparison, nearest=replace(comparison.nearest, alignment=replace(comparison.nearest.alignment, ok=False))
        ),
        known,
        p,
        attained,
    )


def test_reason_that_is_known_more_exactly_is_the_only_one(line: Line) -> None:
    grey = np.repeat(drawn(50)[..., 1:2], 3, axis=2)
    [problem] = line.inspected(grey).problems
    assert "the photo is grey" in problem
