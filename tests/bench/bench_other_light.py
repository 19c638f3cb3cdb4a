"""Photos under a light that no golden sample shows: REFDIFF_WORKING_PX=192 python tests/bench/bench_other_light.py

Of each kind of rendered part 40 golden samples under one lamp, then good and defective parts (stain or scratch of 16 px,
contrast .4) under that lamp and under others. Verdicts are those of `refdiff evaluate`; beside them what the score alone
says, which knows nothing of light. The same numbers draw the same photos.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from refdiff.agent.evaluation.metrics import image_auroc
from refdiff.agent.evaluation.results import EvaluationResults
from refdiff.agent.evaluation.run import evaluate
from refdiff.model.errors import RefDiffError
from refdiff.model.synthesis.render import PART_KINDS, DefectSpec, Light, PartKind, render

SIZE = (144, 192)
GOLDENS = 40
LIGHTS = {
    "the same": Light(),
    "lamp at 300°": Light(azimuth_deg=300),
    "lamp at 200°": Light(azimuth_deg=200),
    "lamp at 35°": Light(azimuth_deg=35),
    "25 % brighter": Light(gain=1.25),
    "25 % darker": Light(gain=0.75),
    "warmer": Light(temperature=0.5),
    "colder": Light(temperature=-0.5),
    "falling off": Light(gradient=0.4),
    "lamp at 300°, darker, warmer": Light(azimuth_deg=300, gain=0.75, temperature=0.4),
}


def draw(kind: PartKind, design: int, each: int, out: Path) -> None:
    """Write a product in the `mvtec` layout; a file's name begins with the number of its light."""

    def save(light: Light, instance: int, place: Path, defective: bool = False) -> None:
        spec = DefectSpec("stain" if instance % 2 else "scratch", size_px=16, contrast=0.4, seed=instance)
        defects = [spec] if defective else []
        scene = render(kind, design, instance, size=SIZE, defects=defects, light=light, noise_seed=instance)
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(place)

    for i in range(GOLDENS):
        save(Light(), i, out / "train" / "good" / f"{i:03}.png")
    for n, light in enumerate(LIGHTS.values()):
        for i in range(each):
            save(light, 1000 * (1 + n) + i, out / "test" / "good" / f"{n}-{i:03}.png")
            save(light, 1000 * (1 + n) + 100 + i, out / "test" / "defect" / f"{n}-{i:03}.png", True)


def rows(results: EvaluationResults) -> Iterator[list[str]]:
    """Of every light: name, AUROC, and of good and of defective parts those that fail by the score alone, and verdicts."""
    for n, name in enumerate(LIGHTS):
        here = [r for r in results.per_image if Path(r.path).name.startswith(f"{n}-")]
        row = [name, f"{image_auroc([r.label for r in here], [r.score for r in here]) or 0:.3f}"]
        for label in (0, 1):
            some = [r for r in here if r.label == label]
            decided = Counter(str(r.verdict) for r in some)
            row.append(str(sum((r.p_value or 0.0) <= results.alpha.attained for r in some)))
            row.append(" / ".join(str(decided[v]) for v in ("FAIL", "REVIEW", "PASS")))
        yield row


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help=f"Kinds of parts: {', '.join(PART_KINDS)}.")] = None,
    design: Annotated[int, typer.Option(help="Design of the parts.")] = 1,
    each: Annotated[int, typer.Option(min=1, max=100, help="Good and defective parts under each light.")] = 20,
) -> None:
    """Print verdicts for each light, and how many parts the score alone would fail."""
    console = Console(width=150)
    try:
        for kind in kinds or PART_KINDS:
            with tempfile.TemporaryDirectory() as folder:
                draw(kind, design, each, Path(folder))  # type: ignore[arg-type]
                results = evaluate(Path(folder))
            columns = ("light", "AUROC", "good: FAIL by score", "verdicts", "defective: FAIL by score", "verdicts")
            table = Table(*columns, title=f"{kind}: FAIL / REVIEW / PASS")
            for row in rows(results):
                table.add_row(*row)
            console.print(table)
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(e.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
