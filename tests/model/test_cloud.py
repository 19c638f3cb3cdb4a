"""Point clouds: what files mean, where they lie on each other, and distances in mm against known truth."""

from __future__ import annotations

import io
import re
import struct
import sys
import time
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from refdiff.model.cloud import atlas
from refdiff.model.cloud.difference import compare, measure_place, signed_distance
from refdiff.model.cloud.features import fpfh
from refdiff.model.cloud.points import Cloud, first_in_voxel, make_cloud
from refdiff.model.cloud.readers import is_cloud, read_cloud
from refdiff.model.cloud.registration import canonical, register, unslid
from refdiff.model.errors import ImageError, UnavailableError
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import SHAPES, Defect, RenderedCloud, SolidPart, ply

pytest.importorskip("small_gicp", reason="point clouds need the extra: pip install 'refdiff[cloud]'")
pytest.importorskip("trimesh", reason="point clouds need the extra: pip install 'refdiff[cloud]'")

SETTINGS = ModelSettings()
POINTS = np.random.default_rng(1).uniform(-20, 30, (900, 3)).round(3)


def read(data: bytes, unit_mm: float | None = 1.0) -> NDArray[Any]:
    return in_the_file(read_cloud(data, name="part", unit_mm=unit_mm, settings=SETTINGS)[0])


def in_the_file(cloud: Cloud) -> NDArray[Any]:
    """The points of a cloud in the coordinates of its file, mm."""
    assert cloud.origin is not None
    return np.asarray(cloud.points + cloud.origin)


def same(found: NDArray[Any], points: NDArray[Any], tolerance: float = 1e-3) -> None:
    """The same points in any order."""
    assert found.shape == points.shape
    for one, other in ((found, points), (points, found)):
        assert cKDTree(one).query(other)[0].max() < tolerance


def pcd(points: NDArray[Any], data: str) -> bytes:
    from pypcd4 import Encoding, PointCloud

    buffer = io.BytesIO()
    PointCloud.from_xyz_points(points.astype(np.float32)).save(buffer, encoding=Encoding(data))
    return buffer.getvalue()


def box_stl(size: tuple[float, float, float], *, text: bool) -> bytes:
    import trimesh

    mesh = trimesh.creation.box(size)
    made = mesh.export(file_type="stl_ascii" if text else "stl")
    return made.encode() if isinstance(made, str) else bytes(made)


@pytest.mark.parametrize("encoding", ["ascii", "binary", "binary_compressed"])
def test_pcd_is_read_in_each_encoding(encoding: str) -> None:
    same(read(pcd(POINTS, encoding)), POINTS)


@pytest.mark.parametrize("end", ["binary", "ascii"])
def test_ply_is_read(end: str) -> None:
    if end == "binary":
        same(read(ply(POINTS)), POINTS)
        return
    head = f"ply\nformat ascii 1.0\nelement vertex {len(POINTS)}\n"
    head += "property float x\nproperty float y\nproperty float z\nend_header\n"
    same(read((head + "\n".join(" ".join(f"{v:.3f}" for v in p) for p in POINTS) + "\n").encode()), POINTS)


@pytest.mark.parametrize("between", [" ", ",", ";", "\t"])
def test_text_is_read_with_its_header_and_colours(between: str) -> None:
    colours = np.random.default_rng(2).integers(0, 256, POINTS.shape)
    rows = np.hstack([POINTS, colours])
    text = "// a scanner\nx y z r g b\n" + "\n".join(between.join(f"{v:g}" for v in row) for row in rows)
    cloud, _ = read_cloud(text.encode(), name="part", unit_mm=25.4, settings=SETTINGS)
    same(in_the_file(cloud) / 25.4, POINTS)
    assert cloud.colours is not None
    at = int(np.argmin(np.abs(in_the_file(cloud) / 25.4 - POINTS[7]).sum(1)))
    assert cloud.colours[at].tolist() == colours[7].tolist()


@pytest.mark.parametrize("text", [True, False])
def test_stl_is_sampled_evenly_on_its_surface_with_outward_normals(text: bool) -> None:
    cloud, _ = read_cloud(box_stl((40, 20, 10), text=text), name="part", unit_mm=1, settings=SETTINGS)
    half = np.array([20, 10, 5])
    points = in_the_file(cloud)
    on = np.isclose(np.abs(points), half, atol=1e-4)
    assert on.any(1).all()
    share = on[:, 2].mean()
    assert share == pytest.approx(2 * 800 / 2800, abs=0.02)
    flat = on.sum(1) == 1
    towards = np.sign(points) * on
    assert ((cloud.normals * towards).sum(1)[flat] > 0).mean() > 0.999


