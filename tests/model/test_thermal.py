"""Thermal files and their difference: what was written is read, what is stated is used, what cannot be read is said."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refdiff.model.errors import ImageError, InputError
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.thermal import Assembly, centikelvin_tiff
from refdiff.model.thermal.conditions import check_conditions, split_conditions, with_conditions
from refdiff.model.thermal.difference import Camera, compare, from_own_healthy, measure_spot
from refdiff.model.thermal.flir import is_radiometric
from refdiff.model.thermal.palettes import PALETTES, coloured, table
from refdiff.model.thermal.readers import ReadingRules, Thermogram, _checked, read_thermogram

H, W = 24, 32
CELSIUS = np.linspace(18.0, 61.5, H * W).reshape(H, W)
NAMED = ("emissivity", "reflected_c", "distance_m", "ambient_c", "humidity")


def read(data: bytes, **rules: object) -> Thermogram:
    return read_thermogram(data, name="file", rules=ReadingRules(**rules), settings=ModelSettings())  # type: ignore[arg-type]


def tiff(counts: np.ndarray, format: str = "TIFF") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(counts).save(buffer, format=format)
    return buffer.getvalue()


def flir_jpeg(
    counts: np.ndarray,
    *,
    emissivity: float = 0.95,
    png: bool = False,
    records: int = 4,
    claimed_width: int | None = None,
) -> bytes:
    """A JPEG with the least that a FLIR camera writes: raw counts, and how to turn them into temperatures."""
    pytest.importorskip("flyr", reason="flyr is not installed: pip install 'refdiff[thermal]'")
    height, width = counts.shape
    head = struct.pack("<HHH", 2, claimed_width or width, height).ljust(32, b"\0")
    if png:
        packed = io.BytesIO()
        Image.fromarray(counts.byteswap()).save(packed, format="PNG")
        raw = head + packed.getvalue()
    else:
        raw = head + counts.astype("<u2").tobytes()
    info = bytearray(1000)
    for at, value in ((32, emissivity), (36, 1.0), (40, 294.15), (44, 293.15), (48, 293.15), (52, 1.0), (60, 0.5),
                      (88, 16556.0), (92, 1428.0), (96, 1.0), (112, 0.006569), (116, 0.01262), (120, -0.002276),
                      (124, -0.00667), (128, 1.9), (780, 0.046)):  # fmt: skip
        struct.pack_into("<f", info, at, value)
    struct.pack_into("<i", info, 776, -342)
    directory = 64
    first = directory + 4 * 32
    entries = b""
    for kind, at, length in ((1, first, len(raw)), (32, first + len(raw), len(info))):
        entries += struct.pack(">HHIIIIIII", kind, 2, 100, 1, at, length, 0, 0, 0)
    frame = b"FFF\0".ljust(20, b"\0") + struct.pack(">III", 100, directory, records)
    frame = frame.ljust(directory, b"\0") + entries.ljust(4 * 32, b"\0") + raw + bytes(info)
    segment = b"FLIR\0\x01\0\0" + frame
    outer = io.BytesIO()
    Image.new("RGB", (W, H)).save(outer, format="JPEG")
    plain = outer.getvalue()
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


@pytest.mark.parametrize("gain", [0.01, 0.04, 0.4])
def test_radiometric_tiff_is_read_with_the_stated_gain(gain: float) -> None:
    counts = np.rint((CELSIUS + 273.15) / gain).astype(np.uint16)
    assert np.abs(read(tiff(counts), gain=gain).celsius - CELSIUS).max() <= gain / 2 + 1e-3
    assert np.abs(read(tiff(counts, "PNG"), gain=gain).celsius - CELSIUS).max() <= gain / 2 + 1e-3


def test_float_tiff_in_celsius_is_read_with_gain_1_and_offset_0() -> None:
    values = CELSIUS.astype(np.float32)
    assert np.array_equal(read(tiff(values), gain=1.0, offset_c=0.0).celsius, values)


@pytest.mark.parametrize("data", [tiff(np.full((H, W), 7000, np.uint16)), b"20,21\n22,23\n" * 12], ids=["tiff", "csv"])
def test_scale_that_nobody_stated_is_asked_for(data: bytes) -> None:
    with pytest.raises(ImageError, match="state it in the specification"):
        read(data)


@pytest.mark.parametrize(
    ("between", "comma", "head"), [(",", ".", ""), (";", ",", "File: x\nEmissivity;0,95\n\n"), ("\t", ".", "\ufeff")]
)
def test_csv_is_read_whatever_separates_its_numbers(between: str, comma: str, head: str) -> None:
    lines = [between.join(f"{v:.3f}".replace(".", comma) for v in row) for row in CELSIUS]
    found = read((head + "\n".join(lines)).encode(), gain=1.0, offset_c=0.0)
    assert np.abs(found.celsius - CELSIUS).max() < 1e-3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"1,2,3\n" * 20 + b"1,2\n", "line 21 has 2 numbers"),
        (b"1,2,3\n" * 20 + b"1,x,3\n", "line 21 holds something that is no number"),
        (b"\0\1\2" * 99, "not a thermal file"),
        (b"no numbers at all", "no table of numbers"),
        (b"20,21\n" * 4, "2 x 4 px"),
        (tiff(np.full((H, W), 60_000, np.uint16)), "is the scale right"),
        (tiff(np.full((H, W, 3), 99, np.uint8)), "without temperatures"),
        (tiff(np.full((H, W), 99, np.uint8), "JPEG"), "without temperatures"),
    ],
)  # fmt: skip
def test_file_without_temperatures_is_refused_in_words(data: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        read(data, gain=0.4)


def test_dji_picture_is_told_how_to_be_exported() -> None:
    plain = tiff(np.full((H, W), 99, np.uint8), "JPEG")
    with pytest.raises(ImageError, match="export it as a temperature TIFF"):
        read(plain[:2] + b"\xff\xe1\x00\x12http://drone-dji" + plain[2:], gain=1)


@pytest.mark.parametrize("png", [False, True])
def test_flir_file_is_read_as_flyr_reads_it(png: bool) -> None:
    counts = np.linspace(14_000, 16_500, H * W).reshape(H, W).astype(np.uint16)
    data = flir_jpeg(counts, png=png)
    import flyr

    found = read(data)
    assert np.abs(found.celsius - flyr.unpack(io.BytesIO(data)).celsius).max() < 1e-3
    assert {n: v for n, v in found.conditions.items() if n == "emissivity"} == {"emissivity": (0.95, "file")}
    assert set(found.conditions) == set(NAMED)
    assert found.notes == ()


def test_flir_temperatures_follow_plancks_law_of_the_cameras_constants() -> None:
    counts = np.linspace(9_000, 16_500, H * W).reshape(H, W).astype(np.uint16)
    perfect = read(flir_jpeg(counts), conditions={"emissivity": 1.0, "distance_m": 1e-9}).celsius
    kelvin = 1428.0 / np.log(16556.0 / (0.046 * (counts.astype(float) - 342)) + 1.0)
    assert np.abs(perfect - (kelvin - 273.15)).max() < 0.05


def test_conditions_of_capture_beat_product_beat_file_and_change_the_temperatures() -> None:
    data = flir_jpeg(np.full((H, W), 16_400, np.uint16))
    plain = read(data)
    by_product = read(data, conditions={"emissivity": 0.8, "reflected_c": 25.0})
    by_capture = read(with_conditions(data, {"emissivity": 0.6}), conditions={"emissivity": 0.8, "reflected_c": 25.0})
    assert by_product.conditions["emissivity"] == (0.8, "product")
    assert by_capture.conditions["emissivity"] == (0.6, "capture")
    assert by_capture.conditions["reflected_c"] == (25.0, "product")
    # a part hotter than its surroundings is hotter, the less it radiates by itself
    assert plain.celsius.mean() < by_product.celsius.mean() < by_capture.celsius.mean()


def test_missing_emissivity_is_said() -> None:
    counts = np.rint((CELSIUS + 273.15) / 0.01).astype(np.uint16)
    assert "emissivity is not known" in read(tiff(counts), gain=0.01).notes[0]
    assert read(tiff(counts), gain=0.01, conditions={"emissivity": 0.9}).notes == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"records": 100_000_000},  # would keep a parser busy for hours
        {"claimed_width": 60_000},
    ],
)
def test_hostile_flir_file_is_refused_at_once(damage: dict[str, int]) -> None:
    with pytest.raises(ImageError, match=r"damaged|at most"):
        read(flir_jpeg(np.full((H, W), 15_000, np.uint16), **damage))  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.8])
def test_cut_flir_file_is_refused_or_plain(cut: float) -> None:
    data = flir_jpeg(np.full((H, W), 15_000, np.uint16))
    with pytest.raises(ImageError):
        read(data[: int(len(data) * cut)])


def test_only_radiometric_jpegs_are_taken_for_such() -> None:
    assert is_radiometric(flir_jpeg(np.full((H, W), 15_000, np.uint16)))
    assert not is_radiometric(tiff(np.full((H, W), 99, np.uint8), "JPEG"))
    assert not is_radiometric(b"")
    assert not is_radiometric(b"\x89PNG FLIR\0")


@pytest.mark.data
@pytest.mark.parametrize("name", ["ax8.jpg", "flir_e40.jpg", "flir_example.jpg"])
def test_real_flir_file_is_read_to_a_tenth_of_a_kelvin(name: str) -> None:
    file = Path(os.environ["REFDIFF_DATA"]) / "thermal" / name
    if not file.exists():
        pytest.skip(f"{file} is not there")
    import flyr

    data = file.read_bytes()
    assert np.abs(read(data).celsius - flyr.unpack(io.BytesIO(data)).celsius).max() < 0.1


def test_conditions_are_checked_and_travel_with_the_file() -> None:
    joined = with_conditions(b"file", {"emissivity": 0.9})
    assert split_conditions(joined) == (b"file", {"emissivity": 0.9})
    assert split_conditions(with_conditions(joined, {"distance_m": 2})) == (
        b"file", {"emissivity": 0.9, "distance_m": 2.0},
    )  # fmt: skip
    assert with_conditions(b"file", {}) == b"file"
    for wrong in ({"emissivity": 0.0}, {"emissivity": 1.2}, {"colour": 1.0}, {"distance_m": float("nan")}):
        with pytest.raises(InputError):
            check_conditions(wrong)


# ---- the difference ----

CAMERA = Camera(2.0, 2.0, 0.95, 0.02, None)


def scene(spot: float = 0.0, shift: float = 0.0) -> np.ndarray:
    """(60, 80) °C: a warm part with a hot component; `spot` K more in a disc of 9 px, `shift` K more everywhere."""
    ys, xs = np.mgrid[0:60, 0:80]
    plane = (
        22.0
        + 10.0 * ((xs > 10) & (xs < 70) & (ys > 8) & (ys < 52))
        + 20.0 * ((xs > 40) & (xs < 60) & (ys > 15) & (ys < 30))
    )
    plane = plane + spot * (np.hypot(xs - 25, ys - 35) <= 4.5)
    noise = np.random.default_rng(int(abs(10 * spot) + shift)).normal(0, 0.05, plane.shape)
    return np.asarray(plane + shift + noise, np.float32)


@pytest.mark.parametrize("spot", [-6.0, 3.0, 12.0])
def test_spot_is_as_high_as_it_is_whatever_the_ambient(spot: float) -> None:
    query, references = scene(spot, 4.0), [scene(0, 0.0), scene(0, 1.0)]
    found = compare(query, references, remove_shift=True)
    assert found.shift_k == pytest.approx(4.0, abs=0.05)
    y, x = np.unravel_index(int(found.deviation.argmax()), found.deviation.shape)
    assert np.hypot(x - 25, y - 35) <= 4.5
    mask = (found.deviation > 0.5 * found.deviation.max())[25:45, 15:35]
    measured = measure_spot(query, found, (15, 25, 35, 45), mask, CAMERA, 0.2)
    assert measured.hot == (spot > 0)
    assert abs(measured.delta_k - spot) <= measured.delta_uncertainty_k < 0.25 * abs(spot)
    assert measured.healthy_delta_k == pytest.approx(spot, abs=0.3)
    assert measured.healthy_c == pytest.approx(36.0, abs=0.2)
    assert measured.healthy_alike


def test_shift_that_is_not_removed_counts_with_the_cameras_accuracy() -> None:
    query, references = scene(0.0, 5.0), [scene()]
    kept, removed = (compare(query, references, remove_shift=r) for r in (False, True))
    assert np.median(kept.deviation) == pytest.approx(5.0, abs=0.1)
    assert removed.deviation.max() < 0.5
    box, mask = (20, 30, 30, 40), np.ones((10, 10), bool)
    wide, narrow = (measure_spot(query, d, box, mask, CAMERA, 0.2).delta_uncertainty_k for d in (kept, removed))
    assert wide > 2.0 > narrow


def test_pixel_of_misregistration_beside_an_edge_is_no_difference() -> None:
    query = scene()
    moved = np.roll(query, 1, axis=1)
    assert np.abs(query - moved).max() > 15
    assert compare(query, [moved], remove_shift=True).deviation.max() < 0.5


def test_ignored_and_uncovered_places_do_not_count() -> None:
    query, reference = scene(9.0), scene()
    ignore = np.zeros(query.shape, bool)
    ignore[25:45, 15:35] = True
    assert compare(query, [reference], remove_shift=True, ignore=ignore).deviation.max() < 0.5
    gone = reference.copy()
    gone[25:45, 15:35] = np.nan
    found = compare(query, [gone], remove_shift=True)
    assert found.deviation.max() < 0.5
    assert not found.covered[35, 25]
    assert np.isnan(found.signed[35, 25])


def test_map_from_own_healthy_places_shows_the_spot_alone_also_on_a_hotter_part() -> None:
    reference = scene()
    query = (22 + 1.3 * (scene(6.0) - 22)).astype(np.float32)  # a third more load: all of it is warmer, unevenly
    signed = query - reference
    own = from_own_healthy(query, reference, signed - np.float32(np.median(signed)))
    outside = np.ones(own.shape, bool)
    outside[28:43, 18:33] = False
    assert own[35, 25] == pytest.approx(1.3 * 6.0, abs=0.8)
    assert np.abs(np.median(own[outside])) < 0.3


def test_rendered_spot_is_as_hot_as_its_truth_and_only_there() -> None:
    assembly = Assembly(3)
    with_spot = assembly.render(np.random.default_rng(5), spot_k=10.0, spot_px=20.0)
    again = assembly.render(np.random.default_rng(5), spot_k=10.0, spot_px=20.0)
    assert np.array_equal(with_spot.celsius, again.celsius)
    assert with_spot.spot is not None
    x0, y0, x1, y1 = with_spot.spot.box
    assert 16 <= x1 - x0 <= 24
    assert 16 <= y1 - y0 <= 24
    read_back = read(centikelvin_tiff(with_spot.celsius), gain=0.01).celsius
    assert np.abs(read_back - with_spot.celsius).max() < 0.006


def test_palettes_rise_with_temperature_and_show_what_was_not_measured() -> None:
    for palette in PALETTES:
        assert table(palette).shape == (256, 3)
    for palette in ("iron", "grey"):
        brightness = table(palette).astype(float) @ [0.299, 0.587, 0.114]  # type: ignore[arg-type]
        assert (np.diff(brightness) >= -2).all()
        assert brightness[-1] > 250 > 5 > brightness[0]
    plane = np.array([[10.0, 20, 30, 99], [np.nan, -5, 20, 20]], np.float32)
    shown = coloured(plane, (10, 30), "grey")
    assert shown[0, :, 0].tolist() == [0, 128, 255, 255]
    assert len(set(shown[1, 0].tolist())) == 1
    assert shown[1, 0, 0] == 90


def test_place_that_only_a_further_golden_sample_reaches_is_measured_against_that_one() -> None:
    query = np.full((60, 80), 30.0, np.float32)
    query[20:30, 60:70] = 60.0
    nearest, further = np.full((60, 80), 30.0, np.float32), np.full((60, 80), 30.0, np.float32)
    nearest[:, 50:] = np.nan
    found = compare(query, [nearest, further], remove_shift=True)
    assert found.deviation[25, 65] > 20
    assert found.signed[25, 65] == pytest.approx(30.0, abs=0.1)


def test_number_below_absolute_zero_is_no_temperature() -> None:
    celsius = np.full((60, 80), 30.0, np.float32)
    celsius[10:13, 10:13] = -9999.0
    read = _checked(celsius, "a.tiff")
    assert np.isnan(read[11, 11])
    assert np.isfinite(read).sum() == 60 * 80 - 9
