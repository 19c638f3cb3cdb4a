"""Frames: goldens are registered to each other once, photos warped and encoded once, results are in the photo's pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.settings import MemorySettings
from refdiff.model.difference.encoder import Encoder
from refdiff.model.difference.feature_maps import FeatureMaps
from refdiff.model.difference.features import resize_to, work_size
from refdiff.model.errors import DamagedError
from refdiff.model.images import RgbImage, decode_image, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, Pose, Scene, render
from refdiff.tools import workspace as workspace_module
from refdiff.tools.framing import frames
from refdiff.tools.framing.frames import matrix_of, place_of
from refdiff.tools.framing.photos import GoldenOnGrid, Grid, Query, warped
from refdiff.tools.framing.tiles import Tile
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.clock import Clock
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import ReferenceViews
from refdiff.tools.inspection.pairs import pair_with
from refdiff.tools.inspection.retrieval import nearest_goldens
from refdiff.tools.kinds.reading import How, Reading
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision.registration import OnGrid, align, carried, completed, on_grid, registered, scaling
from refdiff.tools.workspace import Workspace

SIZE = (160, 200)
VARIANTS = {"a": 102, "b": 103}
TURNS = (0.0, 4.0, 180.0, 0.0)  # degrees of the goldens of each variant


def scene(variant: str, instance: int, angle: float = 0.0, *, scale: float = 1.0, **more: Any) -> Scene:
    pose = Pose(angle_deg=angle, scale=scale)
    return render("circuit", VARIANTS[variant], instance, size=SIZE, pose=pose, noise_seed=instance, **more)


def opened(root: Path, cache: str = "cache") -> Workspace:
    memory = MemorySettings(home=root / "home", qdrant_url=None, bank_wait_s=1)
    return Workspace.open(memory, ModelSettings(cache=root / cache, working_px=160), ToolsSettings(references=4))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with four goldens of each of two variants, a0.png ... b3.png."""
    folder = tmp_path_factory.mktemp("frames")
    with opened(folder) as made:
        for name in VARIANTS:
            for i, angle in enumerate(TURNS):
                (folder / f"{name}{i}.png").write_bytes(encode_png(scene(name, i, angle).image))
        enroll(made, "board", [folder])
    return folder


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    with opened(root) as made:
        yield made


