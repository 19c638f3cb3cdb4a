"""How far measured levels and edges are from the truth: python tests/bench/moved_edges.py

Rendered parts are inspected as any photo is. Where a finding lies on the drawn defect, what is said of a moved edge is held
against where the level really is, in the photo and on its nearest golden sample, which is another bottle. Of defects that
move no edge it is counted how often one is said to have moved. Needs no stored data; the same seed draws the same photos.
"""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from refdiff.memory.settings import MemorySettings
from refdiff.model.images import encode_png
from refdiff.model.synthesis.materials import raster_plan
from refdiff.model.synthesis.parts.part import build_part
from refdiff.model.synthesis.render import (
    PartKind,
    Pose,
    Scene,
    applicable_types,
    map_points,
    random_defect,
    random_light,
    random_pose,
    render,
)
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.inspection.inspection import PhotoInspection, inspect_photo
from refdiff.tools.vision.edges import MovedEdge, moved_edge
from refdiff.tools.vision.registration import Alignment
from refdiff.tools.workspace import Workspace

LEVEL, DISPLACED = "wrong_fill_level", "displaced_component"


@dataclass
class Row:
    photos: int = 0
    found: int = 0  # with a finding on the defect
    said: int = 0  # of these, with a moved edge
    bounds: int = 0  # of these, that it has moved at least so far
    wrong: int = 0  # of these, by more than 2 px wrong
    errors: list[float] = field(default_factory=list)  # px, of what was said
    sigmas: list[float] = field(default_factory=list)  # the same in stated standard deviations


def level(kind: PartKind, design: int, instance: int, size: int) -> tuple[float, float] | None:
    """(x, y) of the middle of the level on the good part, px of the image in its standard pose; None without a liquid."""
    ss, margin = raster_plan(kind)
    raster = round(size * ss * margin)
    part = build_part(kind, design, instance, raster, raster, ss * size / 320)
    offset = (raster - 1) / 2 - ss * (size - 1) / 2
    tops = [(c.x, c.y - c.h / 2) for c in part.components if c.kind == "liquid"]
    return ((tops[0][0] - offset) / ss, (tops[0][1] - offset) / ss) if tops else None


def truth(scene: Scene, of_golden: tuple[float, float] | None, own: tuple[float, float] | None) -> tuple[float, float]:
    """(dx, dy) px by which the level or the component lies elsewhere than on the golden sample as it lies on the photo."""
    moved = np.array(scene.defects[0].moved_px)
    if scene.defects[0].type == LEVEL and of_golden and own:  # two good bottles differ, too
        before, after = map_points(scene.transform, np.array([of_golden, own]))
        moved = moved + after - before
    return float(moved[0]), float(moved[1])


def as_drawn(kind: PartKind, seed: int, size: int, n: int, levels: int) -> dict[str, Row]:
    """What is said of the drawn defects themselves, against another good part of the design in the same pose."""
    rng, rows, sides = np.random.default_rng([seed, *kind.encode()]), defaultdict[str, Row](Row), (size, size)
    for defect in applicable_types(kind):
        for i in range(levels if defect == LEVEL else n):
            design, noise = int(rng.integers(2**31)), int(rng.integers(2**31))
            pose = random_pose(rng, max_angle_deg=3.0, size=sides) if i % 2 else Pose()
            both = [
                render(
                    kind, design, instance, size=sides, pose=pose, light=random_light(rng, strength=0.3), noise_sigma=1.5,
                    noise_seed=noise + instance, defects=defects,
                )
                for instance, defects in ((0, ()), (1, [random_defect(rng, kind, sides, types=[defect])]))
            ]  # fmt: skip
            golden, scene = both
            x0, y0, x1, y1 = scene.defects[0].box
            if not scene.defects[0].mask.any():
                continue
            exact = Alignment("identity", True, np.eye(3), 0.5, 1.0, 1.0, 0.0, 1.0, "")
            at, mask = (x0, y0, x1, y1), scene.defects[0].mask[y0:y1, x0:x1]
            moved = moved_edge(scene.image, golden.image, exact, at, mask, may_be_hidden=defect == LEVEL)
            tops = [level(kind, design, instance, size) for instance in (0, 1)] if defect == LEVEL else [None, None]
            rows[defect].photos += 1
            rows[defect].found += 1
            said(rows[defect], moved, None if scene.defects[0].moved_px is None else truth(scene, *tops))
    return rows


def said(row: Row, moved: MovedEdge | None, true: tuple[float, float] | None) -> None:
    if moved is None:
        return
    row.said += 1
    if true is not None:
        along = (true[0] * moved.dx + true[1] * moved.dy) / moved.distance_px
        error = moved.distance_px - along
        row.wrong += (error if moved.at_least else abs(error)) > 2
        if moved.at_least:
            row.bounds += 1
        else:
            row.errors.append(abs(error))
            row.sigmas.append(row.errors[-1] / moved.uncertainty_px)


