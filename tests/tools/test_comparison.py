"""Retrieval, alignment and scoring on a real embedded bank: rendered parts of two variants at any angle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.records.captures import Capture
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import InputError, UnknownProductError, UnknownRecordError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Pose, Scene, render
from refdiff.tools.context import measure_evidence
from refdiff.tools.framing.photos import Query
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection import inspection, retrieval
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.inspection import PhotoInspection, inspect_photo
from refdiff.tools.inspection.pieces import Extent
from refdiff.tools.inspection.retrieval import nearest_goldens, retrieve_reference
from refdiff.tools.inspection.scale import resolve_scale
from refdiff.tools.inspection.zones import place_zones
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.regions import place_name
from refdiff.tools.vision.registration import Alignment, turn_in_words
from refdiff.tools.vision.shape import tight
from refdiff.tools.workspace import Workspace

SIZE = (224, 224)
VARIANTS = {"a": 102, "b": 103}
TURNS = [float(angle) for angle in range(30, 360, 55)]
PER_VARIANT = 6


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Product "board" holds 6 goldens of each variant, a0.png ... b5.png."""
    root = tmp_path_factory.mktemp("pipeline")
    memory = MemorySettings(home=root / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=root / "cache", working_px=224)
    with Workspace.open(memory=memory, model=model, tools=ToolsSettings(references=2)) as opened:
        for name, design in VARIANTS.items():
            for i in range(PER_VARIANT):
                image = render("circuit", design, i, size=SIZE, noise_seed=i).image
                (root / f"{name}{i}.png").write_bytes(encode_png(image))
        assert enroll(opened, "board", [root], scale_mm_per_px=0.1).n_in_bank == 2 * PER_VARIANT
        yield opened


@pytest.fixture
def zones(workspace: Workspace) -> Iterator[None]:
    """Reset the product's specification after each test."""
    yield
    workspace.stores.products.set_spec("board", {})


@lru_cache(maxsize=64)
def part(variant: str, angle: float = 0.0, *, broken: bool = False, scale: float = 1.0) -> Scene:
    """A part that was never enrolled; broken: one component is missing."""
    defects = [DefectSpec("missing_component", seed=1, contrast=1.0)] if broken else []
    pose = Pose(angle_deg=angle, scale=scale)
    return render("circuit", VARIANTS[variant], 40, size=SIZE, pose=pose, noise_seed=round(angle) + 7, defects=defects)


def first_of(workspace: Workspace, variant: str) -> Golden:
    return next(g for g in workspace.bank.list("board") if g.filename == f"{variant}0.png")


@pytest.fixture(scope="module")
def compared(workspace: Workspace) -> dict[tuple[str, float, bool], Comparison]:
    """(variant, angle, broken) -> comparison, upright and turned all the way round."""
    return {
        (variant, angle, broken): compare(workspace, part(variant, angle, broken=broken).image, "board")
        for variant in VARIANTS
        for angle in (0.0, *TURNS)
        for broken in (False, True)
    }


Compared = dict[tuple[str, float, bool], Comparison]


def test_nearest_goldens_are_of_the_same_variant(compared: Compared) -> None:
    for (variant, angle, broken), result in compared.items():
        names = [hit.golden.filename for hit in result.hits]
        assert len(names) == 2
        assert [n[0] for n in names] == [variant] * 2, (variant, angle, broken)
        assert result.hits[0].similarity >= result.hits[1].similarity


def test_part_at_every_angle_is_registered(compared: Compared) -> None:
    for (_, angle, _), result in compared.items():
        nearest = result.alignments[0]
        assert nearest.ok, nearest.reason
        off = (nearest.angle_deg + angle) % 360  # the renderer counts counter-clockwise
        assert min(off, 360 - off) < 2


