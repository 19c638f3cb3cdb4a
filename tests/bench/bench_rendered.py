"""Rendered products with exact masks, in the `mvtec` layout: python tests/bench/bench_rendered.py

What the photo sets do not have: parts turned at random, and missing, wrong, displaced or added components (fill levels too).
Every good and every defective image is another instance of the design, under another light and a slightly other pose; two
designs are mixed in one product where its name says `variants`. The same seed draws the same images.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from bench_data import MANIFEST
from PIL import Image

from refdiff.model.defect_types import RENDERED_TYPES, STRUCTURAL_TYPES, RenderedType
from refdiff.model.errors import InputError, RefDiffError
from refdiff.model.synthesis.render import (
    PartKind,
    Pose,
    applicable_types,
    random_defect,
    random_light,
    random_pose,
    render,
)


@dataclass(frozen=True)
class RenderedProduct:
    """turned: any angle instead of 3 degrees. structural: only component and level defects. designs: variants."""

    name: str
    kind: PartKind
    turned: bool = False
    structural: bool = False
    designs: int = 1


PRODUCTS = (
    RenderedProduct("rotated_circuit", "circuit", turned=True),
    RenderedProduct("rotated_label", "label", turned=True),
    RenderedProduct("rotated_moulded", "moulded", turned=True),
    RenderedProduct("components_circuit", "circuit", structural=True),
    RenderedProduct("components_moulded", "moulded", structural=True),
    RenderedProduct("components_bottle", "bottle", structural=True),
    RenderedProduct("components_rotated", "circuit", turned=True, structural=True),
    RenderedProduct("variants_label", "label", designs=3),
)


def draw(product: RenderedProduct, out: Path, *, seed: int, good: int, bad: int, size: int) -> None:
    """Write `out/<product>`: half of the good images to enrol, half to test. Raises InputError (folder in the way)."""
    target = out / product.name
    if target.exists():
        if not (target / MANIFEST).is_file():
            raise InputError(f"{target}: is there and was not made by this; move it or choose another --out")
        shutil.rmtree(target)
    rng = np.random.default_rng([seed, *product.name.encode()])
    designs = rng.integers(2**31, size=product.designs)
    types: list[RenderedType] | None = None
    if product.structural:
        types = [t for t in applicable_types(product.kind) if RENDERED_TYPES[t] in STRUCTURAL_TYPES]
    for i in range(good + bad):
        defective = i >= good
        defects = [random_defect(rng, product.kind, (size, size), types=types)] if defective else []
        while True:  # a defect may fall out of the frame of a turned part
            scene = render(
                product.kind, int(designs[i % len(designs)]), int(rng.integers(2**31)), size=(size, size), defects=defects,
                pose=random_pose(rng, max_angle_deg=180.0 if product.turned else 3.0, size=(size, size))
                if product.turned or rng.random() < 0.5 else Pose(),
                light=random_light(rng, strength=0.3), noise_sigma=1.5, noise_seed=int(rng.integers(2**31)),
            )  # fmt: skip
            if not defective or scene.defect_mask.any():
                break
            defects = [random_defect(rng, product.kind, (size, size), types=types)]
        kind = defects[0].type if defective else "good"
        place = target / ("train" if i < good // 2 else "test") / kind / f"{i:03d}.png"
        _save(scene.image, place)
        if defective:
            _save(scene.defect_mask.astype(np.uint8) * 255, target / "ground_truth" / kind / f"{i:03d}_mask.png")
    manifest = {"product": product.name, "licence": "drawn by this project", "seed": seed, "size": size,
                "designs": [int(d) for d in designs], "counts": {"good": good, "defective": bad}}  # fmt: skip
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def main(
    out: Annotated[Path, typer.Option(help="Where the products are laid out.")] = Path("bench-data"),
    seed: Annotated[int, typer.Option(help="Draws designs, instances and defects.")] = 0,
    good: Annotated[int, typer.Option(min=4, help="Good images a product, half of them to enrol.")] = 80,
    bad: Annotated[int, typer.Option(min=1, help="Defective images a product.")] = 40,
    size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the images, px.")] = 320,
    only: Annotated[list[str] | None, typer.Option(help="Only this product. Several times.")] = None,
) -> None:
    """Draw rendered products for `refdiff evaluate`: turned parts, component defects, variants."""
    if unknown := set(only or ()) - {p.name for p in PRODUCTS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: choose of {', '.join(p.name for p in PRODUCTS)}")
    try:
        for product in PRODUCTS:
            if only and product.name not in only:
                continue
            draw(product, out, seed=seed, good=good, bad=bad, size=size)
            print(f"{out / product.name}: {good} good, {bad} defective", file=sys.stderr)
    except RefDiffError as e:
        print(f"error: {e}", file=sys.stderr)
        raise typer.Exit(e.exit_code) from None
    except OSError as e:
        print(f"error: {out} cannot be written ({e.strerror})", file=sys.stderr)
        raise typer.Exit(InputError.exit_code) from None


if __name__ == "__main__":
    typer.run(main)
