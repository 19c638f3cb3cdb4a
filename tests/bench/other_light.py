"""Photos under a light that no golden sample shows: REFDIFF_WORKING_PX=192 python tests/bench/other_light.py

Of each kind of rendered part 40 golden samples under one lamp, then good and defective parts (stain or scratch of 16 px,
contrast .4) under that lamp and under others. Verdicts are those of `refdiff evaluate`; beside them what the score alone
says, which knows nothing of light. The same numbers draw the same photos.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from refdiff.agent.evaluation.metrics import image_auroc
from refdiff.agent.evaluation.results import EvaluationResults, ImageResult
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


@dataclass(frozen=True)
class _Found:
    """Of the good or the defective parts under one light: how many FAIL, REVIEW and PASS, by score and as decided."""

    by_score: tuple[int, int, int]
    decided: tuple[int, int, int]


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


def _count(rows: list[ImageResult], attained: float) -> _Found:
    verdicts = [str(r.verdict) for r in rows]
    p = [r.p_value or 0.0 for r in rows]
    fails, passes = sum(x <= attained for x in p), sum(x > max(0.05, 2 * attained) for x in p)
    decided = (verdicts.count("FAIL"), verdicts.count("REVIEW"), verdicts.count("PASS"))
    return _Found((fails, len(rows) - fails - passes, passes), decided)


def rows(results: EvaluationResults) -> Iterator[tuple[str, float | None, _Found, _Found]]:
    """(light, AUROC within it, of the good parts, of the defective ones)."""
    for n, name in enumerate(LIGHTS):
        here = [r for r in results.per_image if Path(r.path).name.startswith(f"{n}-")]
        good, bad = ([r for r in here if r.label == label] for label in (0, 1))
        area = image_auroc([r.label for r in here], [r.score for r in here])
        yield name, area, *(_count(some, results.alpha.attained) for some in (good, bad))


def main(
    kinds: Annotated[list[str] | None, typer.Argument(help=f"Kinds of parts: {', '.join(PART_KINDS)}.")] = None,
    design: Annotated[int, typer.Option(help="Design of the parts.")] = 1,
    each: Annotated[int, typer.Option(min=1, max=100, help="Good and defective parts under each light.")] = 20,
) -> None:
    """Print, for each light, FAIL / REVIEW / PASS by the score alone and as decided."""
    console = Console(width=150)
    try:
        for kind in kinds or PART_KINDS:
            with tempfile.TemporaryDirectory() as folder:
                draw(kind, design, each, Path(folder))  # type: ignore[arg-type]
                results = evaluate(Path(folder))
            table = Table("light", "AUROC", "good, by score", "good", "defective, by score", "defective", title=kind)
            for name, area, good, bad in rows(results):
                cells = (good.by_score, good.decided, bad.by_score, bad.decided)
                table.add_row(name, f"{area or 0:.3f}", *(" / ".join(map(str, c)) for c in cells))
            console.print(table)
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(e.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