def named(workspace: Workspace) -> dict[str, Golden]:
    return {g.filename.removesuffix(".png"): g for g in workspace.bank.list("board")}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the costly parts run."""
    counted: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (counted.update([name]), real(*a, **k))[1])

    count(workspace_module, "align")
    count(workspace_module, "on_grid")
    count(Encoder, "embed")
    return counted


def test_goldens_of_a_variant_share_a_frame_whichever_way_they_lie(workspace: Workspace) -> None:
    goldens = named(workspace)
    for name in VARIANTS:
        first = goldens[f"{name}0"]
        for i, angle in enumerate(TURNS):
            place = place_of(workspace, goldens[f"{name}{i}"])
            assert (place.anchor_id, place.anchor_sha256) == (first.golden_id, first.sha256)
            truth = scene(name, 0).transform @ np.linalg.inv(scene(name, i, angle).transform)
            points = np.array([[[50, 50], [150, 50], [50, 110], [150, 110]]], float)
            moved, wanted = (cv2.perspectiveTransform(points, m)[0] for m in (matrix_of(place), truth))
            assert np.linalg.norm(moved - wanted, axis=1).mean() < 2.0


def test_places_are_kept_and_outlast_the_anchor(root: Path, calls: Counter[str]) -> None:
    with opened(root) as workspace:
        goldens = named(workspace)
        workspace.bank.set_status(goldens["a0"].golden_id, "retired", "scratched later")
        places = {name: place_of(workspace, g) for name, g in goldens.items()}
        result = compare(workspace, scene("a", 30, 95.0).image, "board", references=3)
        assert {h.golden.filename[0] for h in result.hits} == {"a"}
        assert all(a.ok for a in result.alignments)
        workspace.bank.set_status(goldens["a0"].golden_id, "active", "")
    assert places["a3"].anchor_id == goldens["a0"].golden_id
    assert calls["align"] == 1, "the photo alone was registered"


def test_home_of_an_earlier_version_gets_the_same_frames(workspace: Workspace) -> None:
    before = {g.golden_id: place_of(workspace, g) for g in workspace.bank.list("board")}
    with workspace.stores.db.transaction() as conn:
        conn.exec_driver_sql("DELETE FROM frames")
    workspace.places.clear()
    assert {g.golden_id: place_of(workspace, g) for g in workspace.bank.list("board")} == before


def test_golden_that_registers_to_none_is_its_own_anchor(workspace: Workspace, tmp_path: Path) -> None:
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 255, (*SIZE, 3), np.uint8)
        (tmp_path / f"{i}.png").write_bytes(encode_png(noise))
    added = enroll(workspace, "noise", [tmp_path]).added
    assert len(added) == 3
    assert all(place_of(workspace, g).is_anchor for g in added)
    photo = np.random.default_rng(9).integers(0, 255, (*SIZE, 3), np.uint8)
    result = compare(workspace, photo, "noise", references=3)
    assert [a.ok for a in result.alignments] == [False] * 3
    assert np.isfinite(result.difference.score)


@pytest.mark.parametrize(("angle", "encoded", "drawn"), [(0.0, 1, 0), (3.0, 2, 1), (77.0, 2, 1)])
def test_photo_is_registered_warped_and_encoded_once(
    workspace: Workspace, calls: Counter[str], angle: float, encoded: int, drawn: int
) -> None:
    compare(workspace, scene("a", 50).image, "board")  # the golden features are known from now on
    compare(workspace, scene("a", 51, 120.0).image, "board")
    calls.clear()
    result = compare(workspace, scene("a", 40, angle).image, "board")
    assert len(result.hits) == 4
    assert calls == Counter({"align": 1, "embed": encoded, "on_grid": drawn})


def test_result_does_not_depend_on_what_the_photo_was_compared_with_before(root: Path) -> None:
    image = scene("a", 70, 9.0).image
    with opened(root) as workspace:
        wanted = compare(workspace, image, "board", references=1)
    nearest = wanted.hits[0].golden
    with opened(root) as workspace:
        others = [compare(workspace, image, "board", exclude_ids=[nearest.golden_id], references=1)]
        others.append(compare(workspace, image, "board", goldens=[named(workspace)["a2"]]))
        again = [
            compare(workspace, image, "board", references=1),
            compare(workspace, image, "board", goldens=[nearest]),
        ]
    assert all(not np.array_equal(o.alignments[0].matrix, wanted.alignments[0].matrix) for o in others)
    for found in again:
        assert np.array_equal(found.alignments[0].matrix, wanted.alignments[0].matrix)
        assert found.difference.score == wanted.difference.score


def test_golden_joins_the_frame_of_an_anchor_that_the_bank_has_lost(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    goldens = named(workspace)
    anchor = goldens["a0"].golden_id
    with workspace.stores.db.transaction() as conn:
        conn.exec_driver_sql("DELETE FROM frames WHERE golden_id = ?", (goldens["a3"].golden_id,))
    workspace.places.clear()
    find = workspace.bank.get

    def get(golden_id: str) -> Golden:
        return find("g-000000000000" if golden_id == anchor else golden_id)

    monkeypatch.setattr(workspace.bank, "get", get)
    assert place_of(workspace, goldens["a3"]).anchor_id == anchor


@pytest.mark.parametrize("spec", [{}, {"smallest_defect_px": 3}])
def test_anchor_whose_photo_is_lost_does_not_stop_the_others(tmp_path: Path, spec: dict[str, float]) -> None:
    for i, angle in enumerate(TURNS):
        (tmp_path / f"a{i}.png").write_bytes(encode_png(scene("a", i, angle).image))
    with opened(tmp_path) as made:
        enroll(made, "board", [tmp_path])
        made.stores.products.set_spec("board", spec)
    with opened(tmp_path) as workspace:
        anchor = named(workspace)["a0"]
        workspace.stores.images.path(anchor.sha256).unlink()
        photo = scene("a", 30, 95.0).image  # its corners lie beyond the frame, and parts of the frame beyond it
        with pytest.raises(DamagedError, match=anchor.golden_id):
            compare(workspace, photo, "board")
        workspace.bank.set_status(anchor.golden_id, "retired", "")
        result = compare(workspace, photo, "board")
        assert all(a.ok for a in result.alignments)
        assert result.difference.score < 0.2


def lose(workspace: Workspace, golden: Golden, how: str) -> bytes:
    """Delete or truncate the stored photo of a golden; returns what it held."""
    path = workspace.stores.images.path(golden.sha256)
    kept = path.read_bytes()
    path.unlink() if how == "missing" else path.write_bytes(kept[: len(kept) // 2])
    return kept


def query_of(workspace: Workspace, image: RgbImage) -> Query:
    return Query(image, hashlib.sha256(image.tobytes()).hexdigest(), workspace.encoder.embed(image))


def drawn_in_frame(workspace: Workspace, golden: Golden) -> tuple[RgbImage, RgbImage]:
    """A golden on the grid of its frame, and a photo that ends there: a quarter of the frame lies beyond it."""
    place = place_of(workspace, golden)
    size = work_size(place.anchor_size, workspace.model_settings.working_px)
    quarter = np.array([[1, 0, size[1] / 4], [0, 1, 0], [0, 0, 1]])
    grid = Grid(size, quarter @ scaling(SIZE, size), place, False, [Tile(0, 0, *size)])
    photo, _ = warped(workspace, query_of(workspace, scene("a", 30).image), grid)
    matrix = np.linalg.inv(grid.matrix) @ scaling(place.anchor_size, size) @ matrix_of(place)
    as_it_lies = registered("identity", matrix, 0.0, 1.0, 1.0, place.size)
    return GoldenOnGrid(workspace, golden, as_it_lies, grid).on(grid.tiles[0]).picture.image, photo.image


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_what_is_drawn_without_the_anchor_is_not_taken_for_what_is_drawn_with_it(tmp_path: Path, how: str) -> None:
    for i, angle in enumerate(TURNS):
        (tmp_path / f"a{i}.png").write_bytes(encode_png(scene("a", i, angle).image))

    def drawn(cache: str) -> tuple[RgbImage, RgbImage]:
        with opened(tmp_path, cache) as workspace:
            return drawn_in_frame(workspace, named(workspace)["a1"])

    with opened(tmp_path) as made:
        enroll(made, "board", [tmp_path])
        anchor = named(made)["a0"]
    whole = drawn("first")
    with opened(tmp_path) as workspace:
        kept = lose(workspace, anchor, how)
    without = drawn("second")
    assert not any(np.array_equal(a, b) for a, b in zip(whole, without, strict=True)), "the anchor is not seen at all"
    after_it_was_lost = drawn("first")
    with opened(tmp_path, "third") as workspace:
        workspace.keep_read(
            anchor.sha256, How(), Reading(np.array(decode_image(kept)))
        )  # read before its file was lost
        golden = named(workspace)["a1"]
        in_memory = drawn_in_frame(workspace, golden)
        workspace._images.clear()
        let_go = drawn_in_frame(workspace, golden)
        workspace.stores.images.put(kept)
        restored = drawn_in_frame(workspace, golden)
    again = drawn("second")
    for found, right in [
        (after_it_was_lost, without), (in_memory, whole), (let_go, without), (restored, whole), (again, whole),
    ]:  # fmt: skip
        for image, expected in zip(found, right, strict=True):
            assert np.array_equal(image, expected)


def test_photo_is_drawn_in_each_frame_by_itself(workspace: Workspace) -> None:
    image, small = scene("a", 71).image, (64, 96)
    matrix = np.diag([small[1] / SIZE[1], small[0] / SIZE[0] / 2, 1.0])  # the lower half lies beyond the photo
    others = {f"frame {i}": scene("b", i).image[: small[0], : small[1]] for i in range(2)}
    drawn = [
        workspace.warped(image, "same", matrix, small, (frame, frame), lambda other=other: other)[0]  # type: ignore[misc]
        for frame, other in others.items()
    ]
    assert not np.array_equal(drawn[0].image, drawn[1].image)


def test_references_are_of_the_frame_of_the_nearest(workspace: Workspace) -> None:
    for angle in (0.0, 140.0):
        result = compare(workspace, scene("b", 41, angle).image, "board", references=4)
        assert sorted(h.golden.filename[0] for h in result.hits) == ["b"] * 4
    many = compare(workspace, scene("b", 41).image, "board", references=7)
    assert [h.golden.filename[0] for h in many.hits[:4]] == ["b"] * 4
    assert all(a.ok for a in many.alignments), "what is of another frame must register itself"


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 1.0), (65.0, 1.0), (-160.0, 0.8), (10.0, 1.25)])
def test_result_is_in_the_pixels_of_the_photo(workspace: Workspace, angle: float, scale: float) -> None:
    # a defect in the middle of the part: it is on the photo whatever the pose
    defects = [DefectSpec("stain", size_px=22, where=(100, 80), contrast=1.0, seed=3)]
    found = scene("a", 42, angle, scale=scale, defects=defects)
    result = compare(workspace, found.image, "board")
    assert result.alignments[0].ok
    heat = result.difference.anomaly_map
    assert heat.shape == SIZE
    y, x = np.unravel_index(int(heat.argmax()), heat.shape)
    x0, y0, x1, y1 = found.defects[0].box
    assert x0 - 8 <= x < x1 + 8
    assert y0 - 8 <= y < y1 + 8


def test_photo_of_other_pixels_than_the_goldens_is_compared_in_their_frame(workspace: Workspace) -> None:
    image = cv2.resize(scene("a", 43).image, (500, 400), interpolation=cv2.INTER_CUBIC)
    usual = compare(workspace, scene("a", 43).image, "board").difference
    large = compare(workspace, image, "board")
    assert large.difference.anomaly_map.shape == (400, 500)
    assert large.difference.covered == pytest.approx(1.0, abs=0.02)
    assert large.difference.score < usual.score + 0.05


def test_registration_is_carried_to_a_neighbour() -> None:
    anchor, neighbour, photo = scene("a", 0), scene("a", 1, 30.0), scene("a", 2, -50.0)
    known, between = align(photo.image, anchor.image), align(anchor.image, neighbour.image)
    found = carried(known, between.matrix, between.residual_px, SIZE, SIZE)
    truth = photo.transform @ np.linalg.inv(neighbour.transform)
    points = np.array([[[60, 50], [140, 110]]], float)
    moved, wanted = (cv2.perspectiveTransform(points, m)[0] for m in (found.matrix, truth))
    assert np.linalg.norm(moved - wanted, axis=1).max() < 3
    assert found.ok
    assert found.angle_deg == pytest.approx(80, abs=2)
    assert found.residual_px
    assert known.residual_px
    assert found.residual_px >= known.residual_px
    assert 0.5 < found.overlap < 1


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.0, 1.6])
def test_image_on_another_grid_keeps_its_look(scale: float) -> None:
    image: RgbImage = scene("a", 0).image
    size = (round(SIZE[0] * scale), round(SIZE[1] * scale))
    drawn, covered = on_grid(image, np.diag([size[1] / SIZE[1], size[0] / SIZE[0], 1.0]), size)
    wanted = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    assert covered.all()
    assert np.abs(drawn.astype(int) - wanted).mean() < 2.5


def test_picture_goes_on_beyond_its_end_without_a_seam() -> None:
    other: RgbImage = scene("a", 3).image
    brighter = np.linspace(10, 60, other.shape[1])[None, :, None]  # another light
    whole = np.clip(other.astype(float) * 0.8 + brighter, 0, 255).astype(np.uint8)
    covered = np.zeros(other.shape[:2], np.uint8)
    cv2.circle(covered, (other.shape[1] // 2, other.shape[0] // 2), other.shape[0] * 2 // 5, 1, -1)
    picture = np.where(covered[..., None] > 0, whole, 0).astype(np.uint8)
    error = np.abs(completed(picture, covered > 0, other).astype(int) - whole).max(2)
    beyond = cv2.distanceTransform(1 - covered, cv2.DIST_L2, 5)
    assert not error[covered > 0].any()
    assert error[(beyond > 0) & (beyond < 5)].mean() < 8
    assert np.abs(other.astype(int) - whole).max(2)[(beyond > 0) & (beyond < 5)].mean() > 15


def test_golden_sample_goes_on_beyond_its_end_like_the_photo(workspace: Workspace) -> None:
    golden = named(workspace)["a1"]
    place = place_of(workspace, golden)
    turned = np.vstack([cv2.getRotationMatrix2D((100, 80), 30, 1), [0, 0, 1]])
    workspace.places[golden.golden_id] = replace(place, matrix=tuple(turned.flatten().tolist()))
    size = work_size(place.anchor_size, workspace.model_settings.working_px)
    grid = Grid(size, scaling(place.anchor_size, size), place, False, [Tile(0, 0, *size)])
    on_anchor = registered("identity", turned, 0.0, 1.0, 1.0, place.size)
    drawn = GoldenOnGrid(workspace, golden, on_anchor, grid).on(grid.tiles[0])
    shown = workspace.image(place.anchor_sha256, place.product, "golden sample")
    anchor = resize_to(shown, size)
    beyond = cv2.erode((~drawn.picture.covered).astype(np.uint8), np.ones((5, 5))) > 0
    assert beyond.mean() > 0.05
    details = [cv2.Laplacian(image, cv2.CV_32F)[beyond].ravel() for image in (drawn.picture.image, anchor)]
    assert np.corrcoef(*details)[0, 1] > 0.9


def test_golden_sample_that_was_registered_otherwise_than_it_lies_in_its_frame_is_drawn_as_it_was_registered(
    workspace: Workspace,
) -> None:
    """As a height map is, whose heights say which way round it lies; where both agree, the frame's drawing is kept."""
    golden = named(workspace)["a1"]
    place = place_of(workspace, golden)
    size = work_size(place.anchor_size, workspace.model_settings.working_px)
    grid = Grid(size, scaling(place.anchor_size, size), place, False, [Tile(0, 0, *size)])
    turned = np.vstack([cv2.getRotationMatrix2D((100, 80), 30, 1), [0, 0, 1]])
    for matrix, lies in ((turned, turned), (matrix_of(place) @ scaling((1000, 1000), (1001, 1000)), matrix_of(place))):
        found = registered("identity", matrix, 0.0, 1.0, 1.0, place.size)
        drawn = GoldenOnGrid(workspace, golden, found, grid).on(grid.tiles[0]).picture
        pixels, covered = OnGrid(workspace.golden_image(golden), grid.matrix @ lies).window(0, 0, *size)
        assert np.array_equal(drawn.covered, covered)
        assert np.abs(drawn.image.astype(int) - pixels)[covered].mean() < 0.5


