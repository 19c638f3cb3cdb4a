"""Products of height maps and of point clouds: read as stated, compared in mm, and closed to what is of another kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError, SpecError, StorageError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import Defect, SolidPart, depth_png, ply, xyz_tiff
from refdiff.model.synthesis.render import render
from refdiff.tools.framing.frames import place_of
from refdiff.tools.framing.photos import Query
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.golden_samples.reenroll import reenroll
from refdiff.tools.inspection import retrieval
from refdiff.tools.inspection.calibration import calibrate, calibration_key, current_calibration
from refdiff.tools.inspection.comparison import similarities
from refdiff.tools.inspection.fineness import check_specification
from refdiff.tools.inspection.inspection import PhotoInspection, inspect_photo
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.methods import METHODS
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.kinds import cloud as kinds_cloud
from refdiff.tools.kinds.reading import Quantity
from refdiff.tools.workspace import Workspace

PART = SolidPart("bracket")
SIZE = (160, 160)
MM_PER_PX = 0.75
DEPTH: dict[str, Any] = {"unit_mm": 1, "values": "distance"}
Enrolled = Callable[..., Workspace]
BULGE = Defect("bulge", 1.2, 36.0, 17.0, 8.0)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def height_tiff(seed: int, defect: Defect | None = None, **how: Any) -> bytes:
    made = PART.height_map(rng(1, seed), defect, size=SIZE, mm_per_px=MM_PER_PX, **how)
    return xyz_tiff(made.mm, MM_PER_PX)


def scan(seed: int, defect: Defect | None = None, **how: Any) -> bytes:
    return ply(PART.cloud(rng(2, seed), 8000, defect, **how).points)


def photo() -> bytes:
    return encode_png(render("circuit", 1, 1, size=(96, 128), noise_seed=1).image)


def opened(root: Path, working_px: int = 96) -> Workspace:
    memory = MemorySettings(home=root / "home", qdrant_url=None, bank_wait_s=1)
    return Workspace.open(memory=memory, model=ModelSettings(cache=root / "cache", working_px=working_px))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with opened(tmp_path) as workspace:
        yield workspace


def stated(workspace: Workspace, product: str, spec: dict[str, Any]) -> None:
    workspace.stores.products.set_spec(product, parse_spec(spec).model_dump(mode="json"))


def with_height_maps(workspace: Workspace, n: int, **more: Any) -> None:
    stated(workspace, "plate", {"depth": DEPTH | more})
    files = [Upload(f"{i}.tiff", height_tiff(i)) for i in range(n)]
    result = enroll(workspace, "plate", files, kind="depth")
    assert len(result.added) == n, result.refused


def with_clouds(workspace: Workspace, n: int, **more: Any) -> None:
    pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
    stated(workspace, "scan", {"cloud": {"unit_mm": 1, **more}})
    result = enroll(workspace, "scan", [Upload(f"{i}.ply", scan(i)) for i in range(n)], kind="cloud")
    assert len(result.added) == n, result.refused


def with_photos(workspace: Workspace, n: int) -> None:
    assert len(enroll(workspace, "board", [Upload(f"{i}.png", photo()) for i in range(n)]).added) == n


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A folder with so many golden samples of "plate", "scan" or "board", enrolled and calibrated once, to be copied."""
    enrolling = {"plate": with_height_maps, "scan": with_clouds, "board": with_photos}

    @cache
    def made(product: str, n: int) -> Path:
        root = tmp_path_factory.mktemp(f"{product}-{n}-")
        with opened(root) as workspace:
            enrolling[product](workspace, n)
            current_calibration(workspace, product)  # which the first inspection would measure
        return root

    return made


@pytest.fixture
def enrolled(homes: Callable[[str, int], Path], tmp_path: Path) -> Iterator[Enrolled]:
    """Opens a workspace of its own with so many golden samples of a product, and more in that one's specification."""
    with ExitStack() as until_the_end:

        def made(product: str, n: int, **more: Any) -> Workspace:
            shutil.copytree(homes(product, n), tmp_path, dirs_exist_ok=True)
            workspace = until_the_end.enter_context(opened(tmp_path))
            if more:
                stated(
                    workspace,
                    product,
                    {"depth": DEPTH | more} if product == "plate" else {"cloud": {"unit_mm": 1} | more},
                )
            return workspace

        yield made


def inspected(workspace: Workspace, product: str, part: str, data: bytes) -> PhotoInspection:
    capture = record_capture(
        workspace.stores, part, product, Upload("p", data), settings=workspace.model_settings, read=workspace.keep_read
    )
    return inspect_photo(workspace, capture)


