"""Registration against the renderer's exact transforms, and its honest refusals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from refdiff.model.render import DefectSpec, Pose, render
from refdiff.tools.align import align, warp_reference

SIZE = (256, 256)
POSES = {
    "fixed": Pose(),
    "small": Pose(angle_deg=5, shift_px=(7, -5)),
    "quarter": Pose(angle_deg=90),
    "any": Pose(angle_deg=-133, scale=0.9, shift_px=(-5, 6)),
    "tilted": Pose(angle_deg=12, scale=0.9, perspective=(0.1, -0.08)),
}


@pytest.mark.parametrize("kind", ["circuit", "label", "moulded", "bottle"])
@pytest.mark.parametrize("name", POSES)
def test_registers_another_instance_in_any_pose(kind: str, name: str) -> None:
    reference = render(kind, 102, 1, size=SIZE)
    query = render(kind, 102, 2, size=SIZE, pose=POSES[name], noise_seed=5)
    result = align(query.image, reference.image)
    assert result.ok, result.reason
    truth = query.transform @ np.linalg.inv(reference.transform)
    points = np.array([[[60, 60], [196, 60], [60, 196], [196, 196], [128, 128]]], float)
    moved, wanted = (cv2.perspectiveTransform(points, m)[0] for m in (result.matrix, truth))
    assert np.linalg.norm(moved - wanted, axis=1).mean() < 0.02 * max(SIZE)


def test_a_missing_component_does_not_disturb_the_registration() -> None:
    reference = render("circuit", 103, 1, size=SIZE)
    pose = Pose(angle_deg=40)
    query = render("circuit", 103, 2, size=SIZE, pose=pose, defects=[DefectSpec("missing_component", seed=1)])
    assert align(query.image, reference.image).ok


@pytest.mark.parametrize("case", ["other design", "blank", "noise"])
def test_refuses_where_nothing_fits(case: str) -> None:
    reference = render("circuit", 104, 1, size=SIZE).image
    query = {
        "other design": render("moulded", 9, 1, size=SIZE).image,
        "blank": np.full((*SIZE, 3), 127, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8),
    }[case]
    result = align(query, reference)
    assert not result.ok
    assert result.method == "none"
    assert "unregistered" in result.reason


def test_warp_says_what_it_covers() -> None:
    image = render("label", 3, 1, size=(100, 120)).image
    half = np.array([[1, 0, 60], [0, 1, 0], [0, 0, 1.0]])
    warped, covered = warp_reference(image, half, (100, 120))
    assert covered[:, 61:].all()
    assert not covered[:, :59].any()
    assert np.abs(warped[:, 60:].astype(int) - image[:, :60]).max() <= 2
