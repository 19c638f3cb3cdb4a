"""Product specifications: valid and refused files, and the placement of zones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from refdiff.model.errors import SpecError
from refdiff.tools.inspection.specification import (
    EXAMPLE,
    MAX_BYTES,
    ProductSpec,
    Zone,
    load_spec,
    parse_spec,
    zone_mask,
)


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_example_specification_loads_with_its_values(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, EXAMPLE))
    assert (spec.scale_mm_per_px, spec.frame) == (0.05, "g-0123456789ab")
    assert [(z.name, z.kind) for z in spec.zones] == [("bore", "critical"), ("label", "ignore")]
    assert [(limit.max_length_mm, limit.severity, limit.reject) for limit in spec.limits] == [
        (0.5, "minor", False),
        (None, "major", True),
    ]
    # as it is kept in the database and read again
    assert parse_spec(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_empty_file_is_an_empty_specification(tmp_path: Path, text: str) -> None:
    assert load_spec(write(tmp_path, text)) == ProductSpec()


BOX = {"name": "a", "kind": "ignore", "box": [0, 0, 9, 9]}
WRONG: list[tuple[Any, str]] = [
    ([], "expected a mapping, got list"),
    ("zones", "expected a mapping, got str"),
    ({"scale": 1}, "scale: Extra"),
    ({1: 2}, "1: "),
    ({"scale_mm_per_px": 0}, "scale_mm_per_px"),
    ({"scale_mm_per_px": -1}, "scale_mm_per_px"),
    ({"scale_mm_per_px": float("inf")}, "scale_mm_per_px"),
    ({"scale_mm_per_px": float("nan")}, "scale_mm_per_px"),
    ({"scale_mm_per_px": "a"}, "scale_mm_per_px"),
    ({"frame": "../../etc/passwd"}, "frame"),
    ({"frame": "g-0123456789ab\n"}, "frame"),
    ({"zones": True}, "zones"),
    ({"zones": [{"name": "a", "kind": "ignore"}]}, "either box or polygon"),
    ({"zones": [BOX | {"polygon": [[0, 0], [1, 0], [1, 1]]}]}, "either box or polygon"),
    ({"zones": [BOX | {"kind": "secret"}]}, "zones.0.kind"),
    ({"zones": [BOX | {"name": ""}]}, "zones.0.name"),
    ({"zones": [BOX | {"box": [9, 0, 0, 9]}]}, "x0 < x1"),
    ({"zones": [BOX | {"box": [0, 0, 9]}]}, "zones.0.box"),
    ({"zones": [BOX | {"box": [0, 0, 9, float("nan")]}]}, "zones.0.box"),
    ({"zones": [BOX | {"box": [0, 0, 9, 1e300]}]}, "zones.0.box"),
    ({"zones": [{"name": "a", "kind": "ignore", "polygon": [[0, 0], [1, 1]]}]}, "zones.0.polygon"),
    ({"zones": [{"name": "a", "kind": "ignore", "polygon": [[0, 0], [1, 1], [float("inf"), 0]]}]}, "zones.0.polygon"),
    ({"zones": [BOX] * 65}, "zones"),
    ({"limits": [{"max_length_mm": 1}]}, "limits.0.severity"),
    ({"limits": [{"severity": "awful"}]}, "limits.0.severity"),
    ({"limits": [{"severity": "minor", "max_length_mm": 0}]}, "limits.0.max_length_mm"),
    ({"limits": [{"severity": "minor", "max_area_px": float("inf")}]}, "limits.0.max_area_px"),
]


@pytest.mark.parametrize(("data", "says"), WRONG)
def test_invalid_specification_field_is_named(data: Any, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(data, "bracket.yaml")
    assert str(caught.value).startswith("bracket.yaml: ")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "zones: [",
        "a: b: c",
        "\tx: 1",
        "a: \0",
        b"\xff\xfe\x00a",
        "[" * 20_000,
        "a: 2026-13-45",  # a date that is none
        "a: 2026-01-01T25:99:99Z",
        "a: 0x_",
        "scale_mm_per_px: " + "9" * 5000,
        "scale_mm_per_px: 1e400",
        "!!python/object/apply:os.system ['true']",
        "{[1]: 2}",
        "<<: 3",
        "a: 1\n---\nb: 2",
        "&a {zones: *a}",
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
        "#" * (MAX_BYTES + 1),
    ],
    ids=range(18),
)
def test_malformed_yaml_is_a_spec_error(tmp_path: Path, text: str | bytes) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError, match=r"spec\.yaml"):
        load_spec(path)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b", "x" * 5000, "/dev/zero"])
def test_path_that_is_no_file_is_a_spec_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError):
        load_spec(tmp_path / name)


def test_yaml_tags_create_no_python_objects(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(SpecError):
        load_spec(write(tmp_path, f"!!python/object/apply:os.mkdir ['{target}']"))
    assert not target.exists()
    assert yaml.safe_load(EXAMPLE)


# ---- zones ----

IDENTITY = np.eye(3)


def zone(**shape: Any) -> Zone:
    return Zone(name="z", kind="ignore", **shape)


def test_box_zone_covers_its_pixels_with_an_exclusive_end() -> None:
    mask = zone_mask(zone(box=(10, 20, 30, 25)), IDENTITY, (50, 60))
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (10, 20, 29, 24)
    assert mask.sum() == 20 * 5


def test_polygon_zone_covers_its_inside() -> None:
    mask = zone_mask(zone(polygon=[(0, 0), (40, 0), (0, 40)]), IDENTITY, (50, 50))
    assert mask[10, 10]
    assert not mask[30, 30]
    assert mask.sum() == pytest.approx(800, rel=0.06)


def test_zone_moves_with_the_part() -> None:
    quarter = np.array([[0, -1, 50], [1, 0, 0], [0, 0, 1.0]])  # clockwise on the screen, about (25, 25)
    mask = zone_mask(zone(box=(0, 10, 5, 30)), quarter, (50, 50))
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (20, 0, 40, 5)


@pytest.mark.parametrize(
    ("box", "part"), [((-100, -100, 1000, 1000), 1.0), ((-1e5, -1e5, 1e5, 1e5), 1.0), ((100, 100, 200, 200), 0.0)]
)
def test_zone_beyond_the_photo_is_clipped(box: tuple[float, float, float, float], part: float) -> None:
    assert zone_mask(zone(box=box), IDENTITY, (50, 50)).mean() == part
