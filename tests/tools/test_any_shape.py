"""Any shape that a photo may have, and any value that a setting may have, ends in a result or in words."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import Finding, Location
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import ImageError
from refdiff.model.images import MAX_ASPECT, MIN_SIDE_PX, decode_image, encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.server.settings import ConfigurationError, load_settings
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection import inspection
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.vision import measurement, regions
from refdiff.tools.vision.measurement import measure
from refdiff.tools.vision.regions import find_regions, map_size
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

QUICK = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """(H, W) that can be inspected."""
    short = draw(st.integers(MIN_SIDE_PX, 200))
    sides = [short, draw(st.integers(short, min(900, MAX_ASPECT * short)))]
    return tuple(draw(st.permutations(sides)))  # type: ignore[return-value]


def noise(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def spots(shape: tuple[int, int], strength: float = 1.0) -> NDArray[np.float32]:
    """An anomaly map with a spot in the middle and one at the edge."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    places = ((shape[0] / 2, shape[1] / 2), (shape[0] - 1, 0))
    spread = max(shape) / 20
    return strength * sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / spread**2) for a, b in places).astype(np.float32)


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


@QUICK
@given(st.integers(0, 26), st.integers(0, 26), st.integers(0, 9))
@example(22, 4, 0)  # 16 x 4,000,000
def test_photo_of_any_shape_is_decoded_or_refused_in_words(log_width: int, log_height: int, more: int) -> None:
    width, height = 2**log_width + more, 2**log_height + more
    whole = width * height <= 1 << 20
    data = png_of(width, height, bytes((1 + (width + 7) // 8) * height) if whole else b"")
    started = time.process_time()
    fits = min(width, height) >= MIN_SIDE_PX and max(width, height) <= MAX_ASPECT * min(width, height)
    if whole and fits:
        assert decode_image(data).shape == (height, width, 3)
    else:
        with pytest.raises(ImageError, match=r"too small|too long and thin|limit|damaged|not an image"):
            decode_image(data)
    assert time.process_time() - started < 2


@QUICK
@given(shapes(), st.none() | st.floats(1e-20, 1e20), st.integers(0, 99), st.floats(0, 1e6))
def test_every_picture_is_drawn_for_any_shape_and_threshold(
    shape: tuple[int, int], threshold: float | None, at: int, strength: float
) -> None:
    query, heat = noise((*shape, 3)), spots(shape, strength)
    x, y = at * shape[1] // 100, at * shape[0] // 100
    location = Location(x0=x, y0=y, x1=min(x + 9, shape[1]), y1=min(y + 9, shape[0]), region="centre")
    finding = Finding(id="f", type="crack", description="", location=location, area_px=1, confidence=0.5, evidence=["e1"],
                      reasoning="")  # fmt: skip
    made = [
        pictures.overlay(query, [finding] * 3, anomaly_map=heat, threshold=threshold),
        pictures.heatmap(query, heat, threshold),
        pictures.side_by_side(noise((33, 77, 3)), query),
        pictures.crops(query, query, (location.x0, location.y0, location.x1, location.y1)).query,
    ]
    assert all(m.dtype == np.uint8 and max(m.shape) <= 2 * pictures.MAX_LONG_SIDE + 500 for m in made)
    assert all(pictures.page_image(m) and pictures.plain_jpeg(m) for m in made)
    assert pictures.anomaly_layer(heat, threshold or 1.0)


@QUICK
@given(shapes(), st.booleans(), st.floats(0, 1))
def test_regions_of_any_shape_are_found_and_measured(
    shape: tuple[int, int], registered: bool, threshold: float
) -> None:
    query, heat = noise((*shape, 3)), spots(shape)
    alignment = Alignment("identity", registered, np.eye(3), 0.3, 1.0, 0.9, 0.0, 1.0, "for the test")
    for region in find_regions(heat, threshold):
        m = measure(query, noise((*shape, 3), 1), alignment, heat, region.box, mask=region.mask)
        assert 0 <= m.box[0] < m.box[2] <= shape[1]
        assert 0 <= m.box[1] < m.box[3] <= shape[0]
        assert m.length_px > 0


# ---- photos larger than their maps ----


def test_map_of_a_photo_within_the_limit_is_of_its_size() -> None:
    assert map_size((3000, 4096, 3)) == (3000, 4096)
    assert map_size((7000, 9000)) == (3186, 4096)
    assert map_size((300, 9000)) == (137, 4096)


@pytest.fixture
def small_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of more than 150 px count as huge."""
    for module in (regions, measurement):
        monkeypatch.setattr(module, "MAP_PX", 150)


def test_region_of_a_huge_photo_is_given_in_its_own_pixels(small_maps: None) -> None:
    heat = cv2.resize(spots((400, 600)), map_size((400, 600))[::-1], interpolation=cv2.INTER_AREA)
    assert heat.shape == (100, 150)
    whole, shrunk = (find_regions(h, 0.5, size=(400, 600)) for h in (spots((400, 600)), heat))
    assert len(whole) == len(shrunk) == 2
    for a, b in zip(whole, shrunk, strict=True):
        assert np.abs(np.subtract(a.box, b.box)).max() <= 6
        assert b.mask.shape == (b.box[3] - b.box[1], b.box[2] - b.box[0])
        assert b.area_px == pytest.approx(a.area_px, rel=0.15)
        assert a.place == b.place


# ---- whole inspections ----

SIZE = (224, 168)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Product "board" with 4 goldens."""
    root = tmp_path_factory.mktemp("shapes")
    memory = MemorySettings(home=root / "home", qdrant_url=None)
    model = ModelSettings(cache=root / "cache", working_px=96)
    with Workspace.open(memory, model, ToolsSettings(references=1)) as opened:
        for i in range(4):
            (root / f"{i}.png").write_bytes(encode_png(render("circuit", 1, i, size=SIZE, noise_seed=i).image))
        enroll(opened, "board", [root])
        yield opened


def inspected(workspace: Workspace, image: NDArray[np.uint8]) -> inspection.PhotoInspection:
    capture = workspace.stores.captures.add("1", "board", workspace.stores.images.put(encode_png(image)))
    return inspection.inspect_photo(workspace, capture)


@pytest.mark.parametrize("size", [(16, 16), (16, 480), (480, 16), (17, 31), (97, 1201)])
def test_photo_of_an_odd_shape_is_inspected(workspace: Workspace, size: tuple[int, int]) -> None:
    found = inspected(workspace, noise((*size, 3)))
    assert np.isfinite(found.comparison.difference.score)
    assert found.comparison.difference.anomaly_map.shape == size
    assert all(r.measurement.length_px > 0 for r in found.regions)


def test_huge_photo_is_judged_as_the_same_photo_within_the_limit(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.stores.products.set_spec(
        "board", {"zones": [{"name": "all", "kind": "critical", "box": [0, 0, SIZE[1], SIZE[0]]}]}
    )
    image = render("circuit", 1, 9, size=SIZE, defects=[DefectSpec("stain", size_px=40, contrast=1.0, seed=2)]).image
    usual = inspected(workspace, image)
    for module in (regions, measurement):
        monkeypatch.setattr(module, "MAP_PX", 120)
    huge = inspected(workspace, image)
    assert huge.comparison.difference.anomaly_map.shape == (120, 90)
    assert huge.comparison.difference.score == pytest.approx(usual.comparison.difference.score, rel=0.02)
    assert huge.comparison.difference.peak == pytest.approx(usual.comparison.difference.peak, rel=0.05)
    a, b = usual.regions[0], huge.regions[0]
    assert np.abs(np.subtract(a.measurement.box, b.measurement.box)).max() <= 8
    assert a.zones == b.zones == ["all"]


@pytest.mark.parametrize(
    ("model", "tools"),
    [
        pytest.param({"working_px": 1024}, {"references": 16}, marks=pytest.mark.long),
        ({"working_px": 97}, {"alpha": 1e-300}),
        ({"max_pixels": 10**12}, {"references": 16}),
    ],
)
def test_extreme_setting_gives_a_result(workspace: Workspace, model: dict[str, int], tools: dict[str, float]) -> None:
    known = workspace.model_settings.model_dump()
    with Workspace.open(
        MemorySettings(home=workspace.model_settings.cache.parent / f"home-{len(model)}{len(tools)}{min(model.values())}"),
        ModelSettings(**(known | model)), ToolsSettings.model_validate(tools),
    ) as other:  # fmt: skip
        golden = Path(known["cache"]).parent / "0.png"
        enroll(other, "board", [golden])
        assert np.isfinite(inspected(other, noise((40, 60, 3))).comparison.difference.score)


ODD_VALUES = ["", " ", "0", "-1", "1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 60, "null", "[]", "{}", "true", "x"]


@pytest.mark.parametrize("name", sorted({*ModelSettings.model_fields, *ToolsSettings.model_fields} - {"cache"}))
def test_any_value_of_a_setting_is_taken_or_refused_in_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = []
    for value in ODD_VALUES:
        monkeypatch.setitem(os.environ, f"REFDIFF_{name.upper()}", value)
        try:
            load_settings()
        except ConfigurationError as e:
            refusals.append(str(e))
    assert all(f"REFDIFF_{name.upper()}" in refusal for refusal in refusals)
