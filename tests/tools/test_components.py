"""Components: found without labels where golden samples show them in one number, counted, and calibrated honestly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import ComponentCount, Location, Severity, Verdict
from refdiff.agent.report.summary import count_text
from refdiff.agent.verdict.decide import PolicyInput, Rated, RatedFinding, decide
from refdiff.memory.kinds import ProductKind
from refdiff.memory.rows.calibrations import Calibration, Component, packed_components, packed_rows, unpacked_components
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, UnknownRecordError
from refdiff.tools.inspection import components
from refdiff.tools.inspection.calibration import is_counted, learned_parts
from refdiff.tools.inspection.component_names import look_of, name_component, names_of, recognised
from refdiff.tools.inspection.components import Learned, count, learn
from refdiff.tools.workspace import Workspace

GRID, CHANNELS, PX = 20, 8, 320
CLIP, SCREW = 1, 2  # channels that stand for them; 0 is the ground
SIZE = (PX, PX)

Look = NDArray[np.float32]


def look(rng: np.random.Generator, clips: int, screws: int = 0, touching: bool = False) -> Look:
    """Cells of a photo with so many parts of 2 x 2 cells at random places, none at the edge."""
    cells = rng.normal(0, 0.05, (GRID, GRID, CHANNELS)).astype(np.float32)
    cells[..., 0] += 1
    free = [(y, x) for y in range(2, GRID - 3, 5) for x in range(2, GRID - 3, 5)]
    places = [free[i] for i in rng.permutation(len(free))]
    if touching:
        places[:2] = [(7, 7), (7, 9)]
        places[2:] = [p for p in places[2:] if p[0] != 7]
    for (y, x), kind in zip(places, [CLIP] * clips + [SCREW] * screws, strict=False):
        cells[y : y + 2, x : x + 2, kind] += 3
    return cells / np.linalg.norm(cells, axis=2, keepdims=True)


def goldens(clips: Sequence[int], screws: int = 0) -> list[Look]:
    rng = np.random.default_rng(0)
    return [look(rng, n, screws) for n in clips]


def test_two_kinds_of_equal_parts_are_found_and_counted_apart() -> None:
    learned = learn(goldens([5] * 20, 3), [None] * 20)
    assert sorted(c.count for c in learned.components) == [3, 5]
    assert learned.wrong_by == [0] * 20
    photo = look(np.random.default_rng(1), 4, 4)
    found = {c.expected: c.found for c in count(learned.components, photo, None, SIZE)}
    assert found == {5: 4, 3: 4}


def test_a_counted_part_has_its_box_in_pixels_of_the_photo() -> None:
    learned = learn(goldens([5] * 20), [None] * 20)
    photo = look(np.random.default_rng(2), 1)
    (counted,) = count(learned.components, photo, None, (2 * PX, PX))
    (instance,) = counted.instances
    y, x = (int(v[0]) for v in np.nonzero(photo[..., CLIP] > 0.5))
    centre = (instance.box[0] + instance.box[2]) / 2, (instance.box[1] + instance.box[3]) / 2
    assert centre == pytest.approx(((x + 1) * PX / GRID, (y + 1) * 2 * PX / GRID), abs=PX / GRID / 2)


def test_two_parts_that_touch_count_as_two() -> None:
    learned = learn(goldens([5] * 20), [None] * 20)
    (counted,) = count(learned.components, look(np.random.default_rng(3), 5, touching=True), None, SIZE)
    assert (counted.found, len(counted.instances)) == (5, 4)


def test_what_lies_in_an_ignore_zone_is_not_counted() -> None:
    learned = learn(goldens([5] * 20), [None] * 20)
    photo, ignored = look(np.random.default_rng(4), 5), np.ones(SIZE, bool)
    assert [c.found for c in count(learned.components, photo, ignored, SIZE)] == [0]


@pytest.mark.parametrize("clips", [[3, 4, 5, 6] * 5, [1] * 20, [0] * 20], ids=["varying", "one alone", "none"])
def test_golden_samples_without_equal_parts_in_one_number_have_no_components(clips: list[int]) -> None:
    learned = learn(goldens(clips), [None] * len(clips))
    assert learned.components == []
    assert not any(learned.wrong_by)


def test_a_golden_sample_that_deviates_alone_is_told_and_nothing_is_counted() -> None:
    learned = learn(goldens([5] * 12 + [4] + [5] * 12), [None] * 25)
    assert learned.components == []
    assert [i for i, wrong in enumerate(learned.wrong_by) if wrong] == [12]


def test_components_of_a_calibration_are_kept_as_they_were_found(tmp_path: Path) -> None:
    learned = learn(goldens([5] * 20, 3), [None] * 20)
    made = Calibration("clips", "key", [0.1, 0.2], 0.2, 2, 1, components=learned.components, per_miscount=0.2)
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        stores.calibrations.save(made)
        kept = stores.calibrations.get("clips", "key")
    assert kept is not None
    assert kept.per_miscount == 0.2
    photo = look(np.random.default_rng(1), 4, 4)
    assert count(kept.components, photo, None, SIZE) == count(learned.components, photo, None, SIZE)


def test_calibration_row_has_the_centres_of_a_clustering_once_and_reads_rows_of_earlier_versions() -> None:
    centres = np.random.default_rng(0).normal(size=(12, 112)).astype(np.float32)
    kept = [Component(centres, [i], 30.0 + i, 2 + i) for i in range(4)] + [Component(centres + 1, [0], 9.0, 3)]
    row = packed_components(kept)
    assert [len(row["centres"]), len(row["of"])] == [2, 5]
    assert len(json.dumps(row)) < 3 * len(row["centres"][0]["data"])
    data = [row["centres"][p["centres"]]["data"] for p in row["of"]]
    earlier = [p | {"centres": d, "clusters": 12} for p, d in zip(row["of"], data, strict=True)]
    for read in (unpacked_components(row), unpacked_components(earlier)):
        assert [(c.members, c.area, c.count) for c in read] == [(c.members, c.area, c.count) for c in kept]
        assert all((a.centres == b.centres).all() for a, b in zip(read, kept, strict=True))


# ---- names ----


def named(learned: Learned, **names: int) -> dict[str, dict[str, Any]]:
    """As a product has them; names: of the component of which a good part has so many."""
    by_count = {c.count: c for c in learned.components}
    return {name: packed_rows(look_of(by_count[n])[None]) for name, n in names.items()}


def test_name_stays_with_what_a_component_looks_like_whatever_its_number_and_count() -> None:
    names = named(learn(goldens([5] * 20, 3), [None] * 20), clip=5, screw=3)
    rng = np.random.default_rng(9)
    later = learn([look(rng, 4, 2) for _ in range(25)], [None] * 25).components
    assert {c.count: n for c, n in zip(later, recognised(later, names), strict=True)} == {4: "clip", 2: "screw"}
    assert recognised(later[::-1], names) == recognised(later, names)[::-1]


def test_component_is_not_recognised_by_another_look_or_encoder() -> None:
    learned = learn(goldens([5] * 20, 3), [None] * 20)
    clip, screw = (next(c for c in learned.components if c.count == n) for n in (5, 3))
    names = named(learned, clip=5)
    assert recognised([clip], names) == ["clip"]
    assert recognised([screw], names) == [None]
    assert recognised([replace(clip, centres=np.pad(clip.centres, ((0, 0), (0, 8))))], names) == [None]


@pytest.fixture
def tray(tmp_path: Path) -> Iterator[Stores]:
    """A product that counts clips (5) and screws (3)."""
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        stores.products.ensure("tray")
        components = sorted(learn(goldens([5] * 20, 3), [None] * 20).components, key=lambda c: -c.count)
        stores.calibrations.save(Calibration("tray", "key", [0.1], 0.2, 1, 1, components=components))
        yield stores


def test_component_is_named_renamed_and_forgotten_by_number_or_name(tray: Stores) -> None:
    known = tray.calibrations.latest("tray")
    assert known is not None

    def called() -> tuple[list[str | None], list[str]]:
        return names_of(tray, "tray", known.components)

    name_component(tray, "Tray", "1", "klip", "ana")
    name_component(tray, "tray", "klip", "  spring   clip", "ana")
    name_component(tray, "tray", "2", "screw", "ana")
    assert called() == (["spring clip", "screw"], [])
    name_component(tray, "tray", " screw ", "Schlu\u0308ssel / M4", "ana")  # decomposed, as some keyboards do
    assert called() == (["spring clip", "Schlüssel / M4"], [])
    name_component(tray, "tray", "Schlu\u0308ssel  / M4", None, "ana")
    assert called() == (["spring clip", None], [])
    # an earlier calibration that is in use again numbers them its own way
    name_component(tray, "tray", "1", "screw", "ana", replace(known, components=known.components[::-1]))
    assert called() == (["spring clip", "screw"], [])
    name_component(tray, "tray", "screw", None, "ana")
    # a calibration that counts nothing like it says so, and the name can be taken away
    tray.calibrations.save(replace(known, key="other", components=known.components[1:]))
    assert names_of(tray, "tray", known.components[1:]) == ([None], ["spring clip"])
    name_component(tray, "tray", "spring clip", None, "ana")
    assert called() == ([None, None], [])
    assert tray.audit.verify_store().problems == []


@pytest.mark.parametrize(
    ("component", "name", "said"),
    [
        ("3", "clip", "no component '3'; counted are: 1, screw"),
        ("nut", None, "no component 'nut'"),
        ("1", None, "has no name"),
        ("1", "screw", "component 2 of product 'tray' is called 'screw' already"),
        ("1", "7", "a mere number"),
        ("1", "<b>", "name of a component '<b>'"),
    ],
)
def test_naming_what_is_not_there_or_not_clear_says_so(
    tray: Stores, component: str, name: str | None, said: str
) -> None:
    name_component(tray, "tray", "2", "screw", "ana")
    with pytest.raises((InputError, UnknownRecordError), match=re.escape(said)):
        name_component(tray, "tray", component, name, "ana")


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (1 / 41, "Component 1: 4 of 5, which no good part shows (p 0.024, alpha 0.03)"),
        (2 / 41, "Component 1: 4 of 5, and only 1 of 40 good parts shows a difference as large (p 0.049, alpha 0.03)"),
        (0.5, "Component 1: 4 of 5, but 19 of 40 good parts show a difference as large (p 0.5, alpha 0.03)"),
    ],
)
def test_the_reason_of_a_verdict_says_what_was_counted(p: float, said: str) -> None:
    decision = decide(PolicyInput(p, 40, 0.03, oddities=["component 1: 4 of 5"]))
    assert decision.reason == said
    assert decision.verdict is not Verdict.PASS


def test_limits_accept_findings_but_no_wrong_number() -> None:
    within = RatedFinding(Rated(Severity.MINOR, True, False, "is short"), 0.01, "Scratch f1")
    facts = PolicyInput(1 / 101, 100, 0.03, findings=[within])
    assert decide(facts).verdict is Verdict.PASS
    assert decide(replace(facts, oddities=["component 1: 4 of 5"])).verdict is Verdict.FAIL


@pytest.mark.parametrize(
    ("loose", "parts", "counted"), [(11, 20, True), (10, 20, False), (19, 19, False), (20, 39, True), (0, 100, False)]
)
def test_components_are_looked_for_from_20_parts_on_most_of_which_do_not_register_to_the_nearest(
    loose: int, parts: int, counted: bool
) -> None:
    assert is_counted(loose, parts) is counted


@pytest.mark.parametrize(("kind", "counts"), [("photo", [5]), ("thermal", [])])
def test_equal_parts_are_counted_in_photos_and_not_in_thermal_pictures(
    tmp_path: Path, kind: ProductKind, counts: list[int]
) -> None:
    with Workspace.open(MemorySettings(home=tmp_path, qdrant_url=None)) as workspace:
        workspace.stores.products.set_kind("clips", kind)
        learned = learned_parts(workspace, "clips", 20, goldens([5] * 20), [None] * 20)
    assert [c.count for c in learned.components] == counts
    assert len(learned.wrong_by) == 20


_FOUND_BY = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
from test_components import goldens, learn
learned = learn(goldens([5] * 24, 3), [None] * 24)
digest = hashlib.sha256(b"".join(c.centres.tobytes() + bytes(c.members) for c in learned.components))
print([(c.area, c.count) for c in learned.components], learned.wrong_by, digest.hexdigest())
"""