@pytest.mark.parametrize(
    ("data", "unit", "said"),
    [
        (ply(POINTS), None, "does not say its unit"),
        (encode_png(np.zeros((40, 40, 3), np.uint8)), 1.0, "a picture, not a point cloud"),
        (b"\x00\x01\x02" * 100, 1.0, "not a point cloud that can be read"),
        (b"some words\nwithout numbers\n", 1.0, "not a point cloud that can be read"),
        (b"", 1.0, "empty"),
        (ply(POINTS[:100]), 1.0, "at least 500"),
        (ply(POINTS)[:-40], 1.0, "damaged"),
        (
            b"ply\nformat ascii 1.0\nelement vertex 4000000000\nproperty float x\nend_header\n",
            1.0,
            "4,000,000,000 points",
        ),
        (ply(POINTS), 1e6, "kilometre"),
        (b"1 2 3\n4 5\n" + b"1 2 3\n" * 600, 1.0, "damaged"),
    ],
)
def test_file_that_says_too_little_or_is_no_cloud_is_refused_by_name(
    data: bytes, unit: float | None, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        read(data, unit)


def test_packed_pcd_that_would_unpack_to_another_size_is_refused() -> None:
    data = pcd(POINTS, "binary_compressed")
    at = data.index(b"DATA binary_compressed\n") + len(b"DATA binary_compressed\n")
    bomb = data[:at] + data[at : at + 4] + struct.pack("<I", 2**32 - 1) + data[at + 8 :]
    with pytest.raises(ImageError, match="damaged"):
        read(bomb)


def solids(*meshes: Any) -> bytes:
    """A text STL, a solid each."""
    return "\n".join(f"{m.export(file_type='stl_ascii')}" for m in meshes).encode()


def test_text_stl_of_several_solids_is_read_whole() -> None:
    import trimesh

    one, other = trimesh.creation.box((10, 10, 10)), trimesh.creation.box((20, 20, 20))
    other.apply_translation([50, 0, 0])
    found = read(solids(one, other))
    assert found.min(0) == pytest.approx([-5, -10, -10], abs=0.1)
    assert found.max(0) == pytest.approx([60, 10, 10], abs=0.1)
    assert (found[:, 0] < 10).mean() == pytest.approx(600 / 3000, abs=0.01), "as its surface has it"
    same(read(solids(one, other).upper()), found)


def test_text_stl_is_read_however_its_lines_are_broken() -> None:
    import trimesh

    found = read(whole := solids(trimesh.creation.box((40, 20, 10))))
    same(read(re.sub(rb"outer loop\s+vertex", b"outer loop vertex", whole)), found)
    same(read(whole.replace(b"vertex ", b"vertex\t").replace(b"\n", b"\r\n")), found)


def test_text_stl_with_many_blank_lines_is_read_at_once() -> None:
    import trimesh

    whole = solids(trimesh.creation.box((40, 20, 10)))
    blank = whole.replace(b"endsolid", b"\n" * 1_000_000 + b"endsolid")
    started = time.process_time()
    same(read(blank), read(whole))
    assert time.process_time() - started < 20, "a search that begins anew at each blank line takes an hour"


def test_stl_without_faces_and_one_that_is_cut_off_are_refused() -> None:
    import trimesh

    for empty in (b"solid nothing\nfacet\nendsolid\n", b"solid nothing\nendsolid nothing\n"):
        with pytest.raises(ImageError, match="without any faces"):
            read(empty)
    whole = solids(trimesh.creation.box((10, 10, 10)), trimesh.creation.icosphere(2))
    with pytest.raises(ImageError, match="cut off"):
        read(whole[: len(whole) * 2 // 3])


def test_text_that_begins_with_a_mark_is_read() -> None:
    text = "\n".join(" ".join(f"{v:.3f}" for v in p) for p in POINTS)
    same(read(b"\xef\xbb\xbf" + text.encode()), POINTS)


def test_points_far_from_the_origin_keep_their_hundredths_of_a_mm() -> None:
    far = POINTS + np.array([4_321_000.0, -5_678_000.0, 300_000.0])
    text = "\n".join(" ".join(f"{v:.3f}" for v in p) for p in far)
    same(read(text.encode()), far)


def test_stray_point_far_away_does_not_coarsen_what_is_thinned_out() -> None:
    sphere = np.random.default_rng(5).normal(size=(200_000, 3))
    sphere *= 50 / np.linalg.norm(sphere, axis=1, keepdims=True)
    cloud, notes = read_cloud(ply(np.vstack([sphere, [[9e6, 9e6, 9e6]]])), name="part", unit_mm=1, settings=SETTINGS)
    assert len(cloud.points) > 75_000
    assert any("1 stray points" in note for note in notes), notes
    assert cloud.size_mm < 180


def test_voxels_of_points_very_far_apart_do_not_overflow() -> None:
    points = np.array([[0, 0, 0], [0.1, 0, 0], [1e9, 1e9, 1e9], [5, 0, 0], [-1e9, 1e9, -1e9]])
    assert first_in_voxel(points, 1.0).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            "FIELDS x y z a\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 500000000\nPOINTS 1000",
            "500,000,003 numbers a point",
        ),
        ("FIELDS x y z a\nSIZE 4 4 4 8\nTYPE F F F F\nCOUNT 1 1 1 90\nPOINTS 9000000", "6.6 GB in memory"),
    ],
)
def test_pcd_that_would_fill_the_memory_is_refused_before_it_is_unpacked(head: str, said: str) -> None:
    data = f"VERSION 0.7\n{head}\nWIDTH 1\nHEIGHT 1\nDATA binary_compressed\n".encode() + b"\0" * 1000
    with pytest.raises(ImageError, match=said):
        read(data)