def values(result: PhotoInspection) -> dict[str, Quantity]:
    return {q.name: q for q in result.regions[0].described.quantities}


def test_bulge_on_a_turned_height_map_is_measured_in_mm_and_a_good_part_is_not_marked(workspace: Workspace) -> None:
    with_height_maps(workspace, 8)
    calibrate(workspace, "plate")
    product = workspace.stores.products.get("plate")
    assert product is not None
    assert product.kind == "depth"
    bad = inspected(workspace, "plate", "bad", height_tiff(100, BULGE))
    found = values(bad)
    assert bad.regions[0].described.called == "high_spot"
    assert bad.scale.mm_per_px == pytest.approx(MM_PER_PX, rel=1e-3), "the file says it"
    deviation = found["deviation_mm"]
    assert deviation.uncertainty is not None
    assert abs(deviation.value - BULGE.height_mm) <= deviation.uncertainty + 0.05
    assert found["volume_mm3"].value == pytest.approx(0.81 * BULGE.height_mm * np.pi * 64, rel=0.3)
    assert found["highest_deviation_mm"].value >= found["mean_deviation_mm"].value > found["lowest_deviation_mm"].value
    good = inspected(workspace, "plate", "good", height_tiff(101))
    assert bad.comparison.difference.score > 3 * good.comparison.difference.score
    assert any("this is removed from all differences" in note for note in good.remarks.notes)
    assert not good.problems


def test_position_is_in_the_frame_of_the_golden_samples_whichever_way_the_part_lies(
    enrolled: Enrolled,
) -> None:
    workspace = enrolled("plate", 4)
    places = []
    for seed in (110, 111):
        found = values(inspected(workspace, "plate", str(seed), height_tiff(seed, BULGE)))
        places.append((found["frame_x_mm"].value, found["frame_y_mm"].value))
    assert np.hypot(*np.subtract(*places)) < 6


def test_large_hole_asks_a_person_and_small_ones_are_only_said(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 4)
    made = PART.height_map(rng(1, 120), size=SIZE, mm_per_px=MM_PER_PX, turn_deg=0)
    small = inspected(workspace, "plate", "small", xyz_tiff(made.mm, MM_PER_PX))
    assert not small.problems
    assert any("holes" in note for note in small.remarks.notes)
    middle = made.mm.copy()
    middle[70:90, 90:115] = np.nan
    large = inspected(workspace, "plate", "large", xyz_tiff(middle, MM_PER_PX))
    assert any("max_hole_percent" in problem for problem in large.problems)
    assert large.comparison.difference.score == pytest.approx(small.comparison.difference.score, abs=0.3)


def test_surface_where_golden_samples_have_none_is_said_and_asks_a_person(workspace: Workspace) -> None:
    stated(workspace, "plate", {"depth": DEPTH | {"max_hole_percent": 100, "max_missing_percent": 5}})
    window, second = Defect("bulge", 1, -20, 0, 22), Defect("bulge", 1, 24, 0, 18)

    def made(i: int, *lost: Defect) -> bytes:
        mm = PART.height_map(rng(1, i), size=SIZE, mm_per_px=MM_PER_PX, turn_deg=0).mm
        # holes lie on the part, which lies elsewhere each time: on the same px of each file, they would lie on other places
        # of it, and what is missing or too much would be what registration makes of that
        for place in lost:
            mm[PART.height_map(rng(1, i), place, size=SIZE, mm_per_px=MM_PER_PX, turn_deg=0).mask] = np.nan
        return xyz_tiff(mm, MM_PER_PX)

    assert len(enroll(workspace, "plate", [Upload(f"{i}", made(i, window)) for i in range(3)], kind="depth").added) == 3
    found = inspected(workspace, "plate", "whole", made(3))
    assert any("they have no surface, more than 5 % (`depth: max_missing_percent`)" in p for p in found.problems)
    assert any("where the golden samples have no surface; it is not compared" in n for n in found.remarks.notes)
    found = inspected(workspace, "plate", "lacking", made(3, window, second))
    assert any("more than 5 % (`depth: max_missing_percent`); measure the part again" in p for p in found.problems), (
        found.problems
    )
    assert not any("they have no surface, more" in p for p in found.problems), found.problems