def note(row: Row, scene: Scene, found: PhotoInspection, true: tuple[float, float] | None) -> None:
    """With the first finding that lies on the defect; on a good part, with all of them."""
    row.photos += 1
    x0, y0, x1, y1 = scene.defects[0].box if scene.defects else (0, 0, *scene.image.shape[1::-1])
    for result in found.regions:
        a, b, c, d = result.extent.box
        if min(c, x1) <= max(a, x0) or min(d, y1) <= max(b, y0):
            continue
        row.found += 1
        said(row, result.golden.moved, true)
        if scene.defects:
            break


def main(
    seed: Annotated[int, typer.Option(help="Draws designs, parts and defects.")] = 0,
    size: Annotated[int, typer.Option(min=96, help="Side of the photos, px.")] = 512,
    goldens: Annotated[int, typer.Option(min=4, help="Golden samples of each design.")] = 25,
    n: Annotated[int, typer.Option(min=1, help="Photos of each type of defect.")] = 10,
    levels: Annotated[int, typer.Option(min=1, help="Photos of wrong fill levels.")] = 24,
    kinds: Annotated[str, typer.Option(help="Parts, separated by commas.")] = "bottle,moulded",
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Findings as drawn, a design for each photo, registered exactly: seconds.")
    ] = False,
) -> None:
    """Print, for each type of defect: how often an edge is said to have moved, and how far that is from the truth."""
    table = Table(
        "Part",
        "Defect",
        "Photos",
        "Found",
        "Said",
        "At least",
        "Over 2 px",
        "Mean error, px",
        "Largest",
        "Within 2 sigmas",
    )
    for kind in kinds.split(","):
        found = as_drawn(kind, seed, size, n, levels) if drawn else measured(kind, seed, size, goldens, n, levels)  # type: ignore[arg-type]
        for name, row in found.items():
            errors = [f"{np.mean(row.errors):.2f}", f"{max(row.errors):.2f}"] if row.errors else ["", ""]
            sure = f"{sum(s <= 2 for s in row.sigmas)} of {len(row.sigmas)}" if row.sigmas else ""
            table.add_row(
                kind,
                name,
                str(row.photos),
                str(row.found),
                str(row.said),
                str(row.bounds),
                str(row.wrong),
                *errors,
                sure,
            )
    Console(width=120).print(table)


def measured(kind: PartKind, seed: int, size: int, goldens: int, n: int, levels: int) -> dict[str, Row]:
    rng = np.random.default_rng([seed, *kind.encode()])
    design, sides = int(rng.integers(2**31)), (size, size)
    rows: dict[str, Row] = defaultdict(Row)

    def photo(instance: int, **more: object) -> Scene:
        pose = random_pose(rng, max_angle_deg=3.0, size=sides) if rng.random() < 0.5 else Pose()
        light, noise = random_light(rng, strength=0.3), int(rng.integers(2**31))
        return render(
            kind, design, instance, size=sides, pose=pose, light=light, noise_sigma=1.5, noise_seed=noise, **more
        )  # type: ignore[arg-type]

    with (
        tempfile.TemporaryDirectory() as folder,
        Workspace.open(MemorySettings(home=Path(folder), qdrant_url=None)) as workspace,
    ):
        enroll(workspace, kind, [Upload(f"{i}.png", encode_png(photo(i).image)) for i in range(goldens)])
        calibrate(workspace, kind)
        tops = {i: level(kind, design, i, size) for i in range(goldens)}
        for defect in ("good", *applicable_types(kind)):
            for i in range(levels if defect in (LEVEL, "good") else n):
                instance = 1000 + len(rows) * 100 + i
                if defect == "good":
                    scene = photo(instance)
                else:
                    scene = photo(instance, defects=[random_defect(rng, kind, sides, types=[defect])])
                    if not scene.defects[0].mask.any():
                        continue
                sha256 = workspace.stores.images.put(encode_png(scene.image))
                capture = workspace.stores.captures.add(f"{defect}-{i}", kind, sha256)
                found = inspect_photo(workspace, capture)
                nearest = int(found.comparison.nearest.golden.filename.split(".")[0])
                own = level(kind, design, instance, size) if defect == LEVEL else None
                moved = scene.defects[0].moved_px if scene.defects else None
                true = None if moved is None else truth(scene, tops[nearest], own)
                note(rows[defect], scene, found, true if true is None or math.hypot(*true) > 0 else None)
    return rows


if __name__ == "__main__":
    typer.run(main)
