"""Is one defect one finding, and are two two? python tests/bench/one_finding.py --seed 0

Rendered products that no network was trained on, 16 goldens each; every photo is another instance under another pose (every
fourth at any angle) and light, with exact masks. `line`: one scratch, crack or broken yarn, 50 to 230 px long. `area`: one
stain, missing component, smear or the like. `two`: two separate defects, at least 16 px apart: two spots, lines beside each
other or at an angle, a spot beside a line or beyond its end. `good`: none.
A finding is of a defect where its measured px come within 3 px of the defect's.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from refdiff.memory.settings import MemorySettings
from refdiff.model.defect_types import RenderedType
from refdiff.model.images import Mask, encode_png
from refdiff.model.synthesis.render import DefectSpec, PartKind, Scene, random_light, random_pose, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.inspection import RegionResult, inspect_photo
from refdiff.tools.workspace import Workspace

KINDS = tuple(kind for kind in get_args(PartKind) if kind != "bottle")
DESIGN, SIDE, GOLDENS = 5, 400, 16
NEAR_PX, APART_PX = 3, 16
AREAS: dict[str, Sequence[RenderedType]] = {
    "circuit": ("stain", "missing_component", "missing_print", "blob"),
    "label": ("stain", "print_smear", "missing_print", "dent"),
    "weave": ("stain", "uneven_dye", "blob", "hole"),
    "moulded": ("stain", "dent", "missing_component", "blob"),
}


@dataclass(frozen=True)
class Tally:
    """What became of the photos of one group. findings: those that are of no defect."""

    outcomes: Counter[str]
    elsewhere: int = 0


def photo(rng: np.random.Generator, kind: PartKind, number: int, defects: Sequence[DefectSpec] = ()) -> Scene:
    """Another good instance, or one with those defects."""
    turned = number % 4 == 3 and kind != "weave"
    pose = random_pose(rng, max_angle_deg=180.0 if turned else 3.0, size=(SIDE, SIDE))
    seeds = rng.integers(2**31, size=2)
    return render(
        kind, DESIGN, 100 + int(seeds[0]), size=(SIDE, SIDE), defects=defects, pose=pose,
        light=random_light(rng, strength=0.3), noise_sigma=1.5, noise_seed=int(seeds[1]),
    )  # fmt: skip


def line(rng: np.random.Generator, kind: PartKind, number: int) -> list[DefectSpec]:
    types: Sequence[RenderedType] = ("scratch", "broken_yarn" if kind == "weave" else "crack")
    length = float(np.exp(rng.uniform(np.log(50), np.log(230))))
    return [DefectSpec(types[number % 2], size_px=length, contrast=float(rng.uniform(0.15, 1)), seed=_seed(rng))]


def area(rng: np.random.Generator, kind: PartKind, number: int) -> list[DefectSpec]:
    size = float(np.exp(rng.uniform(np.log(14), np.log(90))))
    return [DefectSpec(AREAS[kind][number % 4], size_px=size, contrast=float(rng.uniform(0.2, 1)), seed=_seed(rng))]


def two(rng: np.random.Generator, kind: PartKind, number: int) -> list[DefectSpec]:
    gap, angle = float(rng.uniform(22, 90)), float(rng.uniform(0, 360))
    at, t = rng.uniform(0.3, 0.7, 2) * SIDE, np.deg2rad(angle)
    along, across = np.array([np.cos(t), -np.sin(t)]), np.array([np.sin(t), np.cos(t)])
    lengths, small = rng.uniform(40, 110, 2), rng.uniform(6, 14, 2)
    other = float(rng.uniform(50, 90))

    def made(kind_of: RenderedType, size: float, where: NDArray, turn: float | None = None) -> DefectSpec:
        x, y = map(float, where)
        contrast = float(rng.uniform(0.4, 1))
        direction = None if turn is None else turn % 180
        return DefectSpec(
            kind_of, size_px=float(size), where=(x, y), contrast=contrast, seed=_seed(rng), angle_deg=direction
        )

    first = made("scratch", lengths[0], at, angle)
    return (
        [made("blob", small[0], at), made("stain", small[1], at + along * (gap + small.mean()))],
        [first, made("scratch", lengths[1], at + across * gap, angle)],
        [first, made("blob", small[0], at + across * gap)],
        [first, made("stain", small[1], at + along * (lengths[0] / 2 + gap))],
        [first, made("scratch", lengths[1], at + along * (lengths.mean() + gap), angle + other)],
    )[number % 5]


GROUPS = {"line": (line, 15), "area": (area, 8), "two": (two, 10)}


def drawn(rng: np.random.Generator, group: str, kind: PartKind, number: int) -> Scene:
    """The first draw whose defects all show; two of them at least `APART_PX` apart."""
    while True:
        wanted = GROUPS[group][0](rng, kind, number)
        scene = photo(rng, kind, number, wanted)
        masks = [d.mask for d in scene.defects]
        if len(masks) < len(wanted) or min(int(m.sum()) for m in masks) < 30:
            continue
        if (
            len(masks) == 1
            or cv2.distanceTransform((~masks[0]).astype(np.uint8), cv2.DIST_L2, 5)[masks[1]].min() > APART_PX
        ):
            return scene


def of_which(found: RegionResult, masks: Sequence[Mask]) -> list[int]:
    """The defects that a finding is of."""
    m = found.measurement
    pixels = np.zeros((SIDE, SIDE), bool)
    pixels[m.box[1] : m.box[3], m.box[0] : m.box[2]] = m.mask
    near = np.ones((2 * NEAR_PX + 1, 2 * NEAR_PX + 1), np.uint8)
    return [i for i, mask in enumerate(masks) if (cv2.dilate(mask.astype(np.uint8), near).astype(bool) & pixels).any()]


def outcome(of: Sequence[list[int]], defects: int) -> str:
    counts = [sum(i in one for one in of) for i in range(defects)]
    if any(len(one) > 1 for one in of):
        return "merged"
    if not all(counts):
        return "missed"
    return "split" if max(counts) > 1 else "right"


def inspected(workspace: Workspace, kind: PartKind, scene: Scene, part: str) -> list[RegionResult]:
    data = workspace.stores.images.put(encode_png(scene.image))
    return inspect_photo(workspace, workspace.stores.captures.add(part, kind, data)).regions


def measure(workspace: Workspace, kind: PartKind, folder: Path, seed: int) -> dict[str, Tally]:
    """By group. Enrols the product first."""
    folder.mkdir()
    for i in range(GOLDENS):
        image = photo(np.random.default_rng([3, i]), kind, 0).image
        (folder / f"{i:02}.png").write_bytes(encode_png(image))
    enroll(workspace, kind, [folder])
    tallies: dict[str, Tally] = {}
    for group, (_, n) in GROUPS.items():
        outcomes, elsewhere = Counter[str](), 0
        for number in range(n):
            rng = np.random.default_rng([seed, *group.encode(), *kind.encode(), number])
            scene = drawn(rng, group, kind, number)
            masks = [d.mask for d in scene.defects]
            found = inspected(workspace, kind, scene, f"{group}-{number}")
            of = [of_which(one, masks) for one in found]
            outcomes[outcome(of, len(masks))] += 1
            elsewhere += sum(not one for one in of)
        tallies[group] = Tally(outcomes, elsewhere)
    good = [photo(np.random.default_rng([seed, 13, i]), kind, i) for i in range(5)]
    found_there = [len(inspected(workspace, kind, scene, f"good-{i}")) for i, scene in enumerate(good)]
    tallies["good"] = Tally(Counter({"photos": len(good)}), sum(found_there))
    return tallies


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def main(seed: Annotated[int, typer.Option(help="Draws the photos and their defects.")] = 0) -> None:
    """Count the findings of one defect, and of two."""
    total: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="refdiff-findings-") as root:
        memory = MemorySettings(home=Path(root) / "home", qdrant_url=None)
        with Workspace.open(memory) as workspace:
            for kind in KINDS:
                for group, tally in measure(workspace, kind, Path(root) / kind, seed).items():
                    before = total.get(group, Tally(Counter()))
                    total[group] = Tally(before.outcomes + tally.outcomes, before.elsewhere + tally.elsewhere)
    print(json.dumps({g: {**t.outcomes, "findings elsewhere": t.elsewhere} for g, t in total.items()}, indent=1))


if __name__ == "__main__":
    typer.run(main)
