"""Ten whole inspections as Markdown: python tests/bench/examples.py --data research-data --out docs/examples.md

Two papers (PIPED brg01 and btn01, 128 x 128 px) that no network was trained on: three defective and two good photos of each,
drawn by the seed, asked for in phrasings reserved for tests and driven by the embedded model.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from refdiff.agent.inspector import Inspector
from refdiff.agent.recording import templates
from refdiff.agent.report.markdown import short_markdown
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.summary import sentence_case
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import Mask
from refdiff.model.settings import ModelSettings
from refdiff.model.training.sources import Listed, defect_pixels, list_piped
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.workspace import Workspace

GOLDENS = 24
_OPENING = f"""# Ten inspections in full

Two papers (PIPED brg01 and btn01, 128 x 128 px) that neither the difference network nor the language model was trained on:
three defective and two good photos of each, drawn at random (seed {{seed}}), as the embedded model drove and wrote
(`python tests/bench/examples.py`), against {GOLDENS} golden samples of each. The scale, 0.1 mm/px, is made up. How much
of the labelled defect lies in the findings' boxes is counted on its mask. The requests are in phrasings reserved for tests.
Causes are guesses, and say so.

In short: of 6 defective photos {{bad}}; of 4 good ones {{good}}.
"""


def share_in_boxes(report: DefectReport, mask: Mask) -> float:
    """Part 0..1 of the labelled pixels inside some finding's box."""
    inside = mask & False
    for finding in report.findings:
        place = finding.location
        inside[place.y0 : place.y1, place.x0 : place.x1] = True
    return float((inside & mask).sum() / mask.sum())


def section(number: int, image: Listed, request: InspectionRequest, report: DefectReport) -> str:
    """One inspection: what was asked, what was answered, how it was found."""
    mask = defect_pixels(image.mask, image.mask_inverted) if image.mask else None
    label = "good" if mask is None else f"defective, {image.kind} on {100 * mask.mean():.2f} % of the photo"
    calls = ", ".join(call.tool for call in report.tool_trace)
    lines = [f"### {number}. {request.product}: {label}", "", f'"{request.text}"', "", short_markdown(report), ""]
    for finding in report.findings:
        cause = (
            f" Cause ({finding.probable_cause.basis}): {finding.probable_cause.text}" if finding.probable_cause else ""
        )
        lines.append(f"- {finding.id}: {sentence_case(finding.reasoning)}{cause}")
    lines += [
        "",
        f"> {report.reasoning}",
        "",
        f"Calls: {calls}. Claims dropped: {len(report.unsupported_claims_dropped)}.",
    ]
    if mask is not None:
        lines[-1] += f" {100 * share_in_boxes(report, mask):.0f} % of the labelled defect lies in the findings' boxes."
    return "\n".join(lines)


def _counted(verdicts: Counter[str]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in sorted(verdicts.items()))


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds piped.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/examples.md"),
    seed: Annotated[int, typer.Option(help="Draws photos, part ids and phrasings.")] = 2026,
) -> None:
    """Run the inspections and write the page."""
    rng = random.Random(seed)
    sections, verdicts = [], {True: Counter[str](), False: Counter[str]()}
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-examples-") as folder,
        Workspace.open(MemorySettings(home=Path(folder), qdrant_url=None), ModelSettings()) as workspace,
        Inspector(workspace, AgentSettings(llm_base_url=None)) as inspector,
    ):
        papers = list_piped(data)
        for name in ("piped_brg01_rl", "piped_btn01_rl"):
            images, product = papers[name], name.replace("_", " ")
            good = rng.sample([i for i in images if i.kind == "good"], GOLDENS + 2)
            bad = rng.sample([i for i in images if i.mask], 3)
            enroll(workspace, product, [i.path for i in good[2:]])
            for image in (bad[0], good[0], bad[1], good[1], bad[2]):
                part = str(rng.randint(1000, 9999))
                record_capture(
                    workspace.stores, part, product, image.path, settings=workspace.model_settings, scale_mm_per_px=0.1
                )
                request = InspectionRequest(rng.choice(templates.PLAIN_TEST).format(part=part), part, product)
                report = inspector.run(request)
                verdicts[image in bad][report.verdict.value] += 1
                sections.append(section(len(sections) + 1, image, request, report))
                print(f"{len(sections)}/10 {product} {image.kind}: {report.verdict}", flush=True)
    opening = _OPENING.format(seed=seed, bad=_counted(verdicts[True]), good=_counted(verdicts[False]))
    page = "\n".join([opening, "\n\n".join(sections)])
    out.write_text(page + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
