"""Does another light move edges as another design does? python tests/bench/edge_correlation.py

Prints the edge correlation of rendered photos with the golden sample that they fit best, by light and for other designs.
"""

from __future__ import annotations

from typing import Annotated, get_args

import numpy as np
import typer

from refdiff.model.images import RgbImage
from refdiff.model.synthesis.render import Light, PartKind, Pose, random_light, random_pose, render
from refdiff.tools.vision.registration import View, align

SIZE = (240, 320)
LIGHTS = {
    "the same": Light(), "lamp at 300": Light(azimuth_deg=300), "lamp at 35": Light(azimuth_deg=35),
    "brighter": Light(gain=1.25), "darker": Light(gain=0.75), "falling off": Light(gradient=0.4),
    "300, darker, warmer": Light(azimuth_deg=300, gain=0.75, temperature=0.5),
}  # fmt: skip


def main(
    seed: Annotated[int, typer.Option(help="Draws light and poses.")] = 9,
    kinds: Annotated[str, typer.Option(help="Kinds of parts, separated by commas.")] = "label,circuit,moulded,bottle",
    n: Annotated[int, typer.Option(min=1, help="Photos under each light.")] = 3,
    others: Annotated[int, typer.Option(min=1, help="Other designs.")] = 8,
) -> None:
    """Of two designs of each kind."""
    rng = np.random.default_rng(seed)
    for kind in (k for k in get_args(PartKind) if k in kinds.split(",")):
        for design in (1, 2):
            golden = [
                View(render(kind, design, i, size=SIZE, noise_seed=i, light=random_light(rng, strength=0.1)).image)
                for i in range(3)
            ]

            def best(photo: RgbImage, golden: list[View] = golden) -> float:
                view = View(photo)
                return max(align(view, g).ncc for g in golden)

            for name, light in LIGHTS.items():
                poses = [random_pose(rng, max_angle_deg=3, size=SIZE), *[Pose()] * (n - 1)]
                photos = [
                    render(kind, design, 50 + i, size=SIZE, noise_seed=i, light=light, pose=pose).image
                    for i, pose in enumerate(poses)
                ]
                print(kind, design, f"{name}:", *(f"{best(p):.2f}" for p in photos))
            photos = [
                render(kind, 1000 + i, 1, size=SIZE, noise_seed=i, light=random_light(rng, strength=0.3)).image
                for i in range(others)
            ]
            print(kind, design, "other designs:", *(f"{best(p):.2f}" for p in photos))


if __name__ == "__main__":
    typer.run(main)
