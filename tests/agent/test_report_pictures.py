"""Pictures of a report, on images from tiny to huge."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import Finding, Location

GREY = 120
BOXES = [(0, 0, 4, 4), (60, 40, 64, 48), (20, 10, 40, 30), (22, 12, 38, 28), (0, 30, 64, 48), (-5, -5, 900, 900)]


def finding(box: tuple[int, int, int, int], within_limits: bool = False) -> Finding:
    x0, y0, x1, y1 = box
    return Finding(
        id="f", type="crack", description="", location=Location(x0=x0, y0=y0, x1=x1, y1=y1, region="centre"),
        area_px=1, confidence=0.5, evidence=["e1"], reasoning="", within_limits=within_limits,
    )  # fmt: skip


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < 12).all(-1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 64), (720, 1280), (3000, 4000), (20, 900)])
def test_overlay_marks_the_box_at_any_size(height: int, width: int) -> None:
    box = (width // 4, height // 4, width // 2, height // 2)
    made = pictures.overlay(grey(height, width), [finding(box)])
    scale = pictures.display_scale(height, width)
    assert made.shape == (round(height * scale), round(width * scale), 3)
    assert max(made.shape) >= min(720, max(height, width) * 45)
    assert max(made.shape) <= 1600
    rows, columns = np.nonzero(has(made, pictures.ORANGE))
    assert columns.min() <= box[0] * scale <= columns.max()
    assert rows.min() <= box[3] * scale + 3
    inside = made[int(box[1] * scale) + 1 : int(box[3] * scale) - 1, int(box[0] * scale) + 1 : int(box[2] * scale) - 1]
    if scale <= 10 and inside.shape[0] > 60:
        assert (inside == GREY).mean() > 0.8  # the frame does not cover what it points at


def test_overlay_tags_stay_inside_the_picture_and_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: list[tuple[float, ...]] = []
    place = pictures._place_tag

    def spy(*args):  # type: ignore[no-untyped-def]
        tags.append(place(*args))
        return tags[-1]

    monkeypatch.setattr(pictures, "_place_tag", spy)
    made = pictures.overlay(grey(48, 64), [finding(box) for box in BOXES])
    height, width = made.shape[:2]
    assert len(tags) == len(BOXES)
    for i, (x0, y0, x1, y1) in enumerate(tags):
        assert 0 <= x0 < x1 < width
        assert 0 <= y0 < y1 < height
        assert all(pictures._overlap(tags[i], other) < 0.5 * (x1 - x0) * (y1 - y0) for other in tags[:i])


def test_overlay_draws_findings_within_limits_in_another_colour_and_line() -> None:
    failed = pictures.overlay(grey(100, 100), [finding((30, 30, 70, 70))])
    allowed = pictures.overlay(grey(100, 100), [finding((30, 30, 70, 70), within_limits=True)])
    assert has(failed, pictures.ORANGE).any()
    assert not has(failed, pictures.SKY).any()
    assert has(allowed, pictures.SKY).any()
    edge = slice(30 * 8, 70 * 8)
    assert (
        has(allowed, pictures.SKY)[30 * 8 - 2, edge].mean()
        < 0.8
        < has(failed, pictures.ORANGE)[30 * 8 - 2, edge].mean()
    )


def test_overlay_outlines_the_area_above_the_threshold() -> None:
    anomaly = np.zeros((100, 100), np.float32)
    anomaly[40:60, 40:60] = 1
    made = pictures.overlay(grey(100, 100), [], anomaly_map=anomaly, threshold=0.5)
    rows, columns = np.nonzero(made.min(-1) > 200)
    assert abs(rows.min() - 320) < 12
    assert abs(columns.max() - 480) < 12
    assert (pictures.overlay(grey(100, 100), [], anomaly_map=anomaly, threshold=2.0) == GREY).all()


def test_heatmap_scale_is_fixed_by_the_threshold_not_by_the_image() -> None:
    quiet, loud = np.full((80, 80), 0.1, np.float32), np.full((80, 80), 0.1, np.float32)
    loud[:10, :10] = 50
    a, b = pictures.heatmap(grey(80, 80), quiet, 1.0), pictures.heatmap(grey(80, 80), loud, 1.0)
    assert (a[400:700, 400:700] == b[400:700, 400:700]).all()
    assert b[20, 20].astype(int).sum() > a[20, 20].astype(int).sum() + 200  # hot is bright: inferno rises in lightness
    half = pictures.heatmap(grey(80, 80), quiet, 0.1)
    assert not (a[400:700, 400:700] == half[400:700, 400:700]).all()
    assert a.shape[0] > a.shape[1]  # the colour bar is below


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_heatmap_threshold_must_be_finite_and_positive(threshold: float) -> None:
    with pytest.raises(ValueError, match="finite number above 0"):
        pictures.heatmap(grey(32, 32), np.zeros((32, 32), np.float32), threshold)


def test_heatmap_without_threshold_is_drawn_and_of_wrong_size_refused() -> None:
    assert pictures.heatmap(grey(32, 32), np.zeros((32, 32), np.float32), None).dtype == np.uint8
    with pytest.raises(ValueError, match="score it again"):
        pictures.heatmap(grey(32, 32), np.zeros((16, 32), np.float32), 1.0)


@pytest.mark.parametrize("size", [(60, 80), (90, 40), (300, 500)])
def test_side_by_side_fits_the_reference_without_distortion(size: tuple[int, int]) -> None:
    reference = np.zeros((*size, 3), np.uint8)
    made = pictures.side_by_side(reference, grey(60, 80), "A very long label " * 20)
    scale = pictures.display_scale(60, 80)
    assert made.shape[1] > 2 * 80 * scale
    body = made[-int(60 * scale) :]
    black = np.nonzero(has(body[:, : int(80 * scale)], (0, 0, 0)))
    height, width = np.ptp(black[0]) + 1, np.ptp(black[1]) + 1
    assert width / height == pytest.approx(size[1] / size[0], rel=0.05)
    assert has(body[:, -int(80 * scale) :], (GREY,) * 3).all()


@pytest.mark.parametrize("box", [*BOXES, (63, 47, 64, 48)])
def test_crops_contain_the_box_and_stay_inside_the_image(box: tuple[int, int, int, int]) -> None:
    query = grey(48, 64)
    query[10:30, 20:40] = (200, 0, 0)
    pair = pictures.crops(query, grey(48, 64), box, min_side=16)
    x0, y0, x1, y1 = pair.region
    assert 0 <= x0 <= max(0, box[0]) < x1 <= 64
    assert 0 <= y0 <= max(0, box[1]) < y1 <= 48
    assert x1 >= min(box[2], 64)
    assert pair.query.shape == pair.reference.shape
    assert max(pair.query.shape) == 360


def test_crops_show_the_same_place_of_photo_and_reference() -> None:
    query, reference = grey(200, 200), grey(200, 200)
    query[100:110, 150:160] = (200, 0, 0)
    pair = pictures.crops(query, reference, (150, 100, 160, 110))
    assert has(pair.query, (200, 0, 0)).mean() > 0.02
    assert not has(pair.reference, (200, 0, 0)).any()


@pytest.mark.parametrize(("size", "kind"), [((100, 100), "PNG"), ((2000, 3000), "JPEG")])
def test_page_image_is_png_when_small_and_jpeg_when_large(size: tuple[int, int], kind: str) -> None:
    with Image.open(io.BytesIO(pictures.page_image(grey(*size)))) as made:
        assert made.format == kind
        assert max(made.size) <= 1600