def test_part_that_lies_half_outside_of_the_picture_asks_a_person(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 5)
    made = PART.height_map(rng(1, 125), size=SIZE, mm_per_px=MM_PER_PX).mm
    assert not inspected(workspace, "plate", "turned", xyz_tiff(made, MM_PER_PX)).problems, (
        "corners of the table are no part"
    )
    half = inspected(workspace, "plate", "half", xyz_tiff(made[:, : SIZE[1] // 2], MM_PER_PX))
    assert any("outside of the picture" in p and "max_missing_percent" in p for p in half.problems), half.problems
    assert any("lies outside of the picture; it was not inspected" in n for n in half.remarks.notes)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"remove": "offset", "max_tilt_deg": 2}, "max_tilt_deg is about"),
        ({"remove": "none", "max_tilt_deg": 2}, "max_tilt_deg is about"),
        ({"remove": "none", "max_offset_mm": 2}, "max_offset_mm is about"),
    ],
)
def test_limit_of_what_is_not_removed_is_refused_where_it_is_set(
    workspace: Workspace, rules: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said):
        check_specification(workspace, "plate", parse_spec({"depth": DEPTH | rules}))
    check_specification(workspace, "plate", parse_spec({"depth": DEPTH | {"remove": "offset", "max_offset_mm": 2}}))


def test_specification_of_an_earlier_version_with_a_limit_of_what_is_not_removed_is_read(
    enrolled: Enrolled,
) -> None:
    workspace = enrolled("plate", 3, remove="none", max_offset_mm=2)
    assert inspected(workspace, "plate", "1", height_tiff(150)).comparison.difference.height is not None


def test_tilt_that_no_scale_tells_asks_a_person(workspace: Workspace) -> None:
    stated(workspace, "plate", {"depth": {"unit_mm": 0.01, "offset_mm": -100, "values": "height", "max_tilt_deg": 2}})
    maps = [PART.height_map(rng(1, i), size=SIZE, mm_per_px=MM_PER_PX).mm for i in range(4)]
    enroll(workspace, "plate", [Upload(f"{i}.png", depth_png(mm)) for i, mm in enumerate(maps[:3])], kind="depth")
    found = inspected(workspace, "plate", "1", depth_png(maps[3]))
    assert any("no scale says whether the part is tilted" in p for p in found.problems), found.problems


def test_part_that_lies_higher_or_tilted_than_allowed_asks_a_person(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 3, max_offset_mm=5, max_tilt_deg=2)
    made = PART.height_map(rng(1, 130), size=SIZE, mm_per_px=MM_PER_PX, turn_deg=0).mm
    tilted = made + 0.06 * MM_PER_PX * np.arange(SIZE[1], dtype=np.float32)
    for part, mm, said in (("high", made + 9, "max_offset_mm"), ("tilted", tilted, "max_tilt_deg")):
        problems = inspected(workspace, "plate", part, xyz_tiff(mm.astype(np.float32), MM_PER_PX)).problems
        assert any(said in problem for problem in problems), problems


def test_planes_that_are_drawn_are_those_that_were_compared(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 3)
    result = inspected(workspace, "plate", "1", height_tiff(140, BULGE))
    comparison, difference = result.comparison, result.comparison.difference
    kept = KeptDifference(
        difference.anomaly_map, result.threshold, comparison.nearest.alignment.matrix, fit=difference.fit
    )
    kept = KeptDifference.decode(kept.encode())
    capture = workspace.stores.captures.list()[0]
    query, golden = workspace.reading(capture.sha256, "plate"), workspace.golden_reading(comparison.nearest.golden)
    planes = METHODS["depth"].planes(query, golden, kept)
    assert planes is not None
    assert difference.height is not None
    both = np.isfinite(planes.signed) & np.isfinite(difference.height.signed)
    assert both.mean() > 0.5
    assert np.median(np.abs(planes.signed - difference.height.signed)[both]) < 0.05


