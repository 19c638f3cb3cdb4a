"""Point clouds from files: PLY, PCD, STL and text (XYZ, TXT, ASC, CSV).

Knows nothing about products. How many mm a unit of a file is, is never guessed. Meshes are sampled evenly on their surface.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from refdiff.model.cloud.points import EXTRA_NEEDED, F64, Cloud, first_in_voxel, make_cloud, small_gicp
from refdiff.model.decode_budget import BUDGET
from refdiff.model.errors import ImageError, UnavailableError, out_of_memory
from refdiff.model.images import check_bytes
from refdiff.model.settings import ModelSettings

if TYPE_CHECKING:
    from pypcd4.pypcd4 import MetaData

SUFFIXES = frozenset((".ply", ".pcd", ".stl", ".xyz", ".txt", ".asc", ".csv"))
MAX_POINTS = 150_000  # more are thinned; a difference is no better by them
_MOST_POINTS = 20_000_000  # of a file
_MOST_UNPACKED = 1_000_000_000  # bytes that a file may become in memory
_MOST_NUMBERS = 1000  # of a point in a PCD file
_LINE_BYTES = 200  # that trimesh takes for each line of a text PLY
_LEAST_POINTS = 500
_ON_MESH = 150_000  # points that a mesh is sampled at
_SEED = 7
_STRAY = 6.0  # medians of the distance to the neighbours, beyond which a point is a stray one
_NEIGHBOURS = 6
_HEADER_LINES = 32  # of a text file, before its numbers
_UNSTATED = (
    "{name}: a file of points does not say its unit; state it in the specification of the product, under `cloud`: `unit_mm: "
    "1` (mm of one unit: 1000 for metres, 25.4 for inches)"
)
# of a text STL; no search from line to line: blank lines would take for ever
_VERTEX = rb"(?i)\bvertex(?:[ \t]+[-+.\d][-+.\de]*){3}"
_KINDS = "PLY, PCD, STL and text with x y z a line are"
_PICTURES = (b"\x89PNG", b"\xff\xd8", b"II*\0", b"MM\0*", b"BM", b"GIF8", b"RIFF")

Read = tuple[F64, NDArray[np.uint8] | None]  # points (N, 3) in units of the file, colours (N, 3)


def is_cloud(data: bytes) -> bool:
    """Whether a file is a cloud with a signature (PLY, PCD, STL); text with numbers has none."""
    head = data[:512].lstrip()
    named = head.startswith((b"ply\n", b"ply\r", b"# .PCD", b"VERSION .7", b"VERSION 0.7"))
    return named or head[:6].lower() == b"solid " or _is_binary_stl(data)


def read_cloud(
    data: bytes, *, name: str, unit_mm: float | None, settings: ModelSettings
) -> tuple[Cloud, tuple[str, ...]]:
    """The cloud in a file, in mm, and what people must know of it.

    Raises ImageError: no cloud, a unit that nobody stated, damaged, too large, too few points; BusyError, UnavailableError:
    try again, or install the extra.
    """
    if not data:
        raise ImageError(f"{name}: the file is empty; scan the part again")
    check_bytes(len(data), name, settings)
    if data.startswith(_PICTURES):
        raise ImageError(
            f"{name}: a picture, not a point cloud ({_KINDS} read); height maps are of kind `depth`, photos are a product "
            "of their own"
        )
    small_gicp()  # says what is not installed
    read = _reader_of(data)
    if read is None:
        raise ImageError(f"{name}: not a point cloud that can be read; {_KINDS}")
    if unit_mm is None:
        raise ImageError(_UNSTATED.format(name=name))
    with _failing(name):
        size = _unpacked_bytes(data)
    with BUDGET.take(max(len(data), size) // 4, settings.max_pixels, name):
        with _failing(name):
            points, colours = read(data)
        return _checked(np.asarray(points, np.float64) * unit_mm, colours, name)


@contextmanager
def _failing(name: str) -> Iterator[None]:
    """What libraries raise on a file, in words."""
    try:
        yield
    except ImageError as e:
        raise ImageError(f"{name}: {e}") from e
    except ImportError as e:  # a part of the extra is missing
        raise UnavailableError(EXTRA_NEEDED) from e
    except Exception as e:  # damaged files raise many types
        if out_of_memory(e):
            raise UnavailableError(f"{name}: too little memory is free to read it; try again later") from e
        raise ImageError(f"{name}: the file is damaged ({type(e).__name__}: {str(e)[:120]}); export it again") from e


def _is_binary_stl(data: bytes) -> bool:
    return len(data) > 84 and len(data) == 84 + 50 * struct.unpack_from("<I", data, 80)[0]


def _reader_of(data: bytes) -> Callable[[bytes], Read] | None:
    head = data[:512].lstrip()
    if head.startswith((b"ply\n", b"ply\r")):
        return _ply
    if head.startswith(b"# .PCD") or re.match(rb"VERSION 0?\.7", head):
        return _pcd
    if _is_binary_stl(data) or head[:5].lower() == b"solid":
        return _stl
    if b"\0" not in data[:4096] and _first_numbers(data) is not None:
        return _text
    return None


def _mesh_or_points(vertices: F64, faces: NDArray[np.integer] | None, colours: NDArray[np.uint8] | None) -> Read:
    if faces is None or not len(faces):
        return vertices, colours
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False)
    points, _ = trimesh.sample.sample_surface(mesh, _ON_MESH, seed=_SEED)
    return np.asarray(points, np.float64), None


def _ply(data: bytes) -> Read:
    from trimesh.exchange.ply import load_ply

    header = data[: data.find(b"end_header") + 10][:65536]
    for number in re.findall(rb"element\s+\S+\s+(\d+)", header):
        _check_count(int(number))
    made = load_ply(io.BytesIO(data), skip_materials=True, fix_texture=False)
    colours = made.get("vertex_colors", made.get("colors"))
    faces = made.get("faces")
    known = colours is not None and len(colours) == len(made["vertices"]) and np.asarray(colours).dtype == np.uint8
    rgb = np.asarray(colours)[:, :3].astype(np.uint8) if known else None
    return _mesh_or_points(np.asarray(made["vertices"], np.float64), faces, rgb)


def _stl(data: bytes) -> Read:
    from trimesh.exchange.stl import load_stl
    from trimesh.util import append_faces

    _check_count(len(re.findall(rb"(?i)\bendfacet\b", data)))
    made = load_stl(io.BytesIO(data))
    solids = [made] if "vertices" in made else list(made["geometry"].values())  # a text STL may hold several
    if not solids:
        raise ImageError("an STL without any faces, or cut off; export it again")
    vertices, faces = append_faces([np.asarray(s["vertices"]) for s in solids], [s["faces"] for s in solids])
    if not _is_binary_stl(data) and len(re.findall(_VERTEX, data)) != len(vertices):
        raise ValueError("a solid of it is cut off")
    _check_count(len(faces))
    return _mesh_or_points(np.asarray(vertices, np.float64), np.asarray(faces), None)


def _pcd_header(data: bytes) -> MetaData:
    """Raises ImageError for more points, or numbers of each, than any scanner makes, before memory is taken for them."""
    from pypcd4.pypcd4 import MetaData

    head = data[:8192].decode("ascii", "replace").splitlines()
    about = MetaData.parse_header(
        [line.strip() for line in head[: 1 + next(i for i, t in enumerate(head) if t[:4] == "DATA")]]
    )
    _check_count(about.points)
    if sum(about.count) > _MOST_NUMBERS:
        raise ImageError(f"{sum(about.count):,} numbers a point; at most {_MOST_NUMBERS:,} are read")
    return about


def _unpacked_bytes(data: bytes) -> int:
    """What a file of points takes in memory, where that may be far more than it has. Raises ImageError for too much."""
    head = data[:512].lstrip()
    size, way = 0, ""
    if head.startswith((b"ply\n", b"ply\r")) and re.search(rb"format\s+ascii", head):
        size, way = _LINE_BYTES * data.count(b"\n"), "; save it as a binary PLY"
    elif _reader_of(data) is _pcd:
        about = _pcd_header(data)
        size = about.points * sum(s * c for s, c in zip(about.size, about.count, strict=True))
    if size > _MOST_UNPACKED:
        raise ImageError(
            f"takes {size / 1e9:.1f} GB in memory, more than {_MOST_UNPACKED / 1e9:g}{way}, or thin it out first"
        )
    return size


def _pcd(data: bytes) -> Read:
    from pypcd4.pypcd4 import PointCloud

    about = _pcd_header(data)
    if about.data.value.startswith("binary") and about.data.value != "binary":
        _check_packed(data, about)
    cloud = PointCloud.from_fileobj(io.BufferedReader(io.BytesIO(data)))
    points = np.asarray(cloud.numpy(("x", "y", "z")), np.float64)
    if "rgb" not in cloud.fields:
        return points, None
    packed = np.ascontiguousarray(cloud.pc_data["rgb"])
    rgb = packed.view(np.uint32) if packed.dtype.itemsize == 4 else packed.astype(np.uint32)
    return points, np.stack([(rgb >> shift) & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)


def _check_packed(data: bytes, about: MetaData) -> None:
    """Raises ValueError where unpacking would give another size than the header says."""
    at = re.search(rb"DATA \w+\r?\n", data)
    assert at is not None, "the header has been read"
    size = struct.unpack_from("<II", data, at.end())[1]
    expected = about.points * sum(s * c for s, c in zip(about.size, about.count, strict=True))
    if size != expected:
        raise ValueError(f"{size} bytes packed, {expected} expected")


def _first_numbers(data: bytes) -> tuple[int, str | None, int] | None:
    """Of a text file: how many lines come before the numbers, what stands between those, and how many a line has."""
    for number, line in enumerate(data[:16384].decode("utf-8-sig", "replace").splitlines()[:_HEADER_LINES]):
        between = next((d for d in (";", ",", "\t") if d in line), None)
        cells = [c for c in (line.split(between) if between else line.split()) if c.strip()]
        try:
            values = [float(c) for c in cells]
        except ValueError:
            continue
        if len(values) >= 3:
            return number, between, len(values)
    return None


def _text(data: bytes) -> Read:
    found = _first_numbers(data)
    assert found is not None, "looked at before"
    skipped, between, columns = found
    _check_count(data.count(b"\n") - skipped)
    used = 6 if columns >= 6 else 3
    table = np.loadtxt(
        io.BytesIO(data),
        skiprows=skipped,
        delimiter=between,
        usecols=range(used),
        ndmin=2,
        encoding="utf-8-sig",  # Windows programs begin text with a mark
        comments=["#", "//"],
    )
    colours = table[:, 3:]
    if used == 3 or not (colours == np.rint(colours)).all() or colours.min() < 0 or not 1 < colours.max() <= 255:
        return table[:, :3], None
    return table[:, :3], colours.astype(np.uint8)


def _check_count(points: int) -> None:
    if points > _MOST_POINTS:
        raise ImageError(f"{points:,} points or faces; at most {_MOST_POINTS:,} are read: thin the cloud out first")


def _checked(points: F64, colours: NDArray[np.uint8] | None, name: str) -> tuple[Cloud, tuple[str, ...]]:
    notes = []
    # 0, 0, 0: how organised clouds mark what was not measured
    known = np.isfinite(points).all(1) & (points != 0).any(1)
    points, colours = points[known], None if colours is None else colours[known]
    if len(points) < _LEAST_POINTS:
        raise ImageError(f"{name}: {len(points)} points; at least {_LEAST_POINTS} are needed: scan the part again")
    low, high = np.percentile(points, (1, 99), axis=0)  # without stray points, which may lie anywhere
    if float((high - low).max()) > 1e6:
        raise ImageError(
            f"{name}: larger than a kilometre; is the unit right that the product states (`cloud: unit_mm`)?"
        )
    middle = (low + high) / 2
    points = points - middle  # before float32: a machine's coordinates may lie kilometres away
    if len(points) > MAX_POINTS:
        voxel = float(np.linalg.norm(high - low)) / 4000
        kept = np.arange(len(points))
        while len(kept) > MAX_POINTS:
            kept, voxel = first_in_voxel(points, voxel), 1.25 * voxel
        notes.append(f"{len(points):,} points were thinned out to {len(kept):,}")
        points, colours = points[kept], None if colours is None else colours[kept]
    distance, at = cKDTree(points).query(points, k=_NEIGHBOURS + 1)
    apart = distance[:, 1:].mean(1)
    near = apart <= _STRAY * max(float(np.median(apart)), 1e-9)
    if not near.all():
        notes.append(f"{int((~near).sum()):,} stray points were left out")
    first = np.where(distance == 0, at, len(points)).min(1) == np.arange(len(points))  # of those in one place
    kept = near & first
    if int(kept.sum()) < _LEAST_POINTS:
        raise ImageError(f"{name}: {int(kept.sum())} points that belong together; scan the part again")
    points, colours = points[kept], None if colours is None else colours[kept]
    return make_cloud(points, colours, middle), tuple(notes)
