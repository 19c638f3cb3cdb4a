"""Height maps with colour photos: which belong together, what is refused, and what is promised of both together."""

from __future__ import annotations

import base64
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refdiff.memory.rows.calibrations import Calibration, OfMap
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import DamagedError, ImageError, InputError, SpecError
from refdiff.model.height.colour_file import split_colour, with_colour
from refdiff.model.height.difference import HeightDifference
from refdiff.model.images import F32, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import SolidPart, depth_png, xyz_tiff
from refdiff.tools.golden_samples.adopt import adopt
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.colour_pairs import height_maps, with_its_photo
from refdiff.tools.golden_samples.enroll import EnrollResult, enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection import kept_difference
from refdiff.tools.inspection.colour import (
    as_each_stands_out,
    as_one,
    found_in,
    joint_scores,
    maps_of,
    on_photo,
    places_apart,
)
from refdiff.tools.inspection.difference import ColourDifference, Difference
from refdiff.tools.inspection.fineness import check_specification
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.vision.regions import Region, find_regions
from refdiff.tools.workspace import Workspace

PART = SolidPart("bracket")
SIZE, MM_PER_PX = (96, 96), 1.2
DEPTH: dict[str, Any] = {"unit_mm": 1, "values": "distance", "colour": True}


def made(seed: int) -> tuple[bytes, bytes]:
    """A height map and its photo."""
    rng = np.random.default_rng((6, seed))
    height = PART.height_map(rng, size=SIZE, mm_per_px=MM_PER_PX)
    return xyz_tiff(height.mm, MM_PER_PX), encode_png(PART.colour_photo(height, rng))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    with Workspace.open(memory=memory, model=ModelSettings(cache=tmp_path / "cache", working_px=96)) as workspace:
        stated(workspace, DEPTH)
        yield workspace


def stated(workspace: Workspace, depth: dict[str, Any], product: str = "plate") -> None:
    workspace.stores.products.set_spec(product, parse_spec({"depth": depth}).model_dump(mode="json"))


def enrolled(workspace: Workspace, *files: Path | Upload) -> EnrollResult:
    return enroll(workspace, "plate", files, kind="depth")