def test_planes_that_are_drawn_have_the_fit_that_the_comparison_had(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 3, remove="plane_and_scale")
    mm = 1.05 * PART.height_map(rng(1, 141), size=SIZE, mm_per_px=MM_PER_PX).mm
    result = inspected(workspace, "plate", "1", xyz_tiff(mm.astype(np.float32), MM_PER_PX))
    comparison, difference = result.comparison, result.comparison.difference
    assert difference.height is not None
    assert difference.fit[3] == pytest.approx(1.05, abs=0.01)
    sha256 = workspace.stores.captures.list()[0].sha256
    query, golden = workspace.reading(sha256, "plate"), workspace.golden_reading(comparison.nearest.golden)
    apart = {}
    for name, fit in (("kept", difference.fit), ("none", (0.0, 0.0, 0.0, 1.0))):
        kept = KeptDifference(difference.anomaly_map, 1.0, comparison.nearest.alignment.matrix, fit=fit)
        planes = METHODS["depth"].planes(query, golden, KeptDifference.decode(kept.encode()))
        assert planes is not None
        both = np.isfinite(planes.signed) & np.isfinite(difference.height.signed)
        assert both.mean() > 0.5
        apart[name] = np.quantile(np.abs(planes.signed - difference.height.signed)[both], 0.85)
    assert 4 * apart["kept"] < apart["none"], apart
    assert apart["kept"] < 0.1


def test_defect_of_a_cloud_is_measured_in_its_view_and_in_the_frame_of_the_first(workspace: Workspace) -> None:
    with_clouds(workspace, 6)
    places = {place_of(workspace, g).anchor_id for g in workspace.bank.list("scan")}
    assert len(places) == 1, "all in one frame"
    calibrate(workspace, "scan")
    bad = [inspected(workspace, "scan", str(s), scan(s, BULGE)) for s in (200, 201)]
    good = inspected(workspace, "scan", "good", scan(202))
    assert not good.problems, good.problems
    for part, result in zip(("200", "201"), bad, strict=True):
        assert result.comparison.difference.score > 1.5 * good.comparison.difference.score
        region = result.regions[0]
        assert region.described.called == "extra_material"
        assert region.measurement.place.endswith("view")
        deviation = values(result)["deviation_mm"]
        assert deviation.uncertainty is not None
        assert abs(deviation.value - BULGE.height_mm) <= deviation.uncertainty + 0.1
        query = workspace.reading(workspace.stores.captures.latest(part, "scan").sha256, "scan")
        assert query.scan is not None
        assert deviation.uncertainty > 2 * query.scan.off_mm > 0, "all of it may be off by what registration leaves"
    at = [np.array([values(r)[f"frame_{axis}_mm"].value for axis in "xyz"]) for r in bad]
    assert np.linalg.norm(at[0] - at[1]) < 8


def test_part_of_a_cloud_that_was_not_scanned_is_said_and_asks_a_person_where_it_is_much(
    enrolled: Enrolled,
) -> None:
    workspace = enrolled("scan", 3)
    found = inspected(workspace, "scan", "part", scan(210, partial=0.35))
    assert any("was not measured" in problem for problem in found.problems), found.problems