def test_text_ply_of_too_many_lines_is_refused_before_it_is_read() -> None:
    head = b"ply\nformat ascii 1.0\nelement vertex 1000\nproperty float x\nend_header\n"
    with pytest.raises(ImageError, match="save it as a binary PLY"):
        read(head + b"0\n" * 5_100_000)


@pytest.mark.parametrize(
    ("package", "data"), [("trimesh", ply(POINTS)), ("pypcd4.pypcd4", b"# .PCD v0.7 - x\nDATA ascii\n")]
)
def test_half_installed_extra_is_said_and_the_file_is_not_called_damaged(
    package: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == package.split(".")[0]]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UnavailableError, match=r"refdiff\[cloud\]"):
        read(data)


def test_what_was_not_measured_and_stray_points_are_left_out_and_said() -> None:
    stray = np.vstack([POINTS, [[900.0, 900, 900]], np.zeros((50, 3)), [[np.nan, 1, 1]]])
    cloud, notes = read_cloud(ply(stray), name="part", unit_mm=1, settings=SETTINGS)
    assert len(cloud.points) <= len(POINTS)
    assert in_the_file(cloud).max() < 40
    assert any("stray" in note for note in notes)


@pytest.mark.parametrize(
    ("data", "cloud"),
    [
        (ply(POINTS), True),
        (b"# .PCD v0.7", True),
        (b"solid x\nfacet", True),
        (b"SOLID x", True),
        (bytes(80) + struct.pack("<I", 2) + bytes(100), True),
        (bytes(80) + struct.pack("<I", 3) + bytes(100), False),
        (b"1 2 3\n", False),
        (b"\x89PNG", False),
    ],
)
def test_cloud_is_known_by_its_signature(data: bytes, cloud: bool) -> None:
    assert is_cloud(data) == cloud


def test_fpfh_is_the_same_however_a_cloud_is_turned_and_each_third_sums_to_200() -> None:
    part = SolidPart("bracket").cloud(np.random.default_rng(1), 3000)
    one = make_cloud(part.points)
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    turn[:3, :3] *= np.sign(np.linalg.det(turn[:3, :3]))
    other = one.moved(turn)
    a, b = fpfh(one.points, one.normals, 8), fpfh(other.points, other.normals, 8)
    assert np.allclose(a.reshape(-1, 3, 11).sum(2), 200, atol=1e-2)
    assert np.quantile(np.abs(a - b), 0.999) < 3


@pytest.mark.parametrize("shape", SHAPES)
def test_cloud_is_registered_whichever_way_it_is_turned_also_with_a_part_missing(shape: str) -> None:
    part = SolidPart(shape)  # type: ignore[arg-type]
    golden, query = (part.cloud(np.random.default_rng((3, i)), 8000, partial=0.15 * i) for i in range(2))
    found = register(make_cloud(query.points), make_cloud(golden.points))
    assert found.ok
    true = golden.frame @ np.linalg.inv(query.frame)
    there, real = (query.points @ m[:3, :3].T + m[:3, 3] for m in (found.matrix, true))
    # of a dome only small details say how it is turned about its axis
    assert np.abs(there - real).max() < (1.5 if shape == "dome" else 0.3)


