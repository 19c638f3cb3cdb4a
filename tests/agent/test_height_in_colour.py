"""Height and colour of one part in one report: a dent without colour and a stain without height both fail, a place that has
both is one finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.agent.filing import ReportFiles
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.markdown import render_markdown
from refdiff.agent.report.schema import DefectReport, Finding
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.rows.networks import ProductNetworks
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.comparing import Network
from refdiff.model.images import F32, decode_image, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import Defect, SolidPart, Stain, xyz_tiff
from refdiff.model.thermal.palettes import NOT_MEASURED
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection import inspection
from refdiff.tools.inspection.calibration import calibrate, calibration_key, current_calibration
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.vision.registration import coverage
from refdiff.tools.workspace import Workspace

PART = SolidPart("bracket")
SIZE, MM_PER_PX = (160, 160), 0.75
DEPTH: dict[str, Any] = {"unit_mm": 1, "values": "distance", "colour": True}
DENT = Defect("dent", 1.2, -24.0, -14.0, 6.0)
STAIN = Stain(36.0, 17.0, 4.0)


def made(
    seed: int, defect: Defect | None = None, stain: Stain | None = None, *, hole_at: Stain | None = None, **how: Any
) -> Upload:
    """A height map with its colour photo. hole_at: where nothing of the height is measured."""
    rng = np.random.default_rng((5, seed))
    height = PART.height_map(rng, defect, size=SIZE, mm_per_px=MM_PER_PX, **how)
    mm = height.mm.copy()
    if hole_at is not None:
        mm[np.hypot(height.u - hole_at.x, height.v - hole_at.y) < hole_at.radius_mm + 1] = np.nan
    photo = PART.colour_photo(height, rng, stain)
    return Upload(f"{seed}.tiff", xyz_tiff(mm, MM_PER_PX), encode_png(photo))


def opened(home: Path) -> Workspace:
    memory = MemorySettings(home=home, qdrant_url=None, bank_wait_s=1)
    return Workspace.open(memory=memory, model=ModelSettings(cache=home / "cache", working_px=160))


def stated(workspace: Workspace, product: str, spec: dict[str, Any]) -> None:
    workspace.stores.products.set_spec(product, parse_spec(spec).model_dump(mode="json"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with opened(tmp_path_factory.mktemp("colour")) as workspace:
        stated(workspace, "plate", {"depth": DEPTH})
        result = enroll(workspace, "plate", [made(i) for i in range(21)], kind="depth")
        assert len(result.added) == 21, result.refused
        calibrate(workspace, "plate")
        yield workspace


def inspected(workspace: Workspace, part: str, upload: Upload) -> DefectReport:
    record_capture(workspace.stores, part, "plate", upload, settings=workspace.model_settings)
    with Inspector(workspace, AgentSettings(llm="off")) as inspector:
        return inspector.run(InspectionRequest(f"inspect part {part}", part))


def quantities(finding: Finding) -> dict[str, float]:
    return {q.name: q.value for q in finding.quantities}


def test_good_parts_pass(workspace: Workspace) -> None:
    reports = [inspected(workspace, f"good {seed}", made(seed)) for seed in range(200, 204)]
    assert [r.verdict for r in reports].count("PASS") >= 3, [r.verdict_reason for r in reports]
    report = reports[0]
    assert (report.kind, report.unit) == ("depth", "")
    assert any("height and colour are scored together" in note for note in report.notes)


def test_dent_without_colour_fails_and_is_measured_in_mm(workspace: Workspace) -> None:
    report = inspected(workspace, "dent", made(101, DENT))
    assert report.verdict == "FAIL", report.verdict_reason
    finding = report.findings[0]
    assert (finding.type, finding.found_in) == ("low_spot", ["height"])
    (deviation, *_) = finding.quantities
    assert deviation.name == "deviation_mm"
    assert deviation.uncertainty is not None
    assert abs(deviation.value + DENT.height_mm) <= deviation.uncertainty + 0.1
    assert "colour_difference" not in quantities(finding)
    assert "Found in: height" in render_markdown(report)


def test_stain_without_height_fails_and_says_that_it_is_of_the_colour(workspace: Workspace) -> None:
    report = inspected(workspace, "stain", made(102, stain=STAIN))
    assert report.verdict == "FAIL", report.verdict_reason
    finding = report.findings[0]
    assert (finding.type, finding.found_in) == ("colour_change", ["colour"])
    assert quantities(finding).keys() == {"colour_difference"}
    assert quantities(finding)["colour_difference"] > 10
    assert finding.length_mm == pytest.approx(2 * STAIN.radius_mm, rel=0.4)
    assert "ΔE" in finding.description


def test_dent_and_stain_at_one_place_are_one_finding_and_apart_two(workspace: Workspace) -> None:
    there = Stain(DENT.x, DENT.y, 5.0)
    report = inspected(workspace, "both", made(104, DENT, there))
    assert report.verdict == "FAIL"
    assert [(f.type, f.found_in) for f in report.findings] == [("low_spot", ["height", "colour"])]
    assert {"deviation_mm", "colour_difference"} <= quantities(report.findings[0]).keys()
    report = inspected(workspace, "apart", made(105, DENT, STAIN))
    assert {tuple(f.found_in) for f in report.findings} == {("height",), ("colour",)}


def test_stain_in_a_hole_of_the_height_map_is_found_in_colour(workspace: Workspace) -> None:
    report = inspected(workspace, "hole", made(106, stain=STAIN, hole_at=STAIN))
    assert [f.found_in for f in report.findings[:1]] == [["colour"]]
    assert report.p_value == pytest.approx(1 / 22)


def repainted(upload: Upload, paint: Callable[[F32], F32]) -> Upload:
    """A height map with another colour photo: what `paint` makes of it, (H, W, 3) 0..255."""
    assert upload.colour is not None
    photo = paint(decode_image(upload.colour).astype(np.float32))
    return replace(upload, colour=encode_png(np.clip(photo, 0, 255).astype(np.uint8)))


def darker(upload: Upload) -> Upload:
    return repainted(upload, lambda photo: photo * np.array([0.65, 0.6, 0.5], np.float32))


def test_another_light_asks_a_person_and_hides_neither_dent_nor_stain(workspace: Workspace) -> None:
    report = inspected(workspace, "dark", darker(made(201)))
    assert report.verdict == "REVIEW", report.verdict_reason
    assert "the whole photo differs from the golden samples" in report.verdict_reason
    assert "darker" in report.verdict_reason
    for part, upload in (("dark dent", made(201, DENT)), ("dark stain", made(201, stain=STAIN))):
        report = inspected(workspace, part, darker(upload))
        assert report.verdict == "FAIL", report.verdict_reason


def test_another_print_on_all_of_a_part_is_no_matter_of_light_however_well_the_heights_fit(
    workspace: Workspace,
) -> None:
    across = np.arange(SIZE[1], dtype=np.float32)[None, :, None]
    striped = repainted(made(202), lambda photo: photo + 60 * np.sign(np.sin(2 * np.pi * across / 16)))
    for part, upload in (("striped", striped), ("other side", repainted(made(202), lambda photo: photo[::-1]))):
        report = inspected(workspace, part, upload)
        assert report.verdict == "FAIL", report.verdict_reason


def test_heights_that_spread_widely_hide_no_stain_under_another_light(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_spread_heights(*_: Any, **__: Any) -> Any:
        known = current_calibration(workspace, "plate")
        assert known is not None
        return replace(known, scores=[*known.scores[:-1], 100 * known.scores[-1]])

    monkeypatch.setattr(inspection, "current_calibration", of_spread_heights)
    report = inspected(workspace, "dark stain", darker(made(201, stain=STAIN)))
    assert report.image_score > of_spread_heights().scores[-1]
    assert report.verdict == "FAIL", report.verdict_reason


def test_colour_photo_that_is_grey_asks_a_person(workspace: Workspace) -> None:
    grey = repainted(made(203), lambda photo: np.repeat(photo.mean(2, keepdims=True), 3, axis=2))
    report = inspected(workspace, "grey", grey)
    assert report.verdict == "REVIEW", report.verdict_reason
    assert "the photo is grey" in report.verdict_reason


def test_limit_of_height_accepts_no_colour(workspace: Workspace) -> None:
    accepting = {"type": "any", "max_deviation_mm": 5, "severity": "minor"}
    try:
        stated(workspace, "plate", {"depth": DEPTH, "limits": [accepting]})
        dent = inspected(workspace, "dent", made(101, DENT))
        assert dent.verdict == "PASS", dent.verdict_reason
        assert inspected(workspace, "stain", made(102, stain=STAIN)).verdict == "FAIL"
        assert inspected(workspace, "both", made(104, DENT, Stain(DENT.x, DENT.y, 5.0))).verdict == "FAIL"
        small = [{"type": "colour_change", "max_length_mm": 40, "severity": "minor"}, accepting]
        stated(workspace, "plate", {"depth": DEPTH, "limits": small})
        assert inspected(workspace, "stain", made(102, stain=STAIN)).verdict == "PASS"
    finally:
        stated(workspace, "plate", {"depth": DEPTH})


def test_limit_of_height_does_not_pass_a_colour_that_stands_out_without_a_strong_place(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_spread_colours(*_: Any, **__: Any) -> Any:
        known = current_calibration(workspace, "plate")
        assert known is not None
        height, colour = known.maps
        return replace(known, maps=[height, replace(colour, threshold=1e4 * colour.threshold)])

    monkeypatch.setattr(inspection, "current_calibration", of_spread_colours)
    accepting = {"type": "any", "max_deviation_mm": 5, "severity": "minor"}
    try:
        stated(workspace, "plate", {"depth": DEPTH, "limits": [accepting]})
        apart = inspected(workspace, "apart", made(105, DENT, STAIN))
        assert apart.verdict == "FAIL", apart.verdict_reason
        assert {tuple(f.found_in) for f in apart.findings} == {("height",), ("colour",)}
        assert inspected(workspace, "both", made(104, DENT, Stain(DENT.x, DENT.y, 5.0))).verdict == "FAIL"
        assert inspected(workspace, "dent", made(101, DENT)).verdict == "PASS"
    finally:
        stated(workspace, "plate", {"depth": DEPTH})


def test_copies_of_a_workspace_compare_colours_as_they_do_themselves(workspace: Workspace) -> None:
    assert workspace.in_colour.how("plate").in_colour
    assert workspace.in_float32().in_colour.model_settings.number_format == "float32"
    networks = ProductNetworks("plate", "0" * 64, "1" * 64, [[], []])
    assert workspace.trying(networks, []).in_colour.fitted("plate") == networks
    assert workspace.fitted("plate") is None


def test_copies_of_a_workspace_load_networks_and_see_pictures_of_their_own(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(itself: Workspace, networks: ProductNetworks) -> list[Network]:
        asked.append(itself.model_settings.number_format)
        return [itself.trained_difference]

    monkeypatch.setattr(Workspace, "load_networks", load)
    monkeypatch.setattr(Workspace, "fitted", lambda *_: ProductNetworks("plate", "0" * 64, "1" * 64, [[]]))
    for one in (workspace, workspace, exact := workspace.in_float32(), exact):
        one.network("plate")
    assert asked == [workspace.model_settings.number_format, "float32"]
    golden, there = workspace.bank.list("plate")[0], np.eye(3)
    query = workspace.golden_reading(golden)
    assert query.visible is not None
    turned = np.ascontiguousarray(query.visible[::-1])
    assert workspace.edge_correlation(query.picture, "a part", golden, there) > 0.99
    assert workspace.in_colour.edge_correlation(turned, "a part", golden, there) < 0.9


def test_pictures_show_heights_and_colours(workspace: Workspace) -> None:
    report = inspected(workspace, "shown", made(107, DENT, STAIN))
    files = ReportFiles(workspace)
    drawing = files.drawing(report.inspection_id)
    assert drawing is not None
    assert drawing.values is not None
    colour = drawing.values.colour
    assert colour is not None
    beyond = ~coverage(drawing.kept.matrix, SIZE, SIZE)
    assert beyond.any()
    assert (colour.reference[beyond] == NOT_MEASURED).all()
    assert colour.query.shape == colour.reference.shape == (*SIZE, 3)
    at = next(f.location for f in report.findings if f.found_in == ["colour"])
    inside = colour.anomaly_map[at.y0 : at.y1, at.x0 : at.x1]
    assert inside.max() >= 1 > np.median(colour.anomaly_map)
    for name in ("overlay", "heatmap", "side_by_side"):
        picture = decode_image(files.path(report.inspection_id, name).read_bytes())
        assert picture.shape[0] > SIZE[0]
    assert "colour change" in files.path(report.inspection_id, "html").read_text()


def test_product_without_colour_is_compared_as_before(tmp_path: Path) -> None:
    with opened(tmp_path) as workspace:
        plain = {k: v for k, v in DEPTH.items() if k != "colour"}
        stated(workspace, "plate", {"depth": plain})
        known = workspace.stores.products.get("plate")
        assert known is not None
        assert "colour" not in known.spec["depth"]
        files = [Upload(u.name, u.data) for u in (made(i) for i in range(3))]
        assert len(enroll(workspace, "plate", files, kind="depth").added) == 3
        key = calibration_key(workspace, "plate", 4)
        stated(workspace, "plate", {"depth": plain | {"colour": False}})
        assert calibration_key(workspace, "plate", 4) == key
        assert calibrate(workspace, "plate").maps == []
        bad = made(100, DENT)
        report = inspected(workspace, "1", Upload(bad.name, bad.data))
        assert report.unit == "mm"
        assert report.image_score == pytest.approx(DENT.height_mm, abs=0.5)
        assert not report.findings[0].found_in