def write(folder: Path, **files: bytes) -> None:
    """name_suffix=data, __ for /."""
    for name, data in files.items():
        path = folder / ".".join(name.replace("__", "/").rsplit("_", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_files_that_were_joined_come_apart_as_they_were() -> None:
    assert split_colour(with_colour(b"heights", b"colours")) == (b"heights", b"colours")
    assert split_colour(b"heights") == (b"heights", None)
    with pytest.raises(ImageError, match="send one of the two"):
        with_colour(with_colour(b"heights", b"colours"), b"others")
    with pytest.raises(ImageError, match="is empty"):
        with_colour(b"heights", b"")
    with pytest.raises(ImageError, match="damaged"):
        split_colour(with_colour(b"heights", b"colours")[8:])


def test_pairs_of_a_folder_are_one_golden_sample_each_whichever_way_they_are_laid_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    (a, a_photo), (b, b_photo), (c, c_photo) = (made(i) for i in range(3))
    rng = np.random.default_rng((6, 9))
    height = PART.height_map(rng, size=SIZE, mm_per_px=MM_PER_PX)
    write(
        tmp_path / "good",
        flat__1_tiff=a, flat__1_png=a_photo, xyz__000_tiff=b, rgb__000_png=b_photo, alone__2_tiff=c,
    )  # fmt: skip
    result = enrolled(workspace, tmp_path / "good")
    assert {g.filename for g in result.added} == {"1.tiff", "000.tiff"}, result.refused
    (refused,) = result.refused
    assert refused.path.name == "2.tiff"
    assert "its colour photo is missing" in refused.reason
    assert "part.tiff and part.png" in refused.reason
    for golden in result.added:
        reading = workspace.golden_reading(golden)
        assert reading.visible is not None
        assert reading.values is not None
        assert reading.visible.shape[:2] == reading.values.shape
    assert len(enrolled(workspace, tmp_path / "good" / "xyz").already_there) == 1, "the folder rgb lies beside it"
    capture = record_capture(
        workspace.stores, "1", "plate", tmp_path / "good" / "flat" / "1.tiff", settings=workspace.model_settings
    )
    assert capture.sha256 in {g.sha256 for g in result.added}
    uploads = height_maps([Upload("7.png", c_photo), Upload("7.tiff", c), Upload("8.tiff", a, a_photo)], [])
    assert uploads == [Upload("7.tiff", c, c_photo), Upload("8.tiff", a, a_photo)]
    write(tmp_path / "counts", depth__1_png=depth_png(height.mm), rgb__1_png=PART_PHOTO)
    found = with_its_photo(tmp_path / "counts" / "depth" / "1.png", workspace.model_settings)
    assert found.colour == PART_PHOTO


def test_what_may_belong_to_two_is_given_to_none(workspace: Workspace, tmp_path: Path) -> None:
    height, photo = made(1)
    twice = [Upload("image.tiff", height), Upload("image.png", photo), Upload("image.png", made(2)[1])]
    assert height_maps(twice, []) == [Upload("image.tiff", height)]
    shared = [Upload("a/1.tiff", height), Upload("b/1.tiff", made(2)[0]), Upload("rgb/1.png", photo)]
    assert height_maps(shared, []) == shared[:2]
    write(tmp_path, good__1_tiff=height, good__1_png=photo, rgb__1_png=photo)
    with pytest.raises(ImageError, match=r"several files may be its colour photo \(good/1.png, rgb/1.png\)"):
        with_its_photo(tmp_path / "good" / "1.tiff", workspace.model_settings)
    named = with_its_photo(tmp_path / "good" / "1.tiff", workspace.model_settings, tmp_path / "rgb" / "1.png")
    assert named == Upload("1.tiff", height, photo)
    write(tmp_path, other__1_tiff=height)
    (tmp_path / "good" / "1.png").unlink()
    for folder in ("good", "other"):
        with pytest.raises(ImageError, match=r"rgb/1\.png may be its colour photo or that of"):
            with_its_photo(tmp_path / folder / "1.tiff", workspace.model_settings)


def test_photo_that_stayed_beside_a_newer_height_map_of_the_part_is_refused(
    workspace: Workspace, tmp_path: Path
) -> None:
    (height, photo), (newer, its_photo) = made(1), made(2)
    assert enrolled(workspace, Upload("g.tiff", *made(3))).added
    path, beside = tmp_path / "xyz" / "1.tiff", tmp_path / "rgb" / "1.png"

    def captured(source: Path | Upload) -> str:
        return record_capture(workspace.stores, "1", "plate", source, settings=workspace.model_settings).sha256

    write(tmp_path, xyz__1_tiff=height, rgb__1_png=photo)
    assert captured(path) == captured(path), "the same pair again"
    path.write_bytes(newer)
    with pytest.raises(ImageError, match="is the one of the height map of part 1 before"):
        captured(path)
    captured(with_its_photo(path, workspace.model_settings, beside))
    beside.write_bytes(its_photo)
    captured(path)


@pytest.mark.parametrize("named", [".", "xyz"])
def test_colour_photo_without_a_height_map_is_refused_by_name(workspace: Workspace, tmp_path: Path, named: str) -> None:
    (a, a_photo), (b, b_photo), (_, left) = (made(i) for i in range(3))
    write(tmp_path, good__xyz__1_tiff=a, good__rgb__1_png=a_photo, good__rgb__7_png=left)
    write(tmp_path, good__flat__2_tiff=b, good__flat__2_png=b_photo)
    folder = tmp_path / "good" / named
    result = enrolled(workspace, folder)
    assert len(result.added) == (2 if named == "." else 1)
    [refused] = result.refused
    assert (refused.path.name, "without a height map of its name" in refused.reason) == ("7.png", True)
    assert enrolled(workspace, tmp_path / "good" / "xyz" / "1.tiff").refused == [], "nothing else was named"
    sent = enrolled(workspace, Upload("rgb/7.png", left), Upload("xyz/1.tiff", a), Upload("rgb/1.png", a_photo))
    assert [r.path.name for r in sent.refused] == ["7.png"]


def test_colour_photo_of_another_height_map_is_refused_at_enrolment(workspace: Workspace, tmp_path: Path) -> None:
    (a, a_photo), (b, _), (c, c_photo) = (made(i) for i in range(3))
    write(tmp_path, good__1_tiff=a, good__1_png=a_photo, good__2_tiff=b, good__2_png=a_photo)
    result = enrolled(workspace, tmp_path / "good")
    assert [g.filename for g in result.added] == ["1.tiff"]
    [refused] = result.refused
    assert (refused.path.name, "identical to that of 1.tiff" in refused.reason) == ("2.tiff", True)
    write(tmp_path, good__1_tiff=c)
    assert "is that of golden sample" in enrolled(workspace, tmp_path / "good" / "1.tiff").refused[0].reason
    write(tmp_path, good__1_png=c_photo)
    assert len(enrolled(workspace, tmp_path / "good" / "1.tiff").added) == 1


def test_height_map_that_replaces_a_retired_golden_sample_keeps_its_colour_photo(
    workspace: Workspace, tmp_path: Path
) -> None:
    (a, photo), (b, _) = made(0), made(1)
    write(tmp_path, good__1_tiff=a, good__1_png=photo)
    [before] = enrolled(workspace, tmp_path / "good").added
    write(tmp_path, good__1_tiff=b)
    [refused] = enrolled(workspace, tmp_path / "good").refused
    assert f"refdiff goldens retire {before.golden_id}" in refused.reason
    workspace.bank.set_status(before.golden_id, "retired", "exported anew")
    assert len(enrolled(workspace, tmp_path / "good").added) == 1


def test_colour_photo_of_a_height_map_that_was_refused_is_free_for_another(
    workspace: Workspace, tmp_path: Path
) -> None:
    a, photo = made(0)
    write(tmp_path, good__1_tiff=b"damaged", good__1_png=photo, good__2_tiff=a, good__2_png=photo)
    result = enrolled(workspace, tmp_path / "good")
    assert [g.filename for g in result.added] == ["2.tiff"]
    assert [r.path.name for r in result.refused] == ["1.tiff"]


def test_photos_of_many_height_maps_are_found_without_listing_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, listed, listing = 20, Counter[str](), Path.iterdir
    for i in range(n):
        write(tmp_path, **{f"a__flat__{i}_tiff": b"h", f"a__flat__{i}_PNG": b"c"})
        write(tmp_path, **{f"b__xyz__{i}_tif": b"h", f"b__rgb__{i}_Jpg": b"c"})

    def counted(folder: Path) -> Iterator[Path]:
        listed[folder.name] += 1
        return listing(folder)

    monkeypatch.setattr(Path, "iterdir", counted)
    for i in range(n):
        for path in (tmp_path / "a" / "flat" / f"{i}.tiff", tmp_path / "b" / "xyz" / f"{i}.tif"):
            assert with_its_photo(path, ModelSettings()).colour == b"c"
    assert not {"flat", "xyz", "rgb"} & {*listed}


PART_PHOTO = encode_png(np.zeros((*SIZE, 3), np.uint8))


def test_photo_that_is_missing_or_of_another_raster_or_not_stated_is_refused_with_the_way_out(
    workspace: Workspace, tmp_path: Path
) -> None:
    height, photo = made(1)
    other = encode_png(np.zeros((80, 96, 3), np.uint8))

    def refused(*files: Path | Upload) -> str:
        result = enrolled(workspace, *files)
        assert not result.added
        return result.refused[0].reason

    assert "--colour FILE" in refused(Upload("p.tiff", height))
    assert "has 96 x 80 px, the height map 96 x 96 px" in refused(Upload("p.tiff", height, other))
    assert workspace.stores.products.get("plate").intensity_window is None  # type: ignore[union-attr]
    assert "colour photo of p.tiff" in refused(Upload("p.tiff", height, b"no picture"))
    assert len(enrolled(workspace, Upload("p.tiff", height, photo)).added) == 1
    with pytest.raises(ImageError, match="its colour photo is missing"):
        record_capture(workspace.stores, "1", "plate", Upload("p", made(2)[0]), settings=workspace.model_settings)
    stated(workspace, {k: v for k, v in DEPTH.items() if k != "colour"}, "plain")
    assert enroll(workspace, "plain", [Upload("p", height)], kind="depth").added
    with pytest.raises(ImageError, match=r"state `colour: true`"):
        record_capture(workspace.stores, "1", "plain", Upload("p", height, photo), settings=workspace.model_settings)
    with pytest.raises(InputError, match="goes with a height map"):
        record_capture(workspace.stores, "1", "photos", Upload("p", photo, photo), settings=workspace.model_settings)


def test_colour_cannot_be_stated_or_taken_back_once_golden_samples_are_there(workspace: Workspace) -> None:
    height, photo = made(1)
    assert enrolled(workspace, Upload("p.tiff", height, photo)).added
    without = {k: v for k, v in DEPTH.items() if k != "colour"}
    with pytest.raises(SpecError, match="cannot change any more"):
        check_specification(workspace, "plate", parse_spec({"depth": without}))
    check_specification(workspace, "plate", parse_spec({"depth": DEPTH | {"palette": "iron"}}))


def test_pair_whose_parts_are_within_the_limit_is_adopted_though_both_together_are_not(tmp_path: Path) -> None:
    limit, by_side = 1_000_000, (280, 280)
    rng = np.random.default_rng((6, 1))
    height = PART.height_map(rng, size=by_side, mm_per_px=0.4)
    photo = io.BytesIO()
    Image.fromarray(PART.colour_photo(height, rng)).save(photo, "BMP")
    pair = Upload("part.tiff", xyz_tiff(height.mm, 0.4), photo.getvalue())
    memory = MemorySettings(home=tmp_path / "home", qdrant_url=None, bank_wait_s=1)
    model = ModelSettings(cache=tmp_path / "cache", working_px=96, max_bytes=limit)
    with Workspace.open(memory=memory, model=model) as workspace:
        stated(workspace, DEPTH)
        enrolled(workspace, Upload("good.tiff", *made(1)))
        taken = record_capture(workspace.stores, "1", "plate", pair, settings=model)
        assert len(workspace.stores.images.get(taken.sha256)) > limit
        report = {"part_id": "1", "product": "plate", "query_sha256": taken.sha256, "requested_by": "ann"}
        workspace.stores.inspections.file("i1", "1", "plate", "REVIEW", taken.created_at, report)
        workspace.stores.dispositions.add("i1", "override", "ann", "dust", "good", as_reference=True)
        workspace.stores.adoptions.decide("i1", True, "eve", admin=True)
        assert adopt(workspace, "i1").outcome.startswith("enrolled")


@pytest.mark.parametrize("tail", [0.2, 0.8])
def test_new_good_parts_are_above_all_good_parts_of_either_map_as_seldom_as_with_one(tail: float) -> None:
    rng, n, above, rounds = np.random.default_rng(3), 20, 0, 1500
    for _ in range(rounds):
        # one map varies evenly, the other has a long tail
        parts = [
            [(float(s), float(s)) for s in (rng.normal(0.2, 0.02), np.exp(rng.normal(-3, tail)))] for _ in range(n + 1)
        ]
        *good, new = parts
        maps = maps_of(good)
        score = max((s - of.middle) / of.spread for (s, _), of in zip(new, maps, strict=True))
        above += score > max(joint_scores(good)[0])
    # two standard errors of the count
    assert above / rounds <= 1 / (n + 1) + 2 * np.sqrt(1 / (n + 1) / rounds)


def test_colour_of_a_raster_larger_than_a_map_lies_on_the_px_of_the_heights() -> None:
    height = np.zeros((300, 200), np.float32)
    small = Difference(np.ones((150, 100), np.float32), 1, 1, 1, 1, np.zeros((1, 1, 1), np.float32), 4.0, "", 0.0)
    large = on_photo(small, height.shape)
    assert (large.anomaly_map.shape, large.cell, large.cell_of(height.shape)) == (height.shape, 8.0, 8.0)
    assert on_photo(small, (150, 100, 3)) is small


def disc(x: float, high: float) -> F32:
    ys, xs = np.mgrid[0:96, 0:96].astype(np.float32)
    return np.where(np.hypot(xs - x, ys - 48) < 9, high, 0).astype(np.float32)


def as_compared(dent: F32, stain: F32) -> tuple[Difference, Calibration, list[Region]]:
    """A difference of these heights and colours, a calibration whose thresholds are 1, and the regions above that."""
    types, highest = np.zeros((1, 12, 12), np.float32), float(stain.max())
    found = Difference(stain, highest, highest, 1, 1, types, 4.0, "", 0.0)
    height = HeightDifference(
        dent, dent, dent, (0, 0, 0), 1, 0.1, dent, *(np.ones(dent.shape, bool),) * 3
    )  # only its deviations count
    both = replace(found, anomaly_map=dent, height=height, colour=ColourDifference(found, None, None, [], ""))  # type: ignore[arg-type]
    both = as_one(both, calibration := Calibration("plate", "", [], 1, 2, 4, maps=[OfMap(0, 1, 1), OfMap(0, 1, 1)]))
    return both, calibration, find_regions(both.anomaly_map, 1, types, dent.shape, 4.0)


def test_strong_stain_that_touches_a_weak_dent_is_measured_and_called_by_its_colour_alone() -> None:
    both, _, [region] = as_compared(disc(59, 3), disc(40, 60))
    assert found_in(both, region) == ("colour",)
    both, _, [region] = as_compared(disc(59, 3), disc(57, 60))
    assert found_in(both, region) == ("height", "colour")
    both, _, [region] = as_compared(disc(40, 60), disc(59, 3))
    assert found_in(both, region) == ("height",)


def test_weak_stain_that_touches_a_strong_dent_is_a_place_of_its_own_where_the_colour_stands_out() -> None:
    both, calibration, regions = as_compared(dent := disc(40, 60), disc(59, 3))
    assert not places_apart(as_each_stands_out(both, calibration, lambda score: score > 3), regions, dent.shape)
    [apart] = places_apart(as_each_stands_out(both, calibration, lambda score: score >= 3), regions, dent.shape)
    assert apart.peak == 3


def test_what_is_kept_of_a_comparison_holds_the_colours_part_of_the_map() -> None:
    ys, xs = np.mgrid[0:64, 0:48].astype(np.float32)
    colour = np.exp(-((ys - 20) ** 2 + (xs - 30) ** 2) / 50).astype(np.float32) * 3
    both = np.maximum(colour, np.exp(-((ys - 50) ** 2 + (xs - 10) ** 2) / 50).astype(np.float32) * 2)
    kept = KeptDifference.decode(KeptDifference(both, 1.0, np.eye(3), colour=colour, mm=0.25).encode())
    assert kept.colour is not None
    assert np.abs(kept.colour - colour).max() < 0.3
    assert kept.mm == 0.25


def test_kept_comparison_whose_colour_holds_another_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = np.ones((64, 48), np.float32)
    nested = KeptDifference(plane, 1.0, np.eye(3), colour=plane).encode()
    monkeypatch.setattr(kept_difference, "_as_text", lambda _: base64.b64encode(zlib.compress(nested)).decode())
    with pytest.raises(DamagedError, match="a part of its own"):
        KeptDifference.decode(KeptDifference(plane, 1.0, np.eye(3), colour=plane).encode())