def test_round_part_is_not_turned_to_where_its_details_do_not_lie() -> None:
    """On coarse clouds a dome lies as well 99 degrees beside."""

    def scanned(i: int) -> RenderedCloud:
        rng = np.random.default_rng((4, 1, 1, i))
        return SolidPart("dome", 4).cloud(rng, int(np.exp(rng.uniform(*np.log((10_000, 30_000))))))

    golden, query = scanned(0), scanned(6)
    found = register(make_cloud(query.points), make_cloud(golden.points)).matrix
    apart = found - golden.frame @ np.linalg.inv(query.frame)
    assert np.abs(query.points @ apart[:3, :3].T + apart[:3, 3]).max() < 0.5


@pytest.mark.parametrize("degrees", [-7.0, 7.0])
def test_round_part_is_turned_to_where_its_details_lie(degrees: float) -> None:
    """Its surfaces slide over each other: point-to-plane ICP stops some degrees off."""
    golden, query = (SolidPart("dome", 5).cloud(np.random.default_rng((3, i)), 8000) for i in (0, 2))
    turned, true = np.eye(4), golden.frame @ np.linalg.inv(query.frame)
    turned[:3, :3] = cv2.Rodrigues(np.radians([0.0, 0.0, degrees]))[0]
    start = golden.frame @ turned @ np.linalg.inv(query.frame)
    ours, theirs = make_cloud(query.points), make_cloud(golden.points)
    found = unslid(ours, theirs, start, theirs.size_mm / 36)
    apart = [query.points @ (m - true)[:3, :3].T + (m - true)[:3, 3] for m in (start, found)]
    assert np.abs(apart[0]).max() > 3
    assert np.abs(apart[1]).max() < 0.5


def test_another_part_is_not_placed() -> None:
    golden = SolidPart("wheel").cloud(np.random.default_rng(1), 6000)
    rod = np.random.default_rng(2).normal(0, 1, (6000, 3)) * [30, 1, 1]
    assert not register(make_cloud(golden.points), make_cloud(rod)).ok


def test_own_axes_are_the_same_however_a_cloud_is_turned() -> None:
    part = SolidPart("bracket")
    first, second = (make_cloud(part.cloud(np.random.default_rng((4, i)), 8000).points) for i in range(2))
    a, b = (c.moved(canonical(c)) for c in (first, second))
    assert np.abs(a.points.max(0) - b.points.max(0)).max() < 2
    assert (np.diff(np.ptp(a.points, axis=0)) < 0).all(), "the longest along x, the shortest along z"