def test_missing_component_scores_above_every_good_part(compared: Compared) -> None:
    for angles in ((0.0,), TURNS):
        good, bad = (
            [r.difference.score for (_, angle, broken), r in compared.items() if angle in angles and broken is wanted]
            for wanted in (False, True)
        )
        assert min(bad) > 1.05 * max(good)
    assert min(r.difference.score for (_, _, broken), r in compared.items() if broken) > max(
        r.difference.score for (_, _, broken), r in compared.items() if not broken
    )


def test_anomaly_map_peaks_at_the_defect(compared: Compared) -> None:
    hits = 0
    for (variant, angle, broken), result in compared.items():
        if not broken:
            continue
        anomaly = result.difference.anomaly_map
        assert anomaly.shape == SIZE
        truth = part(variant, angle, broken=True).defects[0]
        y, x = np.unravel_index(int(anomaly.argmax()), SIZE)
        x0, y0, x1, y1 = truth.box
        hits += x0 - 10 <= x < x1 + 10 and y0 - 10 <= y < y1 + 10
    assert hits >= 0.9 * len(compared) / 2


def test_comparison_is_deterministic(workspace: Workspace, compared: Compared) -> None:
    again = compare(workspace, part("a", TURNS[0], broken=True).image, "board")
    assert again.difference.score == compared["a", TURNS[0], True].difference.score


