"""Canonical pixels: what renderer and brushes draw is part of every recorded figure, so it may not drift unnoticed.

The values were taken once; tolerances leave room for other builds of OpenCV and NumPy.
"""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.model.defect_types import DifferenceType
from refdiff.model.synthesis.photo_pairs import SYNTHETIC_TYPES, add_defect
from refdiff.model.synthesis.render import PART_KINDS, DefectSpec, PartKind, Pose, applicable_types, render

# means of the 3 x 3 blocks of a 96 px image with every defect of the kind, and the area of each defect, px
RENDERED: dict[PartKind, tuple[list[float], list[int]]] = {
    "circuit": ([67, 66, 70, 59, 55, 61, 70, 59, 66], [34, 36, 82, 135, 163, 41, 68, 38, 109, 45, 54, 40, 75]),
    "label": ([131, 151, 151, 164, 184, 222, 167, 180, 187], [31, 392, 40, 157, 105, 49, 55, 39, 81]),
    "weave": ([68, 76, 71, 68, 78, 73, 66, 68, 71], [605, 238, 63, 61, 59, 78]),
    "moulded": ([159, 111, 160, 105, 88, 106, 151, 116, 147], [167, 106, 83, 83, 43, 164, 106, 43, 50, 40, 80]),
    "bottle": ([15, 59, 15, 15, 59, 15, 15, 49, 17], [222, 266, 872, 921, 37, 160, 107, 45, 51, 41, 76]),
}
# area of the mask, px, and the sum of all changes in thousands of grey levels
PAINTED: dict[DifferenceType, tuple[int, float]] = {
    "scratch": (81, 4.2),
    "crack": (60, 4.3),
    "dent": (611, 34.5),
    "stain": (945, 71.0),
    "contamination": (192, 9.1),
    "hole": (439, 44.6),
    "chip": (297, 41.2),
    "discoloration": (205, 12.5),
    "deformation": (472, 30.9),
    "missing_component": (251, 18.3),
    "added_component": (319, 27.1),
    "wrong_component": (308, 30.0),
    "misplaced_component": (438, 34.3),
    "broken_yarn": (151, 11.0),
    "uneven_dye": (319, 12.9),
    "texture_change": (615, 54.1),
    "print_defect": (167, 8.9),
}


@pytest.mark.parametrize("kind", PART_KINDS)
def test_rendered_part_with_every_defect_has_its_canonical_pixels(kind: PartKind) -> None:
    defects = [DefectSpec(t, seed=4) for t in applicable_types(kind)[::-1]]
    scene = render(kind, 2, 3, size=(96, 96), defects=defects, pose=Pose(angle_deg=9), noise_sigma=1)
    means, areas = RENDERED[kind]
    assert scene.image.reshape(3, 32, 3, 32, 3).mean((1, 3, 4)).ravel() == pytest.approx(means, abs=1)
    assert [d.area_px for d in scene.defects] == pytest.approx(areas, rel=0.05, abs=3)


@pytest.mark.parametrize("kind", SYNTHETIC_TYPES)
def test_painted_defect_has_its_canonical_pixels(kind: DifferenceType) -> None:
    good = render("circuit", 2, 3, size=(96, 96)).image
    made = add_defect(good, np.random.default_rng(4), kind=kind, size=0.3, contrast=0.8)
    assert made is not None
    area, change = PAINTED[kind]
    assert int(made.mask.sum()) == pytest.approx(area, rel=0.05, abs=3)
    assert np.abs(made.image.astype(int) - good).sum() / 1000 == pytest.approx(change, rel=0.05)
