"""Does another label in the right one's place fail? python tests/bench/swapped_labels.py --photo 640x480

Golden samples and good photos are of one rendered label, or of several variants of it; the others show labels of other
designs in the same place and size. Whole inspections, without a language model. Needs no stored data; the same seed draws
the same photos.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from refdiff.agent.inspector import Inspector
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.synthesis.render import Pose, random_light, random_pose, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.workspace import Workspace


def main(
    seed: Annotated[int, typer.Option(help="Draws designs, parts and light.")] = 0,
    photo: Annotated[str, typer.Option(help="Width x height of the photos, px.")] = "640x480",
    goldens: Annotated[int, typer.Option(min=20, help="Golden samples; FAIL needs 20.")] = 42,
    variants: Annotated[
        int, typer.Option(min=1, help="Designs that are enrolled, as many golden samples of each.")
    ] = 1,
    n: Annotated[int, typer.Option(min=1, help="Photos of other labels, each of another design.")] = 20,
    good: Annotated[int, typer.Option(min=0, help="Good photos.")] = 20,
    alpha: Annotated[float, typer.Option(help="False-reject rate to ask for.")] = 0.01,
) -> None:
    """Print the verdicts, and the reason of each that is not as it should be."""
    width, height = (int(v) for v in photo.lower().split("x"))
    rng = np.random.default_rng([seed, width, height])
    designs = [int(v) for v in rng.integers(2**31, size=variants + n)]
    own, others = designs[:variants], designs[variants:]

    def take(design: int) -> RgbImage:
        pose = random_pose(rng, max_angle_deg=3.0, size=(height, width)) if rng.random() < 0.5 else Pose()
        instance, noise = (int(v) for v in rng.integers(2**31, size=2))
        return render(
            "label", design, instance, size=(height, width), pose=pose, light=random_light(rng, strength=0.3),
            noise_sigma=1.5, noise_seed=noise,
        ).image  # fmt: skip

    with (
        tempfile.TemporaryDirectory() as folder,
        Workspace.open(MemorySettings(home=Path(folder), qdrant_url=None)) as workspace,
        Inspector(workspace, AgentSettings(llm="off")) as inspector,
    ):
        enroll(workspace, "label", [Upload(f"{i}.png", encode_png(take(own[i % variants]))) for i in range(goldens)])
        made = calibrate(workspace, "label", alpha=alpha)
        print(f"{made.n} golden samples, {len(made.unregistered or [])} of which register to no other")
        for name, wanted, shown in (
            ("good", "PASS", [own[i % variants] for i in range(good)]),
            ("other", "FAIL", others),
        ):
            verdicts: Counter[str] = Counter()
            for i, design in enumerate(shown):
                part = f"{name}-{i}"
                workspace.stores.captures.add(part, "label", workspace.stores.images.put(encode_png(take(design))))
                report = inspector.run(InspectionRequest(f"inspect part {part}", part))
                verdicts[report.verdict] += 1
                if report.verdict != wanted:
                    print(f"  {part} {report.verdict}: {report.verdict_reason}")
            print(f"{name}: {dict(verdicts)} of {len(shown)}")


if __name__ == "__main__":
    typer.run(main)