def test_comparison_of_the_same_photo_meanwhile_changes_nothing(
    workspace: Workspace, compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a calibration that the photo is part of, which registers it to other golden samples."""
    search, meanwhile = retrieval.retrieve_reference, False

    def searched(*args: Any, **kwargs: Any) -> Any:
        nonlocal meanwhile
        hits = search(*args, **kwargs)
        if not meanwhile:
            meanwhile = True
            compare(workspace, image, "board", exclude_ids=[hits[0].golden.golden_id])
            meanwhile = False
        return hits

    monkeypatch.setattr(retrieval, "retrieve_reference", searched)
    for angle in TURNS:
        image = part("a", angle, broken=True).image
        found, alone = compare(workspace, image, "board"), compared["a", angle, True]
        assert found.difference.score == alone.difference.score
        assert all(np.array_equal(a.matrix, b.matrix) for a, b in zip(found.alignments, alone.alignments, strict=True))


# ---- which way round the part lies ----


@pytest.mark.parametrize("quarters", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_part_turned_by_right_angles_is_found_and_scored_as_upright(
    workspace: Workspace, compared: Compared, variant: str, quarters: int
) -> None:
    upright = compared[variant, 0.0, False]
    turned = compare(workspace, np.ascontiguousarray(np.rot90(part(variant).image, -quarters)), "board")
    assert turned.hits[0].similarity > upright.hits[0].similarity - 0.03
    assert {h.golden.filename[0] for h in turned.hits} == {variant}
    assert turned.difference.score < 1.5 * upright.difference.score
    way = {1: "90 degrees clockwise", 2: "180 degrees", 3: "90 degrees counter-clockwise"}[quarters]
    assert turned.alignments[0].reason.endswith(f"; the part lies turned by {way}")
    assert "turned by" not in upright.alignments[0].reason


def test_part_at_any_angle_is_searched_for_as_it_lies_upright(workspace: Workspace, compared: Compared) -> None:
    gains = []
    for (variant, angle, broken), result in compared.items():
        image = part(variant, angle, broken=broken).image
        plain = retrieve_reference(workspace, workspace.encoder.embed(image), "board")[0].similarity
        gains.append(result.hits[0].similarity - plain)
    assert min(gains) >= 0
    assert np.mean(gains) > 0.02


def test_upright_part_is_encoded_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    embed = workspace.encoder.embed
    image = part("a").image
    features = embed(image)
    monkeypatch.setattr(workspace.encoder, "embed", lambda *a: calls.append(1) or embed(*a))
    hits = nearest_goldens(workspace, Query(image, "upright", features), "board", 2)
    assert (len(calls), hits) == (0, retrieve_reference(workspace, features, "board", 2))
    turned = np.ascontiguousarray(np.rot90(image))
    nearest_goldens(workspace, Query(turned, "turned", embed(turned)), "board", 2)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("max_turn_deg", "quarters", "problem"),
    [
        (None, 2, False),
        (10, 0, False),
        (10, 2, True),
        (90.5, 1, False),
        (45, 1, True),
        (180, 2, False),
    ],
)
def test_turn_beyond_the_specification_is_a_problem(
    workspace: Workspace, zones: None, max_turn_deg: float | None, quarters: int, problem: bool
) -> None:
    workspace.stores.products.set_spec("board", {"max_turn_deg": max_turn_deg})
    image = np.ascontiguousarray(np.rot90(part("a").image, -quarters))
    sha256 = workspace.stores.images.put(encode_png(image))
    capture = workspace.stores.captures.add(f"turned-{quarters}", "board", sha256)
    found = [p for p in inspect_photo(workspace, capture).problems if "the specification allows" in p]
    assert len(found) == problem
    if problem:
        assert found[0].startswith(f"the part lies turned by {90 * quarters} degrees")


def test_turn_of_a_part_that_does_not_register_is_unknown(workspace: Workspace, zones: None) -> None:
    workspace.stores.products.set_spec("board", {"max_turn_deg": 10})
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    assert any("nobody knows how it lies" in p for p in _inspected(workspace, noise).problems)


def test_critical_zone_outside_of_the_photo_asks_a_person(workspace: Workspace, zones: None) -> None:
    width, height = SIZE[1], SIZE[0]
    _spec(workspace, [0, 0, width // 8, height], kind="critical")
    whole = part("a").image
    cut = np.ascontiguousarray(whole[:, width // 6 :])
    assert not any("outside" in p for p in _inspected(workspace, whole).problems)
    problems = _inspected(workspace, cut).problems
    assert "critical zone z lies outside of the photo; photograph all of the part" in problems


def test_photo_of_an_enrolled_part_is_compared_with_no_other_photo_of_it(workspace: Workspace) -> None:
    scene, group = part("a", broken=True), "a damaged part"
    photos = [Upload(f"{i}.png", encode_png(np.minimum(scene.image, 254) + np.uint8(i))) for i in range(2)]
    twins = enroll(workspace, "board", photos, part_group=group).added
    try:
        capture = workspace.stores.captures.add("twin", "board", twins[0].sha256)
        found = inspect_photo(workspace, capture)
        assert not {h.golden.golden_id for h in found.comparison.hits} & {g.golden_id for g in twins}
    finally:
        for twin in twins:
            workspace.bank.set_status(twin.golden_id, "retired")


@pytest.mark.parametrize("angle", [0.0, *TURNS[::2]])
def test_findings_of_turned_parts_are_drawn_where_they_are_in_the_photo(workspace: Workspace, angle: float) -> None:
    defects = [
        DefectSpec("scratch", size_px=70, contrast=1.0, seed=3),
        DefectSpec("stain", size_px=18, contrast=1.0, seed=5),
    ]
    pose = Pose(angle_deg=angle)
    scene = render("circuit", VARIANTS["a"], 41, size=SIZE, pose=pose, noise_seed=5, defects=defects)
    photo = workspace.stores.images.put(encode_png(scene.image))
    found = inspect_photo(workspace, workspace.stores.captures.add(f"drawn-{angle:g}", "board", photo))
    assert found.regions
    for result in found.regions:
        m, extent = result.measurement, result.extent
        inside = np.zeros(SIZE, np.uint8)
        cv2.fillPoly(inside, extent.outline, (1,))
        assert inside[m.box[1] : m.box[3], m.box[0] : m.box[2]][m.mask].all()
        assert tight(inside > 0, (0, 0))[0] == extent.box
        said = measure_evidence(result, "e1", found.scale).numbers
        assert (said.x0, said.y0, said.x1, said.y1) == extent.box
        assert said.place == m.place == place_name(extent.box, SIZE)
    strongest = found.regions[0].extent.box
    assert scene.defect_mask[strongest[1] : strongest[3], strongest[0] : strongest[2]].any()


@pytest.mark.parametrize(
    ("angle", "words"),
    [(180, "180 degrees"), (-176, "180 degrees"), (91, "90 degrees clockwise"), (-89, "90 degrees counter-clockwise"),
     (30, "30 degrees clockwise"), (-133.4, "133 degrees counter-clockwise")],
)  # fmt: skip
def test_turn_is_said_in_right_angles_where_it_is_near_one(angle: float, words: str) -> None:
    assert turn_in_words(angle) == f"turned by {words}"


# ---- which goldens ----


def test_excluded_goldens_are_not_compared_with(workspace: Workspace) -> None:
    image = part("a").image
    first, second = (h.golden for h in compare(workspace, image, "board").hits)
    others = [h.golden for h in compare(workspace, image, "board", exclude_ids=[first.golden_id]).hits]
    assert first not in others
    assert others[0] == second
    assert len(compare(workspace, image, "board", references=5).hits) == 5


def test_given_goldens_replace_the_nearest(workspace: Workspace) -> None:
    wrong = first_of(workspace, "b")
    result = compare(workspace, part("a").image, "board", goldens=[wrong])
    right = compare(workspace, part("a").image, "board")
    assert [h.golden for h in result.hits] == [wrong]
    assert result.difference.score > 2 * right.difference.score
    assert result.hits[0].similarity < right.hits[0].similarity
    with pytest.raises(InputError, match="no golden samples"):
        compare(workspace, part("a").image, "board", goldens=[])


def test_golden_compared_as_a_photo_finds_itself(workspace: Workspace) -> None:
    golden = first_of(workspace, "a")
    result = compare(workspace, workspace.golden_image(golden), "board", references=1)
    assert result.hits[0].golden == golden
    assert result.hits[0].similarity == pytest.approx(1, abs=1e-3)
    assert result.difference.score < 1e-2


def test_unknown_product_error_names_the_known_ones(workspace: Workspace) -> None:
    with pytest.raises(UnknownProductError, match="board"):
        compare(workspace, part("a").image, "bord")


def _inspected(workspace: Workspace, image: RgbImage) -> PhotoInspection:
    photo = workspace.stores.images.put(encode_png(image))
    return inspect_photo(workspace, workspace.stores.captures.add("9", "board", photo))


# ---- zones ----


def _around(scene: Scene, margin: int = 8) -> list[int]:
    x0, y0, x1, y1 = scene.defects[0].box
    return [x0 - margin, y0 - margin, x1 + margin, y1 + margin]


def _spec(workspace: Workspace, *boxes: list[int], kind: str = "ignore", **more: Any) -> None:
    listed = [{"name": "z", "kind": kind, "box": box} for box in boxes]
    workspace.stores.products.set_spec("board", {"frame": first_of(workspace, "a").golden_id, "zones": listed} | more)


@pytest.mark.usefixtures("zones")
@pytest.mark.parametrize("angle", [0.0, 85.0, 200.0])
def test_ignore_zone_turns_with_the_part(workspace: Workspace, angle: float) -> None:
    scene = part("a", angle, broken=True)
    open_eyed = compare(workspace, scene.image, "board")
    _spec(workspace, _around(part("a", broken=True)))
    blind = compare(workspace, scene.image, "board")
    assert blind.zones_placed
    assert blind.ignore is not None
    truth = scene.defects[0].mask
    assert blind.ignore[truth].mean() > 0.97
    assert blind.ignore.mean() < 0.2
    assert not blind.difference.anomaly_map[blind.ignore].any()
    assert blind.difference.score < 0.8 * open_eyed.difference.score


@pytest.mark.usefixtures("zones")
def test_photo_of_which_nothing_is_looked_at_does_not_pass(workspace: Workspace) -> None:
    _spec(workspace, [-50, -50, 500, 500])
    photo = workspace.stores.images.put(encode_png(part("a", broken=True).image))
    found = inspect_photo(workspace, workspace.stores.captures.add("5", "board", photo))
    assert found.p_value == 1
    assert found.threshold > 0
    assert [p for p in found.problems if p.startswith("nothing was compared: the ignore zones")]


@pytest.mark.usefixtures("zones")
def test_ignore_zone_away_from_the_defect_keeps_the_score(workspace: Workspace) -> None:
    scene = part("a", broken=True)
    score = compare(workspace, scene.image, "board").difference.score
    x0, y0, _, _ = _around(scene)
    far = [0, 0, 40, 40] if x0 > 60 or y0 > 60 else [170, 170, 224, 224]
    _spec(workspace, far)
    assert compare(workspace, scene.image, "board").difference.score == pytest.approx(score, rel=0.02)


@pytest.mark.usefixtures("zones")
def test_zones_of_one_name_are_united(workspace: Workspace) -> None:
    _spec(workspace, [0, 0, 20, 20], [100, 100, 120, 120], kind="critical")
    image = part("a").image
    masks, placed = place_zones(workspace, Query(image, "key", workspace.encoder.embed(image)), "board", "critical")
    assert placed
    assert masks["z"][10, 10]
    assert masks["z"][110, 110]
    assert masks["z"].sum() == pytest.approx(800, rel=0.1)
    assert compare(workspace, part("a").image, "board").ignore is None  # critical is not ignored


@pytest.mark.usefixtures("zones")
def test_comparison_reports_zones_that_cannot_be_placed(workspace: Workspace) -> None:
    _spec(workspace, [0, 0, 20, 20])
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    assert not compare(workspace, noise, "board").zones_placed


@pytest.mark.usefixtures("zones")
def test_nothing_lies_in_a_critical_zone_that_cannot_be_placed(workspace: Workspace) -> None:
    _spec(workspace, [0, 0, SIZE[1], SIZE[0]], kind="critical")
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    found = _inspected(workspace, noise)
    assert "critical zones could not be placed: the photo could not be registered" in found.problems
    assert found.regions
    assert [zone for region in found.regions for zone in region.zones] == []


@pytest.mark.usefixtures("zones")
@pytest.mark.parametrize("limits", [[], [{"zone": "z", "max_length_px": 5, "severity": "minor"}]])
def test_limits_of_a_zone_that_cannot_be_placed_ask_a_person(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, limits: list[dict[str, Any]]
) -> None:
    _spec(workspace, [0, 0, 20, 20], kind="named", limits=limits)
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    found = _inspected(workspace, noise)
    assert any(p.startswith("zones of limits could not be placed") for p in found.problems) == bool(limits)
    assert [place for region in found.regions for place in region.places] == []
    assert not any("zones" in p for p in _inspected(workspace, part("a", broken=True).image).problems)
    monkeypatch.setattr(inspection, "regions_of", lambda *_, **__: [])  # limits concern what is found
    assert not any("zones of limits" in p for p in _inspected(workspace, noise).problems)


@pytest.mark.usefixtures("zones")
def test_finding_whose_outline_reaches_into_a_critical_zone_touches_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured px of a defect may leave the region of the map that it was found by."""
    image = part("a", broken=True).image
    [found, *_] = _inspected(workspace, image).regions
    x0, y0, x1, y1 = found.region.box
    beside = (0, y0, x0, y1) if x0 > 20 else (x1, y0, SIZE[1], y1)
    zone = [beside[0] + 2, y0, beside[2] - 2, y1]
    _spec(workspace, zone, kind="critical")
    assert _inspected(workspace, image).regions[0].zones == []
    drawn = Extent(beside, np.ones((y1 - y0, beside[2] - beside[0]), bool))
    monkeypatch.setattr(inspection, "extent_of", lambda *_: drawn)
    [reaching, *_] = _inspected(workspace, image).regions
    assert (reaching.zones, reaching.places) == (["z"], ["z"])


def test_score_of_the_rest_is_that_of_a_good_part_only_where_the_findings_explain_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = part("a", broken=True).image
    found = _inspected(workspace, image)
    assert found.p_value == pytest.approx(1 / 13)
    assert found.p_rest is not None
    assert found.p_rest > 2 / 13
    [region, *_] = [r.region for r in found.regions]
    speck = replace(region, box=(4, 4, 8, 8), mask=np.ones((4, 4), bool), area_px=16)
    monkeypatch.setattr(inspection, "regions_of", lambda *_, **__: [speck])
    assert _inspected(workspace, image).p_rest == found.p_value


@pytest.mark.usefixtures("zones")
def test_zone_frame_must_be_a_golden_of_the_product(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode_png(part("b").image))
    [other] = enroll(workspace, "other", [tmp_path]).added
    for frame, says in ((other.golden_id, "golden of 'other'"), ("g-000000000000", "no golden")):
        _spec(workspace, [0, 0, 9, 9], frame=frame)
        with pytest.raises(UnknownRecordError, match=says):
            compare(workspace, part("a").image, "board")


# ---- scale ----

CAPTURE = Capture("c-1", "1", "board", "0" * 64, None, "1.png", "2026-01-01")
GOLDEN = Golden("g-000000000000", "board", "0" * 64)
ALIGNED = Alignment("ecc", True, np.eye(3), 0.1, 1.0, 0.9, 0.0, 2.0, "")  # the photo shows the part twice as large


@pytest.mark.parametrize(
    ("capture", "golden", "spec", "ok", "scale", "source", "problem"),
    [
        (None, None, None, True, None, None, False),
        (0.05, None, None, True, 0.05, "capture", False),
        (None, 0.1, None, True, 0.05, "golden", False),
        (None, None, 0.1, True, 0.05, "golden", False),
        (None, 0.1, 0.7, True, 0.05, "golden", False),  # the golden's own number is nearer the truth
        (None, 0.1, None, False, None, None, False),  # unregistered: its scale says nothing about the photo
        (0.05, 0.1, None, True, 0.05, "capture", False),
        (0.0522, 0.1, None, True, 0.0522, "capture", False),
        (0.0535, 0.1, None, True, 0.0535, "capture", True),
        (0.0465, 0.1, None, True, 0.0465, "capture", True),
        (0.5, None, 0.1, True, 0.5, "capture", True),
        (0.5, 0.1, None, False, 0.5, "capture", False),
    ],
)
def test_scale_is_taken_from_capture_golden_or_specification(
    capture: float | None, golden: float | None, spec: float | None, ok: bool, scale: float | None,
    source: str | None, problem: bool,
) -> None:  # fmt: skip
    found = resolve_scale(
        replace(CAPTURE, scale_mm_per_px=capture),
        replace(GOLDEN, scale_mm_per_px=golden),
        replace(ALIGNED, ok=ok),
        spec,
    )
    assert (found.source, bool(found.problem)) == (source, problem)
    assert found.mm_per_px == (None if scale is None else pytest.approx(scale))
    assert (found.uncertainty > 0) == (scale is not None)


def test_scale_from_a_golden_is_less_certain_than_from_a_capture() -> None:
    own = resolve_scale(replace(CAPTURE, scale_mm_per_px=0.1), GOLDEN, ALIGNED, None)
    derived = resolve_scale(CAPTURE, replace(GOLDEN, scale_mm_per_px=0.1), ALIGNED, None)
    assert derived.uncertainty > own.uncertainty


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.2])
def test_scale_derived_by_registration_matches_the_truth(workspace: Workspace, scale: float) -> None:
    scene = part("a", 20.0, scale=scale)
    result = compare(workspace, scene.image, "board")
    found = resolve_scale(CAPTURE, result.hits[0].golden, result.alignments[0], None)
    assert found.mm_per_px == pytest.approx(0.1 / scale, rel=0.02)
