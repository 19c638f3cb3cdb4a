"""One whole inspection as Markdown, word for word: python tests/bench/transcript.py --out docs/transcript.md

A rendered product with one defective part, driven by the embedded model: what it was told, what it called, what came back.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from refdiff.agent.context import AgentContext
from refdiff.agent.drivers.embedded import EmbeddedDriver, plain_messages
from refdiff.agent.graph import build_graph
from refdiff.agent.nodes import first_state
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.settings import MemorySettings
from refdiff.model.images import decode_image
from refdiff.model.language.build import build_model
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import random_defect, render
from refdiff.tools.context import ToolContext
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.workspace import Workspace


def run(text: str, seed: int) -> dict[str, Any]:
    """The graph's last state before filing."""
    settings = ModelSettings()
    with tempfile.TemporaryDirectory(prefix="refdiff-transcript-") as folder:
        home = Path(folder)
        photos = home / "photos"
        photos.mkdir()
        for i in range(40):
            Image.fromarray(render("circuit", seed, i, noise_seed=i).image).save(photos / f"{i:02}.png")
        defect = random_defect(np.random.default_rng(seed), "circuit", types=["missing_component"])
        scene = render("circuit", seed, 99, defects=[defect], noise_seed=99)
        Image.fromarray(scene.image).save(home / "4412.png")
        with Workspace.open(MemorySettings(home=home / "home", qdrant_url=None), settings) as workspace:
            enroll(workspace, "control-board", [photos])
            photo = home / "4412.png"
            record_capture(workspace.stores, "4412", "control-board", photo, settings=settings, scale_mm_per_px=0.1)
            request = InspectionRequest(text, "4412", "control-board", requested_by="docs")
            driver = EmbeddedDriver(build_model(settings), lambda sha: decode_image(workspace.stores.images.get(sha)))
            tools = ToolContext(workspace, "4412")
            context = AgentContext(tools, AgentSettings(), driver, lambda _: None)
            driver.answer("Warm up.", "Hello")  # loading is not part of the inspection
            current_calibration(workspace, "control-board")  # nor is calibrating
            state = first_state(request, request, via=driver.via)
            for last in build_graph(None).stream(state, context=context, stream_mode="values"):
                state = last
                if state.get("report"):
                    break
            return state


def as_markdown(state: dict[str, Any]) -> str:
    """System prompt, request, calls, results, pairs of pictures, reading and verdict."""
    parts = [
        "# One inspection, word for word",
        "",
        "Driven by the embedded model (`python tests/bench/transcript.py`).",
        "",
    ]
    for message in plain_messages(state["messages"]):
        content = message["content"]
        if isinstance(content, list):
            content = content[0]["text"] + " [reference] [photo]"
        calls = [
            f"{c['name']}({json.dumps(c['arguments'], ensure_ascii=False)})" for c in message.get("tool_calls", [])
        ]
        parts += [f"**{message['role']}**", "", "```text", *([content] if content else []), *calls, "```", ""]
    report = state["report"]
    parts += ["**report**", "", "```json", json.dumps(
        {k: report[k] for k in ("verdict", "verdict_reason", "llm_reading", "findings", "reasoning", "judge")},
        indent=1, ensure_ascii=False), "```", ""]  # fmt: skip
    return "\n".join(parts)


def main(
    text: Annotated[str, typer.Option(help="The request.")] = "inspect part #4412 against the nearest good sample",
    seed: Annotated[int, typer.Option(help="Draws design and defect.")] = 4242,
    out: Annotated[Path, typer.Option(help="Markdown file.")] = Path("transcript.md"),
) -> None:
    """Run one inspection and write down all that was said."""
    out.write_text(as_markdown(run(text, seed)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