def test_what_completes_a_golden_sample_answers_for_no_defect_inside_it(workspace: Workspace) -> None:
    """Searching only what a golden sample shows itself was tried: the distance stays, and the network, which learned with
    the whole search, tells parts apart less well."""
    missed, cells = [], 0
    for instance in range(60, 66):
        defect = DefectSpec("stain", size_px=14, where=(100, 80), contrast=0.8, seed=instance)
        photo = scene("a", instance, 37.0 * instance, defects=[defect]).image
        query = query_of(workspace, photo)
        hits = nearest_goldens(workspace, query, "board", 3)
        pair = pair_with(workspace, query, "board", hits, Clock())
        [sized] = pair.sizes
        [seen] = sized.tiles
        for reference in pair.references:
            view = ReferenceViews(reference, sized.grid).view(seen)
            shown = view.valid.flatten()
            if not reference.alignment.ok or shown.all():
                continue
            alike = FeatureMaps.of(seen.maps).descriptors @ FeatureMaps.of(view.maps).descriptors.T
            inside = cv2.erode(view.valid.astype(np.uint8), np.ones((5, 5)), borderValue=1).ravel() > 0
            missed.append((alike.amax(1) - alike[:, shown].amax(1)).numpy()[inside])
            cells += int(inside.sum())
    assert cells > 2000
    assert np.concatenate(missed).max() < 0.01


def test_picture_is_completed_as_bright_as_it_is() -> None:
    other = np.full((8, 8, 3), 100, np.uint8)
    picture = np.full((8, 8, 3), 80, np.uint8)
    covered = np.ones((8, 8), bool)
    covered[:, 5:] = False
    picture[:, 5:] = 0
    assert np.abs(completed(picture, covered, other).astype(int) - 80).max() <= 1
    assert completed(picture, np.ones_like(covered), other) is picture


def test_goldens_are_tried_in_the_frames_of_the_most_similar(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    real = workspace.registration
    monkeypatch.setattr(workspace, "registration", lambda *a: (tried.append(a[2]), real(*a))[1])
    (tmp_path / "new.png").write_bytes(encode_png(scene("b", 60, 20.0).image))
    [added] = enroll(workspace, "board", [tmp_path]).added
    assert len(tried) <= frames._TRIED
    assert place_of(workspace, added).anchor_id == named(workspace)["b0"].golden_id
    workspace.bank.set_status(added.golden_id, "retired", "")
