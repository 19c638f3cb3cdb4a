"""Thermal pictures: difference in kelvin against known truth, detection, false rejects: python tests/bench/thermal.py

Rendered assemblies (`model/synthesis/thermal.py`): golden samples are enrolled and calibrated, then good parts and parts
with one hot spot of 2 to 20 K and 5 to 40 px are inspected by the script, in three settings: surroundings as for the golden
samples, shifted by up to 5 K either way, and the same without removing the shift. The same seed draws the same parts.
--data FOLDER: also reads the FLIR files in it, and compares them with flyr's own values.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from sklearn.metrics import roc_auc_score

from refdiff.agent.verdict.assemble import complete_evidence, conclude_without_reading
from refdiff.memory.records.captures import Capture
from refdiff.memory.settings import MemorySettings
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.thermal import Assembly, HotSpot, RenderedPart, centikelvin_tiff
from refdiff.model.thermal.readers import ReadingRules, read_thermogram
from refdiff.tools.context import ToolContext
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

PRODUCT = "assembly"
SPOT_K, SPOT_PX, AMBIENT_K = (2.0, 20.0), (5.0, 40.0), 5.0


@dataclass(frozen=True)
class Part:
    """A rendered part and what came of it. delta_k, uncertainty_k: None where its spot is in no finding."""

    spot: HotSpot | None
    score: float
    verdict: str
    delta_k: float | None
    uncertainty_k: float | None
    findings: int
    seconds: float


def parts(assembly: Assembly, seed: int, n: int, ambient: float) -> Iterator[RenderedPart]:
    """Good parts and parts with a spot in turns; ambient: the surroundings are up to so many K warmer or colder."""
    for i in range(n):
        rng = np.random.default_rng((seed, 2, i))
        height, size = np.exp(rng.uniform(np.log(SPOT_K[0]), np.log(SPOT_K[1]))), rng.uniform(*SPOT_PX)
        shift = ambient * rng.uniform(-1, 1)
        yield assembly.render(rng, spot_k=float(height) if i % 2 else None, spot_px=float(size), ambient_k=float(shift))


def opened(home: Path, assembly: Assembly, seed: int, goldens: int, remove: bool, k: int | None) -> Workspace:
    """A workspace with a calibrated product."""
    settings = ToolsSettings() if k is None else ToolsSettings(references=k)
    workspace = Workspace.open(
        MemorySettings(home=home, qdrant_url=None), ModelSettings(cache=home / "cache"), settings
    )
    rules = {"gain": 0.01, "emissivity": 0.95, "remove_ambient": remove}
    workspace.stores.products.set_spec(PRODUCT, parse_spec({"thermal": rules}).model_dump(mode="json"))
    drawn = (assembly.render(np.random.default_rng((seed, 1, i))) for i in range(goldens))
    uploads = [Upload(f"{i:03d}.tiff", centikelvin_tiff(part.celsius)) for i, part in enumerate(drawn)]
    result = enroll(workspace, PRODUCT, uploads, kind="thermal")
    assert len(result.added) == goldens, result.refused
    calibrate(workspace, PRODUCT)
    return workspace


def inspected(workspace: Workspace, number: int, part: RenderedPart) -> Part:
    upload = Upload(f"{number}.tiff", centikelvin_tiff(part.celsius))
    capture: Capture = record_capture(
        workspace.stores, str(number), PRODUCT, upload, settings=workspace.model_settings, read=workspace.keep_read
    )
    began = time.perf_counter()
    tools = ToolContext(workspace, capture.part_id, capture=capture, keeps_pictures=False)
    decision = conclude_without_reading(tools, complete_evidence(tools, []), [])
    seconds = time.perf_counter() - began
    delta = uncertainty = None
    if part.spot is not None:
        for region in tools.canonical.regions:  # strongest first
            x0, y0, x1, y1 = region.measurement.box
            if (part.spot.mask[y0:y1, x0:x1] & region.measurement.mask).any():
                measured = region.described.quantities[0]
                delta, uncertainty = measured.value, measured.uncertainty
                break
    found = len(tools.canonical.regions)
    score = tools.canonical.comparison.difference.score
    return Part(part.spot, score, str(decision.verdict), delta, uncertainty, found, seconds)


def line(title: str, found: list[Part]) -> str:
    """A row of the table."""
    good, bad = [p for p in found if p.spot is None], [p for p in found if p.spot is not None]
    auroc = roc_auc_score([p.spot is not None for p in found], [p.score for p in found])
    seen = [(p.delta_k - p.spot.delta_k, p.uncertainty_k or 0.0) for p in bad if p.spot and p.delta_k is not None]
    within = sum(abs(error) <= u for error, u in seen)
    errors = np.abs([e for e, _ in seen]) if seen else np.zeros(1)
    stated = np.median([u for _, u in seen]) if seen else 0.0
    rejects, reviews = (sum(p.verdict == v for p in good) for v in ("FAIL", "REVIEW"))
    passed = sum(p.verdict == "PASS" for p in bad)
    ms = 1000 * float(np.median([p.seconds for p in found]))
    return (
        f"| {title} | {auroc:.3f} | {len(seen)} of {len(bad)} | {within} of {len(seen)} | {np.median(errors):.2f} / "
        f"{np.quantile(errors, 0.9):.2f} | ± {stated:.2f} | {rejects} of {len(good)} | {reviews} of {len(good)} | "
        f"{passed} of {len(bad)} | {ms:.0f} |"
    )


def read_files(folder: Path) -> None:
    """How far what we read of FLIR files is from flyr's own values."""
    import flyr

    for file in sorted(folder.glob("*.jpg")):
        data = file.read_bytes()
        ours = read_thermogram(data, name=file.name, rules=ReadingRules(), settings=ModelSettings())
        theirs = flyr.unpack(io.BytesIO(data)).celsius
        stated = ", ".join(f"{n} {v:g}" for n, (v, _) in ours.conditions.items())
        off = float(np.abs(ours.celsius - theirs).max())
        photo = "no photo" if ours.visible is None else f"photo {ours.visible.shape[1]} x {ours.visible.shape[0]}"
        print(
            f"{file.name}: {theirs.shape[1]} x {theirs.shape[0]} px, largest difference {off:.5f} K; {stated}; {photo}"
        )


def main(
    seed: int = 1,
    goldens: int = 30,
    n: Annotated[int, typer.Option(help="Parts of each setting; every other one has a spot.")] = 60,
    references: Annotated[int | None, typer.Option(help="K; default: the setting.")] = None,
    settings: Annotated[str, typer.Option(help="Which of the settings, by number.")] = "123",
    data: Annotated[Path | None, typer.Option(help="Folder of FLIR files.")] = None,
) -> None:
    if data is not None:
        read_files(data)
    assembly = Assembly(seed)
    print(
        "| setting | AUROC | spots found | ΔT within its uncertainty | error of ΔT, K (median / 90 %) | stated (median), K "
        "| good: FAIL | good: REVIEW | spot: PASS | ms |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for number, (title, ambient, remove) in enumerate(
        [
            ("ambient as for the golden samples", 0.0, True),
            ("ambient shifted by up to 5 K", AMBIENT_K, True),
            ("the same, shift not removed", AMBIENT_K, False),
        ],
        start=1,
    ):
        if str(number) in settings:
            with (
                tempfile.TemporaryDirectory() as home,
                opened(Path(home), assembly, seed, goldens, remove, references) as workspace,
            ):
                drawn = parts(assembly, seed, n, ambient)
                found = [inspected(workspace, i, part) for i, part in enumerate(drawn)]
            print(line(title, found), flush=True)


if __name__ == "__main__":
    typer.run(main)