def test_signed_distance_of_a_sphere_is_positive_outside_and_negative_inside() -> None:
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(20_000, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    sphere = make_cloud(20 * directions)
    assert ((sphere.normals * directions).sum(1) > 0.9).mean() > 0.999
    for off in (-3.0, -0.2, 0.2, 3.0):
        points, normals = ((20 + off) * directions[:500]).astype(np.float32), directions[:500].astype(np.float32)
        found, _ = signed_distance(points, normals, sphere)
        assert np.abs(found - off).max() < 0.06


@pytest.mark.parametrize(("name", "height"), [("bulge", 1.5), ("dent", 1.0)])
def test_defect_is_measured_in_mm_and_extra_is_told_from_missing_material(name: str, height: float) -> None:
    part = SolidPart("bracket")
    defect = Defect(name, height, 20.0, 0.0, 7.0)  # type: ignore[arg-type]
    golden, query = part.cloud(np.random.default_rng(1), 30_000), part.cloud(np.random.default_rng(2), 30_000, defect)
    goldens, cloud = make_cloud(golden.points), make_cloud(query.points)
    frame = np.linalg.inv(golden.frame)
    goldens = goldens.moved(frame)
    cloud = cloud.moved(np.linalg.inv(query.frame))
    drawn = atlas.draw(cloud, 120)
    found = compare(cloud, [goldens], drawn)
    y, x = np.unravel_index(int(found.deviation.argmax()), found.deviation.shape)
    assert atlas.view_of(float(x), float(y)) == "top"
    place = measure_place(cloud, found, found.deviation >= 0.5 * found.deviation.max(), 0.0, 0.0)
    assert place is not None
    assert place.extra == (name == "bulge")
    assert abs(abs(place.deviation_mm) - height) <= place.deviation_uncertainty_mm + 0.1
    assert np.hypot(place.at[0] - 20, place.at[1]) < 9
    assert place.volume_mm3 == pytest.approx(0.81 * height * np.pi * 7**2, rel=0.25), "of the core"


def test_part_that_was_not_scanned_is_missing_and_no_defect() -> None:
    part = SolidPart("housing")
    golden, query = (
        part.cloud(np.random.default_rng(1), 20_000),
        part.cloud(np.random.default_rng(2), 20_000, partial=0.2),
    )
    one, other = (make_cloud(c.points).moved(np.linalg.inv(c.frame)) for c in (golden, query))
    found = compare(other, [one], atlas.draw(other, 120))
    assert found.missing == pytest.approx(0.2, abs=0.06)
    assert found.largest_gap > 0.1
    assert found.deviation.max() < 0.5


def on_part(seed: int, defect: Defect | None = None, points: int = 20_000) -> Cloud:
    """A bracket in its own frame."""
    made = SolidPart("bracket").cloud(np.random.default_rng(seed), points, defect)
    return make_cloud(made.points).moved(np.linalg.inv(made.frame))


def test_surface_that_lacks_beside_a_rim_that_deviates_a_little_is_missing() -> None:
    golden, whole = on_part(1), on_part(2)
    kept = whole.points[:, 0] < 22
    points, normals = whole.points[kept], whole.normals[kept]
    points = points + (points[:, :1] > 18) * 0.5 * normals  # as scanners bend what they see at a slant
    query = Cloud(points, normals, whole.spacing_mm)
    found = compare(query, [golden], atlas.draw(query, 120))
    assert found.missing == pytest.approx(float((golden.points[:, 0] > 22).mean()), abs=0.04)
    assert found.largest_gap == pytest.approx(found.missing, abs=0.02)
    assert 0.3 < found.deviation.max() < 0.8


@pytest.mark.parametrize(
    "defect", [Defect("hole", 1.0, 34.0, 4.0, 4.5), Defect("missing_piece", 1.0, 30.0, 29.0, 8.0)], ids=lambda d: d.name
)
def test_hole_and_broken_piece_are_found_by_their_walls_and_have_no_volume(defect: Defect) -> None:
    query = on_part(2, defect)
    found = compare(query, [on_part(1)], atlas.draw(query, 120))
    assert found.missing < 0.01, "it is found, not missing"
    place = measure_place(query, found, found.deviation >= 0.5 * found.deviation.max(), 0.0, 0.0)
    assert place is not None
    assert not place.extra
    assert np.hypot(place.at[0] - defect.x, place.at[1] - defect.y) < defect.radius_mm + 1
    assert place.volume_mm3 is None


def test_registration_that_may_be_off_widens_the_uncertainty_by_that() -> None:
    query = on_part(2, Defect("bulge", 1.5, 20.0, 0.0, 7.0))
    found = compare(query, [on_part(1)], atlas.draw(query, 120))
    mask = found.deviation >= 0.5 * found.deviation.max()
    sure, off = (measure_place(query, found, mask, 0.0, mm) for mm in (0.0, 0.3))
    assert sure is not None
    assert off is not None
    assert off.deviation_uncertainty_mm == pytest.approx(np.hypot(sure.deviation_uncertainty_mm, 0.6))


def test_atlas_shows_each_side_of_a_box_in_its_view() -> None:
    cloud, _ = read_cloud(box_stl((60, 30, 10), text=False), name="box", unit_mm=1, settings=SETTINGS)
    drawn = atlas.draw(cloud, 80)
    for i, (width, height) in enumerate([(60, 30), (60, 10), (30, 10)] * 2):
        row, column = divmod(i, 3)
        view = drawn.index[row * 192 : (row + 1) * 192, column * 192 : (column + 1) * 192] >= 0
        shown = view.any(0).sum() * drawn.mm_per_px, view.any(1).sum() * drawn.mm_per_px
        assert shown == pytest.approx((width, height), abs=1.5)
        assert view.sum() / (view.any(0).sum() * view.any(1).sum()) > 0.98, "without holes"
    depths = atlas.depths(cloud, drawn)
    top = depths[:192, :192]
    assert (np.abs(top[np.isfinite(top)] - 5) < 1e-3).mean() > 0.94, "the top is 5 mm above the middle, but for its rim"