def test_cloud_is_parsed_once_from_its_arrival_to_its_report(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, names = kinds_cloud.read_cloud, []

    def counted(data: bytes, *, name: str, **how: Any) -> Any:
        names.append(name)
        return read(data, name=name, **how)

    monkeypatch.setattr(kinds_cloud, "read_cloud", counted)
    with_clouds(workspace, 3)
    # the first, before there is a window: tried, then looked at for its size, then read
    assert names == ["0.ply"] * 3 + ["1.ply", "2.ply"]
    names.clear()
    inspected(workspace, "scan", "part", scan(212))
    assert len(names) == 1


@pytest.mark.parametrize("kind", ["depth", "cloud"])
def test_golden_sample_of_the_same_variant_is_retrieved_whichever_way_a_part_lies(
    workspace: Workspace, kind: str
) -> None:
    """Two variants whose pictures look alike: they differ in two studs of 4 to 8 mm across and 1.5 to 3 mm high."""
    if kind == "cloud":
        pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
    variants = [SolidPart("dome", seed) for seed in (1, 2)]

    def made(variant: int, seed: int) -> Upload:
        if kind == "cloud":
            return Upload(f"{variant}", ply(variants[variant].cloud(rng(9, variant, seed), 6000).points))
        heights = variants[variant].height_map(rng(9, variant, seed), size=SIZE, mm_per_px=MM_PER_PX).mm
        return Upload(f"{variant}", xyz_tiff(heights, MM_PER_PX))

    stated(workspace, "domes", {"cloud": {"unit_mm": 1}} if kind == "cloud" else {"depth": DEPTH})
    goldens = [made(variant, seed) for seed in range(2) for variant in range(2)]
    assert len(enroll(workspace, "domes", goldens, kind=kind).added) == 4
    for variant, seed in ((0, 100), (1, 101), (0, 102), (1, 103)):
        capture = record_capture(
            workspace.stores, f"{seed}", "domes", made(variant, seed), settings=workspace.model_settings,
            read=workspace.keep_read,
        )  # fmt: skip
        picture = workspace.image(capture.sha256, "domes")
        query = Query(picture, capture.sha256, workspace.encoder.embed(picture))
        found = nearest_goldens(workspace, query, "domes", 4)
        assert found[0].golden.filename == f"{variant}"
        again = similarities(workspace, query, [hit.golden for hit in found])
        assert [h.similarity for h in again] == pytest.approx([h.similarity for h in found], abs=1e-4)


def two_shapes(i: int) -> Upload:
    shape = ("bracket", "wheel")[i % 2]
    return Upload(shape, xyz_tiff(SolidPart(shape).height_map(rng(8, i), size=SIZE, mm_per_px=MM_PER_PX).mm, MM_PER_PX))


def test_product_is_inspected_and_enrolled_without_the_lost_file_of_a_retired_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as workspace:
        stated(workspace, "plate", {"depth": DEPTH})
        added = enroll(workspace, "plate", [two_shapes(i) for i in range(6)], kind="depth").added
        frames = workspace.stores.frames.of("plate")
        assert [frames[g.golden_id] for g in added] == [added[i % 2].golden_id for i in range(6)], "a frame each"
        workspace.bank.set_status(added[0].golden_id, "retired", "lost")
        workspace.stores.images.path(added[0].sha256).unlink()
    with opened(tmp_path) as workspace:  # nothing of it is in memory
        found = inspected(workspace, "plate", "1", two_shapes(100).data)
        hits = found.comparison.hits
        assert {h.golden.filename for h in hits[:2]} == {"bracket"}
        assert found.comparison.nearest.alignment.ok
        assert found.comparison.difference.score < 1.0, "a good part"
        goldens, sha256 = [h.golden for h in hits], workspace.stores.captures.latest("1", "plate").sha256
        query = Query(workspace.image(sha256, "plate"), sha256, found.comparison.features)
        again = similarities(workspace, query, goldens)
        assert [h.similarity for h in again] == pytest.approx([h.similarity for h in hits], abs=1e-4)
        assert enroll(workspace, "plate", [two_shapes(6)]).refused == []
        # goldens of a frame that are all out of use ask for no registration
        for golden in added[2::2]:
            workspace.bank.set_status(golden.golden_id, "retired", "old")
        for golden in workspace.bank.list("plate"):
            if golden.filename == "bracket":
                workspace.bank.set_status(golden.golden_id, "retired", "old")
        asked: list[str] = []
        through = retrieval.vectors_in_frame

        def noted(workspace: Workspace, query: Any, frame: Any, product: str) -> Any:
            asked.append(frame.anchor_id)
            return through(workspace, query, frame, product)

        monkeypatch.setattr(retrieval, "vectors_in_frame", noted)
        monkeypatch.setattr(retrieval, "_FRAMES", 1)
        found_of = nearest_goldens(workspace, query, "plate", 2)
        assert asked == [added[1].golden_id]
        assert {hit.golden.filename for hit in found_of} == {"wheel"}


def test_height_maps_are_enrolled_again_where_they_lie(tmp_path: Path) -> None:
    with opened(tmp_path) as workspace:
        with_height_maps(workspace, 3)
        goldens = workspace.bank.list("plate")
        before = [workspace.bank.vectors(g.golden_id) for g in goldens]
        places = [place_of(workspace, g) for g in goldens]
    with opened(tmp_path, 128) as workspace:
        result = reenroll(workspace)
        assert (result.restored, result.refused) == (goldens, [])
        assert [place_of(workspace, g) for g in goldens] == places
        for golden, vectors in zip(goldens, before, strict=True):
            for now, then in zip(workspace.bank.vectors(golden.golden_id), vectors, strict=True):
                np.testing.assert_allclose(now, then, atol=1e-5)


def test_golden_sample_that_is_not_added_leaves_no_place(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with_height_maps(workspace, 2)

    def full(*_: Any) -> bool:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(workspace.bank, "add", full)
        with pytest.raises(StorageError, match="full"):
            enroll(workspace, "plate", [Upload("3.tiff", height_tiff(3))])
    assert len(workspace.stores.frames.of("plate")) == 2
    assert len(enroll(workspace, "plate", [Upload("3.tiff", height_tiff(3))]).added) == 1
    assert len(workspace.stores.frames.of("plate")) == 3


def test_what_lies_outside_counts_without_ignore_zones_and_with_one_badly_enrolled_golden(
    enrolled: Enrolled,
) -> None:
    workspace = enrolled("plate", 5)
    # of the anchor itself: it is surely the nearest, and its picture is the one that the zone below covers
    made = PART.height_map(rng(1, 0), size=SIZE, mm_per_px=MM_PER_PX).mm
    half = xyz_tiff(made[:, : SIZE[1] // 2], MM_PER_PX)

    def compared(part: str) -> tuple[list[Golden], float]:
        found = inspected(workspace, "plate", part, half).comparison
        assert found.difference.height is not None
        return [hit.golden for hit in found.hits], found.difference.height.outside

    def outside(part: str) -> float:
        return compared(part)[1]

    (*_, golden), before = compared("half")  # the least similar: by the nearest, the part is placed
    assert before > 0.2
    place = place_of(workspace, golden)
    away = replace(place, matrix=(1.0, 0.0, 130.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    workspace.places[golden.golden_id] = away
    assert outside("half again") == pytest.approx(before, abs=0.06)
    workspace.places[golden.golden_id] = place
    zone = {"name": "all", "kind": "ignore", "box": [0, 0, SIZE[1], SIZE[0]]}
    stated(workspace, "plate", {"depth": DEPTH, "zones": [zone]})
    assert outside("without zones") < 0.05


@pytest.mark.parametrize("rule", ["max_hole_percent", "max_missing_percent"])
def test_each_limit_of_what_was_not_scanned_asks_a_person_by_its_name(enrolled: Enrolled, rule: str) -> None:
    workspace = enrolled("scan", 3, **{"max_hole_percent": 100.0, "max_missing_percent": 100.0, rule: 4.0})
    found = inspected(workspace, "scan", "part", scan(210, partial=0.1))
    assert [p for p in found.problems if f"more than 4 % (`cloud: {rule}`)" in p], found.problems
    assert not inspected(workspace, "scan", "whole", scan(211)).problems


@pytest.mark.parametrize(
    ("product", "data", "said"),
    [
        ("plate", photo, "not a height map"),
        ("plate", lambda: scan(1), "holds a point cloud"),
        ("scan", photo, "a picture, not a point cloud"),
        ("scan", lambda: height_tiff(1), "a picture, not a point cloud"),
        ("board", lambda: scan(1), "holds a point cloud"),
        ("board", lambda: height_tiff(1), "cannot be read"),
        ("board", lambda: depth_png(PART.height_map(rng(1), size=SIZE).mm), "intensity window"),
    ],
)
def test_file_of_another_kind_is_refused_by_name(enrolled: Enrolled, product: str, data: Any, said: str) -> None:
    workspace = enrolled(product, 1)
    with pytest.raises(ImageError, match=said):
        record_capture(workspace.stores, "1", product, Upload("p", data()), settings=workspace.model_settings)


def test_what_a_number_means_cannot_change_once_golden_samples_are_enrolled(enrolled: Enrolled) -> None:
    workspace = enrolled("plate", 1)
    with pytest.raises(SpecError, match="cannot change"):
        check_specification(workspace, "plate", parse_spec({"depth": DEPTH | {"unit_mm": 2}}))
    before = calibration_key(workspace, "plate", 4)
    pictures = parse_spec(
        {"depth": DEPTH | {"palette": "iron"}, "limits": [{"max_deviation_mm": 1, "severity": "minor"}]}
    )
    check_specification(workspace, "plate", pictures)
    workspace.stores.products.set_spec("plate", pictures.model_dump(mode="json"))
    assert calibration_key(workspace, "plate", 4) == before


@pytest.mark.parametrize(
    ("quantity", "said"),
    [
        (Quantity("delta_k", "", 12.34, "K", 0.84), "+12.3 ± 0.8 K"),
        (Quantity("mean_c", "", 61.26, "°C"), "61.3 °C"),
        (Quantity("deviation_mm", "", -0.34221, "mm", 0.0213), "-0.342 ± 0.021 mm"),
        (Quantity("deviation_mm", "", 12.3456, "mm", 1.2), "+12.3 ± 1.2 mm"),
        (Quantity("volume_mm3", "", 184.2, "mm³", 31.0), "184 ± 31 mm³"),
        (Quantity("frame_x_mm", "", 40.1234, "mm"), "40.1 mm"),
        (Quantity("unlikeness", "", 55.0, ""), "55.0"),
    ],
)
def test_quantity_is_said_with_as_many_digits_as_it_is_known(quantity: Quantity, said: str) -> None:
    assert quantity.said == said
