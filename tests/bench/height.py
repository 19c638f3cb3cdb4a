"""Height maps and point clouds: deviation against known truth, detection, time and memory: python tests/bench/height.py

Rendered parts of five shapes (`model/synthesis/height.py`), each shape a product: golden samples are enrolled and
calibrated, then good parts and parts with a defect (bulge, dent, hole, missing piece, warp; 0.5 to 3 % of the size)
are inspected by the script, turned any way, some of them partly missing. The same seed draws the same parts.
--kind depth or cloud. --colour: height maps with colour photos; every other defect is a stain without height then.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

from refdiff.agent.verdict.assemble import complete_evidence, conclude_without_reading
from refdiff.memory.settings import MemorySettings
from refdiff.model.cloud.readers import read_cloud
from refdiff.model.height.colour_file import with_colour
from refdiff.model.height.plane import fit_plane, height_of
from refdiff.model.images import encode_png
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.height import (
    DEFECTS,
    SHAPES,
    RenderedCloud,
    RenderedHeight,
    ShapeName,
    SolidPart,
    Stain,
    depth_png,
    ply,
)
from refdiff.tools.context import ToolContext
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

RULES: dict[str, dict[str, Any]] = {
    "depth": {"unit_mm": 0.01, "offset_mm": -100, "values": "height"},
    "cloud": {"unit_mm": 1},
}
DENSE = 600_000  # points of the surface without its defect, which is the truth
STAINED = "stain"
PARTIAL = 0.1  # of a part that is missing in every third part


@dataclass(frozen=True)
class Found:
    """What came of a part. found: whether its defect is in a finding. error, stated: of its deviation in mm; None where it
    was not found, and of stains."""

    defect: str | None
    found: bool
    partial: bool
    score: float
    verdict: str
    point_auroc: float | None
    error: float | None
    stated: float | None
    seconds: float
    points: int


def opened(
    home: Path, kind: str, product: str, uploads: Callable[[], list[Upload]], goldens: int, colour: bool
) -> Workspace:
    """A workspace with a calibrated product; one that is there from an earlier call is taken as it is."""
    workspace = Workspace.open(
        MemorySettings(home=home, qdrant_url=None), ModelSettings(cache=home / "cache"), ToolsSettings()
    )
    known = workspace.stores.products.get(product)
    if known is not None and workspace.bank.count(product) == goldens:
        if workspace.stores.calibrations.latest(product) is None:
            calibrate(workspace, product)
        return workspace
    spec: dict[str, Any] = {kind: RULES[kind] | ({"colour": True} if colour else {})}
    if kind == "depth":
        spec["scale_mm_per_px"] = 0.5
    workspace.stores.products.set_spec(product, parse_spec(spec).model_dump(mode="json"), spec.get("scale_mm_per_px"))
    result = enroll(workspace, product, uploads(), kind=kind)
    for refusal in result.refused:
        print(f"{product}: {refusal.path}: {refusal.reason}")
    calibrate(workspace, product)
    return workspace


def inspected(workspace: Workspace, product: str, part: str, upload: Upload) -> tuple[ToolContext, str, float]:
    began = time.perf_counter()
    capture = record_capture(
        workspace.stores, part, product, upload, settings=workspace.model_settings, read=workspace.keep_read
    )
    tools = ToolContext(workspace, capture.part_id, capture=capture, keeps_pictures=False)
    decision = conclude_without_reading(tools, complete_evidence(tools, []), [])
    return tools, str(decision.verdict), time.perf_counter() - began


def of_height(part: RenderedHeight, tools: ToolContext) -> tuple[float | None, float | None, float | None]:
    """Point AUROC, error of the deviation and its stated uncertainty."""
    if part.defect is None:
        return None, None, None
    difference = tools.canonical.comparison.difference
    assert difference.height is not None
    deviation = difference.height.deviation
    measured = np.isfinite(part.mm)
    point = roc_auc_score(part.mask[measured], deviation[measured]) if part.mask[measured].any() else None
    truth = part.truth - height_of(fit_plane(part.truth, "plane"), part.truth.shape)
    for region in tools.canonical.regions:
        x0, y0, x1, y1 = region.measurement.box
        there = part.mask[y0:y1, x0:x1] & region.measurement.mask
        if there.any() and (quantity := region.described.quantities[0]).name == "deviation_mm":
            real = truth[y0:y1, x0:x1][region.measurement.mask]
            return point, quantity.value - float(real[np.abs(real).argmax()]), quantity.uncertainty
    return point, None, None


def of_stain(part: RenderedHeight, stain: Stain, tools: ToolContext) -> tuple[float, bool]:
    """Point AUROC of the colour's map, and whether the stain is in a finding of colour."""
    mask = np.hypot(part.u - stain.x, part.v - stain.y) < stain.radius_mm
    found = False
    for region in tools.canonical.regions:
        x0, y0, x1, y1 = region.measurement.box
        there = mask[y0:y1, x0:x1] & region.measurement.mask
        found |= bool(there.any()) and "colour" in region.described.found_in
    colour = tools.canonical.comparison.difference.colour
    assert colour is not None
    return float(roc_auc_score(mask.ravel(), colour.found.anomaly_map.ravel())), found


