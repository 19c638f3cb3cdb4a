"""Registration against the renderer's exact transforms, and its rejections."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from refdiff.model.synthesis.render import DefectSpec, Light, Pose, render
from refdiff.tools.vision.registration import align, edges, warp_reference

SIZE = (256, 256)
POSES = {
    "fixed": Pose(),
    "small": Pose(angle_deg=5, shift_px=(7, -5)),
    "quarter": Pose(angle_deg=90),
    "any": Pose(angle_deg=-133, scale=0.9, shift_px=(-5, 6)),
    "far": Pose(angle_deg=137, scale=0.7, shift_px=(9, 4), perspective=(0.04, 0.02)),
    "near": Pose(angle_deg=-60, scale=1.38),
    "tilted": Pose(angle_deg=12, scale=0.9, perspective=(0.1, -0.08)),
}


@pytest.mark.parametrize("squeezed", [8, 20])
def test_registration_follows_a_little_perspective(squeezed: int) -> None:
    """Half of the part lies in place, and the edges correlate well: that is no fixed camera yet."""
    reference = render("label", 11, 1, size=(400, 800), noise_seed=1).image
    corners = np.array([[0, 0], [800, 0], [800, 400], [0, 400]], np.float32)
    moved = corners + np.array([[1, 0.3], [0, 0], [0, 0], [0.7, -0.5]], np.float32) * squeezed
    move = cv2.getPerspectiveTransform(corners, moved)
    query = cv2.warpPerspective(reference, move, (800, 400), borderMode=cv2.BORDER_REPLICATE)
    found = align(np.asarray(query, np.uint8), reference)
    assert np.abs(cv2.perspectiveTransform(corners[None], found.matrix)[0] - moved).max() < 1


@pytest.mark.parametrize("kind", ["circuit", "label", "moulded", "bottle"])
@pytest.mark.parametrize("name", POSES)
def test_registration_finds_another_instance_in_any_pose(kind: str, name: str) -> None:
    reference = render(kind, 102, 1, size=SIZE)
    query = render(kind, 102, 2, size=SIZE, pose=POSES[name], noise_seed=5)
    result = align(query.image, reference.image)
    assert result.ok, result.reason
    truth = query.transform @ np.linalg.inv(reference.transform)
    points = np.array([[[60, 60], [196, 60], [60, 196], [196, 196], [128, 128]]], float)
    moved, wanted = (cv2.perspectiveTransform(points, m)[0] for m in (result.matrix, truth))
    assert np.linalg.norm(moved - wanted, axis=1).mean() < 0.02 * max(SIZE)


@pytest.mark.parametrize(("design", "angle"), [(212, 93), (588, -115)])
def test_registration_of_a_close_up_uses_matched_features(design: int, angle: float) -> None:
    reference = render("circuit", design, 1, size=SIZE)
    pose = Pose(angle_deg=angle, scale=1.85, shift_px=(-12, 8), perspective=(0.04, -0.04))
    query = render("circuit", design, 2, size=SIZE, pose=pose, noise_seed=1)
    result = align(query.image, reference.image)
    assert result.ok, result.reason
    truth = query.transform @ np.linalg.inv(reference.transform)
    centre = np.array([[[128, 128]]], float)
    moved, wanted = (cv2.perspectiveTransform(centre, m)[0] for m in (result.matrix, truth))
    assert np.linalg.norm(moved - wanted) < 0.02 * max(SIZE)


@pytest.mark.parametrize("kind", ["circuit", "label", "moulded", "bottle"])
def test_registration_of_an_unmoved_part_in_other_light_is_identity(kind: str) -> None:
    reference = render(kind, 102, 1, size=SIZE)
    query = render(kind, 102, 2, size=SIZE, light=Light(gain=0.6, gradient=0.2), noise_sigma=5, noise_seed=2)
    result = align(query.image, reference.image)
    assert result.ok
    assert result.method == "identity"
    assert np.array_equal(result.matrix, np.eye(3))


@pytest.mark.parametrize("kind", ["circuit", "label", "bottle"])
@pytest.mark.parametrize("angle", [0, 25, 160])
def test_registration_residual_does_not_understate_the_error(kind: str, angle: float) -> None:
    reference = render(kind, 105, 1, size=SIZE)
    query = render(kind, 105, 2, size=SIZE, pose=Pose(angle_deg=angle, shift_px=(4, 3)), noise_seed=7)
    result = align(query.image, reference.image)
    assert result.ok
    assert result.residual_px is not None
    truth = query.transform @ np.linalg.inv(reference.transform)
    points = np.array([[[60, 60], [196, 60], [60, 196], [196, 196], [128, 128]]], float)
    moved, wanted = (cv2.perspectiveTransform(points, m)[0] for m in (result.matrix, truth))
    error = float(np.median(np.linalg.norm(moved - wanted, axis=1)))
    assert error <= 2 * result.residual_px + 1
    assert result.residual_px < 2


def test_registration_is_deterministic_and_keeps_its_inputs() -> None:
    reference = render("label", 106, 1, size=SIZE).image
    query = render("label", 106, 2, size=SIZE, pose=Pose(angle_deg=70)).image
    before = query.copy(), reference.copy()
    first, second = align(query, reference), align(query, reference)
    assert np.array_equal(first.matrix, second.matrix)
    assert np.array_equal(query, before[0])
    assert np.array_equal(reference, before[1])


def test_edges_are_the_same_to_the_bit_wherever_in_memory_they_are_worked_out() -> None:
    picture = render("label", 106, 1, size=SIZE).image
    first, kept = edges(picture), []
    for i in range(48):
        kept.append((np.empty(16 * i + 8, np.uint8), edges(picture)))  # kept, so that the next one lies elsewhere
    assert all(np.array_equal(first, found) for _, found in kept)


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (900, 20)])
def test_registration_of_odd_sizes_is_rejected_with_a_finite_matrix(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    odd = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    result = align(odd, render("circuit", 104, 1, size=SIZE).image)
    assert not result.ok
    assert np.isfinite(result.matrix).all()


def test_registration_succeeds_with_a_missing_component() -> None:
    reference = render("circuit", 103, 1, size=SIZE)
    pose = Pose(angle_deg=40)
    query = render("circuit", 103, 2, size=SIZE, pose=pose, defects=[DefectSpec("missing_component", seed=1)])
    assert align(query.image, reference.image).ok


@pytest.mark.parametrize("case", ["other design", "blank", "noise"])
def test_registration_of_unrelated_images_is_rejected(case: str) -> None:
    reference = render("circuit", 104, 1, size=SIZE).image
    query = {
        "other design": render("moulded", 9, 1, size=SIZE).image,
        "blank": np.full((*SIZE, 3), 127, np.uint8),
        "noise": np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8),
    }[case]
    result = align(query, reference)
    assert not result.ok
    assert result.method == "none"
    assert result.reason.startswith("Registration rejected (edge")
    assert result.reason.endswith("); compared without registration")
    assert result.trained_reason.startswith("no honest registration: edges")


def test_warp_returns_the_mask_it_covers() -> None:
    image = render("label", 3, 1, size=(100, 120)).image
    half = np.array([[1, 0, 60], [0, 1, 0], [0, 0, 1.0]])
    warped, covered = warp_reference(image, half, (100, 120))
    assert covered[:, 61:].all()
    assert not covered[:, :59].any()
    assert np.abs(warped[:, 60:].astype(int) - image[:, :60]).max() <= 2
