"""What is kept of an anomaly map: small, and in pictures the same."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from refdiff.model.errors import DamagedError
from refdiff.tools.inspection.kept_difference import KeptDifference

THRESHOLD = 0.3
MATRIX = np.array([[1.01, 0.02, -3.5], [-0.02, 0.99, 7.25], [0, 0, 1]])


def smooth(height: int, width: int, peak: float, seed: int = 0) -> np.ndarray:
    """Noise without any smoothness between cells of 8 px: the most that a map can hold. One defect, peak in thresholds."""
    cells = np.random.default_rng(seed).uniform(0, 0.3, (-(-height // 8), -(-width // 8))).astype(np.float32)
    cells[cells.shape[0] // 2, cells.shape[1] // 2] = peak
    full = cv2.resize(cells, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(full, (0, 0), 4) * np.float32(THRESHOLD)


def spike(height: int, width: int) -> np.ndarray:
    made = np.zeros((height, width), np.float32)
    made[height // 3, width // 3] = 5 * THRESHOLD
    return made


def turned(height: int, width: int, peak: float) -> np.ndarray:
    """What is left of it where a turned part was compared; beyond, it is 0 at once."""
    shown = cv2.boxPoints(((width / 2, height / 2), (0.9 * width, 0.8 * height), 30.0)).astype(np.int32)
    return smooth(height, width, peak) * cv2.fillConvexPoly(np.zeros((height, width), np.float32), shown, 1.0)


@pytest.mark.parametrize(
    ("anomaly_map", "most_bytes"),
    [
        (turned(480, 640, 0.4), 10_000),
        (turned(481, 637, 20.0), 25_000),
        (smooth(480, 640, 0.4), 8_000),
        (smooth(480, 640, 20.0), 25_000),
        (smooth(481, 637, 900.0), 60_000),
        (smooth(1536, 2048, 3.0), 240_000),
        (smooth(40, 700, 3.0), 3_000),
        (spike(64, 48), 2_000),
        (np.zeros((480, 640), np.float32), 1_000),
        (np.full((17, 16), 7.0, np.float32), 1_000),
    ],
    ids=["turned", "turned, defect", "good", "defect", "odd size", "large", "thin", "one px", "zero", "flat"],
)
def test_kept_map_is_small_and_close_to_the_map(anomaly_map: np.ndarray, most_bytes: int) -> None:
    data = KeptDifference(anomaly_map, THRESHOLD, MATRIX).encode()
    assert len(data) <= most_bytes
    kept = KeptDifference.decode(data)
    assert (kept.anomaly_map.shape, kept.anomaly_map.dtype) == (anomaly_map.shape, np.float32)
    error = np.abs(kept.anomaly_map - anomaly_map) / (anomaly_map + THRESHOLD)
    assert error.max() < 0.1
    assert error.mean() < 0.01
    assert kept.anomaly_map[anomaly_map == 0].max(initial=0) < 0.05 * THRESHOLD
    inside, kept_inside = anomaly_map >= THRESHOLD, kept.anomaly_map >= THRESHOLD
    assert (inside ^ kept_inside).sum() <= 2 * np.sqrt(inside.sum())  # less than a px along the outline
    assert kept.threshold == THRESHOLD
    assert (kept.matrix == MATRIX).all()


def test_how_its_files_were_read_is_kept() -> None:
    kept = KeptDifference(smooth(9, 8, 3.0), THRESHOLD, MATRIX, rules="{}", anchor="a" * 64)
    found = KeptDifference.decode(kept.encode())
    assert (found.rules, found.anchor) == ("{}", "a" * 64)


def test_kept_map_is_the_same_however_often_it_is_kept() -> None:
    made = KeptDifference(smooth(96, 128, 3.0), THRESHOLD, MATRIX).encode()
    assert KeptDifference(smooth(96, 128, 3.0), THRESHOLD, MATRIX).encode() == made


def plain_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("data", [b"", b"no picture", plain_png()], ids=["nothing", "text", "another PNG"])
def test_anything_else_is_called_damaged(data: bytes) -> None:
    with pytest.raises(DamagedError, match="damaged"):
        KeptDifference.decode(data)


def test_what_a_kind_adds_is_kept_and_a_photo_keeps_nothing_more() -> None:
    plain = KeptDifference(spike(64, 48), THRESHOLD, MATRIX)
    more = KeptDifference(spike(64, 48), THRESHOLD, MATRIX, offset=-2.5, rules='{"palette": "grey"}')
    kept = KeptDifference.decode(more.encode())
    assert (kept.offset, kept.rules) == (-2.5, '{"palette": "grey"}')
    assert (KeptDifference.decode(plain.encode()).offset, KeptDifference.decode(plain.encode()).rules) == (0.0, "")
    assert b"offset" not in plain.encode()
    assert b"rules" not in plain.encode()