def test_components_are_the_same_whatever_the_number_of_threads() -> None:
    def found(threads: int) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", _FOUND_BY, str(Path(__file__).parent)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    one, two = found(1), found(2)
    assert one == two
    assert "5)" in one


def test_any_encoder_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV resizes no more than 512 planes at once."""
    monkeypatch.setattr(components, "_CELLS", 1000)
    wide = [np.pad(look, ((0, 0), (0, 0), (0, 760))) for look in goldens([5] * 20)]
    assert [c.count for c in learn(wide, [None] * 20).components] == [5]


def test_a_count_reads_as_missing_or_as_extra() -> None:
    assert count_text(ComponentCount(number=2, expected=6, found=5)) == "component 2: 5 of 6"
    assert count_text(ComponentCount(number=2, expected=6, found=7)) == "component 2: 7 instead of 6"
    assert count_text(ComponentCount(number=2, name="clip", expected=6, found=5)) == "clip: 5 of 6"


def test_the_overlay_boxes_what_was_counted_only_where_the_number_is_wrong() -> None:
    grey, seen = np.full((100, 100, 3), 120, np.uint8), [Location(x0=30, y0=30, x1=60, y1=60, region="centre")]
    right = ComponentCount(number=1, expected=1, found=1, seen=seen)
    assert (pictures.overlay(grey, [], components=[right]) == 120).all()
    made = pictures.overlay(grey, [], components=[right.model_copy(update={"expected": 2})])
    rows, columns = np.nonzero((made == 255).all(-1))
    assert (columns.min() // 8, rows.max() // 8) == pytest.approx((29, 60), abs=2)