def of_cloud(part: RenderedCloud, data: bytes, tools: ToolContext) -> tuple[float | None, float | None, float | None]:
    """The same of a cloud. Truth is the distance of its points to the good part's surface, without noise."""
    if part.defect is None:
        return None, None, None
    canonical, capture = tools.canonical, tools.find_capture()
    scan = canonical.comparison.difference.scan
    assert scan is not None
    # as it is read, before it is placed: points have the same order
    as_read, _ = read_cloud(data, name="part", unit_mm=1, settings=tools.workspace.model_settings)
    assert as_read.origin is not None
    on_file = as_read.points + as_read.origin
    points = (on_file - part.frame[:3, 3]) @ part.frame[:3, :3]
    near = cKDTree(part.points).query(on_file)[1]
    added = part.truth[near]
    if part.defect.name == "warp":  # what is left of it after the best rigid fit
        columns = np.column_stack([np.ones(len(points)), points[:, :2]])
        left = added - columns @ np.linalg.lstsq(columns, added, rcond=None)[0]
        # as a surface sees it: up is inward on the bottom, and nothing on a wall
        truth = left * (as_read.normals @ part.frame[:3, :3])[:, 2]
        wrong = np.abs(truth) >= 0.5 * float(np.abs(truth).max())
    else:
        apart = cKDTree(part.good).query(on_file)[0]
        truth = np.where(added > 0, apart, -apart)
        # of a hole and a missing piece: the walls
        grown = part.defect.name in ("bulge", "dent")
        wrong = np.abs(added) >= 0.5 * part.defect.height_mm if grown else apart > 0.3
    point = float(roc_auc_score(wrong, scan.outside)) if wrong.any() else None
    for region in canonical.regions:
        mask = np.zeros(canonical.comparison.difference.anomaly_map.shape, bool)
        x0, y0, x1, y1 = region.measurement.box
        mask[y0:y1, x0:x1] = region.measurement.mask
        inside = mask.ravel()[scan.at] & (scan.outside > 0)
        if (inside & wrong).any() and region.described.quantities:
            quantity, real = region.described.quantities[0], truth[inside & wrong]
            most = float(np.quantile(np.abs(real), 0.98))  # the most of many is that of their noise
            if part.defect.name in ("bulge", "dent"):
                most = part.defect.height_mm
            error = quantity.value - float(np.sign(np.median(real))) * most
            return point, error, quantity.uncertainty
    assert capture is not None
    return point, None, None


