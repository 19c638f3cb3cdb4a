"""How small a defect is found: detection rate against size and contrast, at the attained false-reject rate.

    python tests/bench/defect_size.py --photo 1600x800 --smallest-defect-px 12 --sizes 6,12,24 --contrasts .7

Rendered products that no network was trained on; every golden and every test photo is another instance under another pose
and light. On good test photos a dot (a disc of the given diameter) or a stroke (a line four times as long as the given
size, as wide as a twelfth of it, at least 2 px) is drawn at a random place of the part, darker or brighter by the contrast.
Found: the part would fail by its score (p at most the attained alpha). Located: and a region covers the centre.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from refdiff.memory.records.calibrations import Calibration
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import RgbImage
from refdiff.model.synthesis.marks import Mark, drawn, room
from refdiff.model.synthesis.render import Pose, Scene, random_light, random_pose, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import attained_alpha, calibrate, in_doubt, p_value, with_pose
from refdiff.tools.inspection.comparison import compare
from refdiff.tools.inspection.difference import Comparison
from refdiff.tools.inspection.inspection import regions_of
from refdiff.tools.workspace import Workspace

PRODUCT = "part"


def photograph(kind: Any, design: int, rng: np.random.Generator, size: tuple[int, int], turned: bool) -> Scene:
    """A good photo (H, W): another instance, pose and light."""
    pose = random_pose(rng, max_angle_deg=180.0 if turned else 3.0, size=size)
    if not turned and rng.random() < 0.5:
        pose = Pose()
    seeds = rng.integers(2**31, size=2)
    light = random_light(rng, strength=0.3)
    return render(kind, design, int(seeds[0]), size=size, pose=pose, light=light, noise_seed=int(seeds[1]))


def mark_of(shape: str, size: float, contrast: float) -> Mark:
    """A dot of that diameter, or a stroke four times as long as the size, px."""
    return Mark(size, size, contrast) if shape == "dot" else Mark(4 * size, max(2.0, size / 12), contrast)


def marked(scene: Scene, mark: Mark, rng: np.random.Generator) -> tuple[RgbImage, tuple[int, int]]:
    """The photo with the mark, and its centre (x, y). The whole mark lies on the part."""
    ys, xs = np.nonzero(room(mark, scene.foreground))
    i = int(rng.integers(len(ys)))
    centre = int(xs[i]), int(ys[i])
    return drawn(scene.image, mark, centre, float(rng.uniform(0, np.pi))), centre


def covers(comparison: Comparison, calibration: Calibration, centre: tuple[int, int], reach: float) -> bool:
    """Whether some region holds the centre, give or take half of the mark."""
    for region in regions_of(comparison, calibration.pixel_threshold, at_least_one=True):
        x0, y0, x1, y1 = region.box
        if x0 - reach <= centre[0] <= x1 + reach and y0 - reach <= centre[1] <= y1 + reach:
            return True
    return False


def main(
    photo: Annotated[str, typer.Option(help="Width x height of the photos, px.")] = "1600x800",
    kind: Annotated[str, typer.Option(help="Kind of part: label, circuit, moulded, bottle, weave.")] = "label",
    turned: Annotated[bool, typer.Option(help="Parts at any angle.")] = False,
    smallest_defect_px: Annotated[float, typer.Option(help="Of the product's specification; 0: not set.")] = 0,
    sizes: Annotated[str, typer.Option(help="Sizes of the marks, px.")] = "3,6,12,24,48,64",
    contrasts: Annotated[str, typer.Option(help="Contrasts of the marks, 0..1.")] = ".2,.4,.7",
    shapes: Annotated[str, typer.Option(help="dot, stroke or both.")] = "dot,stroke",
    n: Annotated[int, typer.Option(help="Photos of each mark.")] = 20,
    goldens: Annotated[int, typer.Option(help="Good parts enrolled.")] = 42,
    good: Annotated[int, typer.Option(help="Good parts tested.")] = 40,
    alpha: Annotated[float, typer.Option(help="False-reject rate asked for.")] = 0.03,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
) -> None:
    """Print detection and false-reject rates, seconds and memory."""
    width, height = (int(v) for v in photo.lower().split("x"))
    rng = np.random.default_rng([seed, width, height, turned, *kind.encode()])
    design = int(rng.integers(2**31))

    def take() -> Scene:
        return photograph(kind, design, rng, (height, width), turned)

    with tempfile.TemporaryDirectory(prefix="refdiff-size-") as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for i in range(goldens):
            Image.fromarray(take().image).save(photos / f"{i:03}.png", compress_level=1)
        with Workspace.open(MemorySettings(home=Path(folder) / "home", qdrant_url=None)) as workspace:
            enroll(workspace, PRODUCT, [photos])
            if smallest_defect_px:
                set_smallest_defect(workspace, smallest_defect_px)
            started = time.perf_counter()
            calibration = calibrate(workspace, PRODUCT)
            calibrated_s = time.perf_counter() - started
            limit = attained_alpha(alpha, calibration.n, in_doubt(workspace, calibration))
            spent: list[tuple[float, float]] = []

            def judge(image: NDArray[np.uint8]) -> tuple[bool, Comparison]:
                before, cpu = time.perf_counter(), time.process_time()
                comparison = with_pose(image, compare(workspace, image, PRODUCT), calibration)[0]
                spent.append((time.perf_counter() - before, time.process_time() - cpu))
                return p_value(calibration, comparison.difference.score) <= limit, comparison

            rejects = sum(judge(take().image)[0] for _ in range(good))
            mirrored = sum(judge(np.ascontiguousarray(take().image[:, ::-1]))[0] for _ in range(n))
            rows = []
            for shape in shapes.split(","):
                for contrast in map(float, contrasts.split(",")):
                    for size in map(float, sizes.split(",")):
                        mark = mark_of(shape, size, contrast)
                        found = located = 0
                        for _ in range(n):
                            image, centre = marked(take(), mark, rng)
                            failed, comparison = judge(image)
                            found += failed
                            located += failed and covers(comparison, calibration, centre, size / 2)
                        of = {"shape": shape, "size": size, "contrast": contrast}
                        rows.append(of | {"n": n, "found": found / n, "located": located / n})
                        print(
                            f"{shape:7}{size:5g} px, contrast {contrast:.1f}: found {found}/{n}, located {located}/{n}"
                        )
    wall, cpu = (np.array(v) * 1000 for v in zip(*spent, strict=True))
    answer = {
        "photo": photo, "kind": kind, "turned": turned, "smallest_defect_px": smallest_defect_px, "seed": seed,
        "goldens": goldens, "alpha_attained": limit, "false_rejects": f"{rejects}/{good}",
        "mirrored_found": f"{mirrored}/{n}",
        "ms_p50": float(np.median(wall)), "ms_p95": float(np.quantile(wall, 0.95)), "cpu_ms_p50": float(np.median(cpu)),
        "calibrated_s": calibrated_s, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "rows": rows,
    }  # fmt: skip
    print(json.dumps({k: v for k, v in answer.items() if k != "rows"}, indent=1))
    if out:
        out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def set_smallest_defect(workspace: Workspace, px: float) -> None:
    """As `refdiff product set --smallest-defect-px` does."""
    known = workspace.stores.products.get(PRODUCT)
    spec = (known.spec if known else {}) | {"smallest_defect_px": px}
    workspace.stores.products.set_spec(PRODUCT, spec, by="bench")


if __name__ == "__main__":
    typer.run(main)
