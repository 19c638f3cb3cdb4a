"""Does another product's label fail? python tests/bench/swapped_labels.py

Golden samples and good photos are of one rendered label; the bad photos show other designs in the same place.
Needs no stored data; the same seed draws the same photos.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from refdiff.memory.settings import MemorySettings
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.synthesis.render import Pose, random_light, random_pose, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import attained_alpha, calibrate
from refdiff.tools.inspection.inspection import inspect_photo
from refdiff.tools.workspace import Workspace


def main(
    seed: Annotated[int, typer.Option(help="Draws designs, parts and light.")] = 0,
    size: Annotated[int, typer.Option(min=96, help="Side of the photos, px.")] = 512,
    goldens: Annotated[int, typer.Option(min=20, help="Golden samples; FAIL needs 20.")] = 25,
    n: Annotated[int, typer.Option(min=1, help="Photos of other labels, each of another design.")] = 20,
    good: Annotated[int, typer.Option(min=0, help="Good photos.")] = 5,
    alpha: Annotated[float, typer.Option(help="False-reject rate to ask for.")] = 0.01,
) -> None:
    """Print how many photos fail by the score, with their p-values."""
    rng = np.random.default_rng(seed)
    design, *others = (int(v) for v in rng.integers(2**31, size=1 + n))

    def photo(of: int) -> RgbImage:
        pose = random_pose(rng, max_angle_deg=3.0, size=(size, size)) if rng.random() < 0.5 else Pose()
        instance, noise = (int(v) for v in rng.integers(2**31, size=2))
        light = random_light(rng, strength=0.3)
        return render(
            "label", of, instance, size=(size, size), pose=pose, light=light, noise_sigma=1.5, noise_seed=noise
        ).image

    with (
        tempfile.TemporaryDirectory() as folder,
        Workspace.open(MemorySettings(home=Path(folder), qdrant_url=None)) as workspace,
    ):
        enroll(workspace, "label", [Upload(f"{i}.png", encode_png(photo(design))) for i in range(goldens)])
        attained = attained_alpha(alpha, calibrate(workspace, "label").n)
        for name, designs in (("good", [design] * good), ("other label", others)):
            values, registered = [], 0
            for i, of in enumerate(designs):
                sha256 = workspace.stores.images.put(encode_png(photo(of)))
                found = inspect_photo(workspace, workspace.stores.captures.add(f"{name}-{i}", "label", sha256))
                values.append(found.p_value or 0.0)
                registered += found.comparison.nearest.alignment.ok
            fails = sum(p <= attained for p in values)
            told = ", ".join(f"{p:.3f}" for p in sorted(values, reverse=True)[:5])
            print(
                f"{name}: {fails} of {len(values)} fail (alpha {attained:.3f}), registered {registered}; highest p {told}"
            )


if __name__ == "__main__":
    typer.run(main)