def made(
    kind: str,
    part: SolidPart,
    seed: tuple[int, ...],
    points: tuple[int, int],
    defect: str | None,
    partial: float,
    colour: bool = False,
    stain: Stain | None = None,
) -> tuple[Any, bytes]:
    """A rendered part, and its file. points: of a cloud, at least and at most. colour: with its colour photo."""
    rng = np.random.default_rng(seed)
    wrong = part.defect(defect, rng) if defect else None  # type: ignore[arg-type]
    if kind == "depth":
        height = part.height_map(rng, wrong, partial=partial)
        data = depth_png(height.mm)
        return height, with_colour(data, encode_png(part.colour_photo(height, rng, stain))) if colour else data
    size = int(np.exp(rng.uniform(*np.log(points))))
    cloud = part.cloud(rng, size, wrong, partial=partial, dense=DENSE if wrong else 0)
    return cloud, ply(cloud.points)


def of_shape(
    kind: str,
    shape: ShapeName,
    seed: int,
    goldens: int,
    first: int,
    n: int,
    home: Path | None,
    points: tuple[int, int],
    colour: bool,
) -> list[Found]:
    """Every other part has a defect, in turns; every third is partly missing. colour: every other defect is a stain."""
    part, number, product = SolidPart(shape, seed), SHAPES.index(shape), f"{kind}-{shape}"
    end = "png" if kind == "depth" else "ply"

    def good() -> list[Upload]:
        files = (made(kind, part, (seed, 1, number, i), points, None, 0.0, colour)[1] for i in range(goldens))
        return [Upload(f"{i:02d}.{end}", data) for i, data in enumerate(files)]

    found = []
    with (
        contextlib.nullcontext(home) if home else tempfile.TemporaryDirectory() as folder,
        opened(Path(folder), kind, product, good, goldens, colour) as workspace,
    ):
        highest = workspace.stores.calibrations.latest(product).scores[-1]
        for i in range(first, first + n):
            defect = DEFECTS[(i // (4 if colour else 2)) % len(DEFECTS)] if i % 2 else None
            partial = PARTIAL if i % 3 == 2 else 0.0
            stain = part.stain(np.random.default_rng((seed, 5, number, i))) if colour and i % 4 == 1 else None
            defect = None if stain else defect
            rendered, data = made(kind, part, (seed, 2, number, i), points, defect, partial, colour, stain)
            tools, verdict, seconds = inspected(workspace, product, str(i), Upload(f"{i}.{end}", data))
            point, error, stated = of_height(rendered, tools) if kind == "depth" else of_cloud(rendered, data, tools)
            seen = error is not None
            if stain:
                defect = STAINED
                point, seen = of_stain(rendered, stain, tools)
            score = tools.canonical.comparison.difference.score
            size = int(np.isfinite(rendered.mm).sum()) if kind == "depth" else len(rendered.points)
            found.append(
                Found(defect, seen, bool(partial), score / highest, verdict, point, error, stated, seconds, size)
            )
            print(f"{product} {i} {defect} partial={bool(partial)} points={size} score={score:.3f} (/{highest:.3f}) "
                  f"{verdict} "
                  f"point={point and round(point, 3)} error={error and round(error, 3)} ±{stated and round(stated, 3)} "
                  f"{seconds:.2f} s; {'; '.join(tools.canonical.problems)}", file=sys.stderr, flush=True)  # fmt: skip
    return found


def retrieved(kind: str, shape: ShapeName, seed: int, goldens: int, n: int, points: tuple[int, int]) -> str:
    """Of a product in two variants: of how many parts the nearest golden sample is of their own."""
    variants, number, product = [SolidPart(shape, seed + v) for v in range(2)], SHAPES.index(shape), f"{kind}-{shape}"

    def upload(variant: int, use: int, i: int) -> Upload:
        return Upload(
            f"{variant}", made(kind, variants[variant], (seed, use, number, variant, i), points, None, 0.0)[1]
        )

    right = 0
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(
            MemorySettings(home=Path(folder), qdrant_url=None),
            ModelSettings(cache=Path(folder) / "cache"),
            ToolsSettings(),
        )
        with workspace:
            spec = parse_spec({kind: RULES[kind]}).model_dump(mode="json")
            workspace.stores.products.set_spec(product, spec, 0.5 if kind == "depth" else None)
            enroll(workspace, product, [upload(v, 3, i) for i in range(goldens) for v in range(2)], kind=kind)
            for i in range(2 * n):
                capture = record_capture(
                    workspace.stores, f"{i}", product, upload(i % 2, 4, i), settings=workspace.model_settings,
                    read=workspace.keep_read,
                )  # fmt: skip
                tools = ToolContext(workspace, capture.part_id, capture=capture, keeps_pictures=False)
                right += tools.nearest(1)[0].golden.filename == f"{i % 2}"
    return f"{product}: {right} of {2 * n}"


def line(title: str, found: list[Found]) -> str:
    """A row of the table."""
    good, bad = [f for f in found if f.defect is None], [f for f in found if f.defect is not None]
    both = bool(good) and bool(bad)
    auroc = roc_auc_score([f.defect is not None for f in found], [f.score for f in found]) if both else float("nan")
    points = [f.point_auroc for f in bad if f.point_auroc is not None]
    seen = [(f.error, f.stated) for f in bad if f.error is not None and f.stated is not None]
    within = sum(abs(error) <= stated for error, stated in seen)
    errors = np.abs([e for e, _ in seen]) if seen else np.zeros(1)
    stated = np.median([u for _, u in seen]) if seen else 0.0
    counts = {v: sum(f.verdict == v for f in good) for v in ("FAIL", "REVIEW")}
    seconds = [f.seconds for f in found]
    return (
        f"| {title} | {auroc:.3f} | {np.mean(points) if points else float('nan'):.3f} | "
        f"{sum(f.found for f in bad)} of {len(bad)} | "
        f"{within} of {len(seen)} | {np.median(errors):.3f}, {np.quantile(errors, 0.9):.3f} mm | ± {stated:.3f} mm | "
        f"{counts['FAIL']}, {counts['REVIEW']} of {len(good)} | {sum(f.verdict == 'PASS' for f in bad)} of {len(bad)} | "
        f"{np.median(seconds):.1f}, {np.max(seconds):.1f} s |"
    )


def main(
    seed: int = 1,
    goldens: int = 20,
    n: Annotated[int, typer.Option(help="Parts of each shape; every other one has a defect.")] = 12,
    kind: Annotated[str, typer.Option(help="depth or cloud.")] = "depth",
    first: Annotated[int, typer.Option(help="Number of the first part: to go on with what another run began.")] = 0,
    points: Annotated[tuple[int, int], typer.Option(help="Of a cloud, at least and at most.")] = (10_000, 300_000),
    home: Annotated[Path | None, typer.Option(help="Folder that keeps the products between runs.")] = None,
    shapes: Annotated[str, typer.Option(help="Which, by name, with commas.")] = ",".join(SHAPES),
    variants: Annotated[
        bool,
        typer.Option("--variants", help="Only whether the nearest golden sample is of the part's own variant, of two."),
    ] = False,
    colour: Annotated[bool, typer.Option("--colour", help="Height maps with colour photos, and stains.")] = False,
) -> None:
    if colour and (kind != "depth" or variants):
        raise typer.BadParameter("--colour is of height maps, and not with --variants")
    chosen = [s for s in SHAPES if s in shapes.split(",")]
    if variants:
        for shape in chosen:
            print(retrieved(kind, shape, seed, goldens, n, points), flush=True)
        return
    found = {shape: of_shape(kind, shape, seed, goldens, first, n, home, points, colour) for shape in chosen}
    print(
        "| parts | object AUROC | point AUROC | defects found | deviation within its uncertainty | its error, median and "
        "90 % | stated, median | good: FAIL, REVIEW | defect: PASS | seconds, median and most |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    every = [f for those in found.values() for f in those]
    for shape, those in found.items():
        print(line(shape, those))
    for defect in (*DEFECTS, STAINED):
        if of_it := [f for f in every if f.defect == defect]:
            print(line(defect, of_it))
    print(line("all", every))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"most memory of the process: {most:.1f} GB")


if __name__ == "__main__":
    typer.run(main)
