"""The pictures of the report and of the review page in docs/: python tests/bench/page_pictures.py

Rendered boards, 640 x 480 px: 24 good ones are enrolled, and a defective one is inspected by the script.
A real Chromium takes the pictures (`make test-browser` installs what drives it). The same seeds draw the same boards.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from refdiff.model.images import encode_png
from refdiff.model.synthesis.render import DefectSpec, Pose, random_light, random_pose, render

SIZE = (480, 640)
DESIGN, GOLDENS, PART = 363, 24, "4418"
DEFECTS = [
    DefectSpec("stain", size_px=46, where=(180, 330), contrast=0.7, seed=1),
    DefectSpec("missing_component", where=(420, 300), seed=2),
    DefectSpec("scratch", size_px=90, where=(350, 150), contrast=0.9, seed=3, angle_deg=60, width_px=2),
]
_REFDIFF = str(Path(sys.executable).with_name("refdiff"))
_COLOURS = 256  # of a picture: a photo of a board hardly needs more, and true colour takes twice the bytes


def board(instance: int, defects: Sequence[DefectSpec] = ()) -> bytes:
    """A photo, PNG, of a board that lies and is lit a little differently each time."""
    rng = np.random.default_rng(instance)
    pose = random_pose(rng, max_angle_deg=2.0, size=SIZE) if instance else Pose()
    light = random_light(rng, strength=0.2)
    made = render("circuit", DESIGN, instance, size=SIZE, pose=pose, light=light, noise_seed=instance, defects=defects)
    return encode_png(made.image)


def inspected(folder: Path, environment: dict[str, str]) -> tuple[str, Path]:
    """Enrol, calibrate and inspect; returns the id of the inspection and its page."""
    good, page = folder / "good", folder / "report.html"
    good.mkdir()
    for i in range(GOLDENS):
        (good / f"{i:02d}.png").write_bytes(board(i))
    (folder / f"{PART}.png").write_bytes(board(GOLDENS, DEFECTS))
    enrol = ["enroll", "--product", "board", "--scale-mm-per-px", "0.1", str(good)]
    inspect = ["inspect", "--part", PART, "--image", str(folder / f"{PART}.png"), "--product", "board",
               "--html", str(page), "--json"]  # fmt: skip
    for command in (enrol, ["calibrate", "--product", "board"]):
        subprocess.run([_REFDIFF, *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    done = subprocess.run([_REFDIFF, *inspect], env=environment, check=False, stdout=subprocess.PIPE)
    report = json.loads(done.stdout)
    print(f"{report['verdict']}: {report['verdict_reason']}; {len(report['findings'])} findings")
    return str(report["inspection_id"]), page


def taken(browser: Any, url: str, at: str, loaded: str, size: tuple[int, int], out: Path) -> None:
    """A picture of a page. url: opened first; at: then, on the same site; loaded: what must be there; size: (W, H) px."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.goto(url)
    page.wait_for_selector("h1")
    if at:
        page.goto(at)
    page.wait_for_selector(loaded)
    page.evaluate("document.fonts.ready")
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled"))).convert("RGB")
    shot.quantize(_COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)
    page.close()
    print(f"{out}: {shot.width} x {shot.height} px, {out.stat().st_size // 1000} kB")


def main(out: Annotated[Path, typer.Option(help="Folder of report.png and review-page.png.")] = Path("docs")) -> None:
    """Take both pictures."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="refdiff-pictures-") as name, sync_playwright() as p:
        folder = Path(name)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REFDIFF_")} | {
            "REFDIFF_HOME": str(folder / "home"), "REFDIFF_LLM": "off", "REFDIFF_USER": "Ana",
        }  # fmt: skip
        inspection_id, report = inspected(folder, environment)
        browser = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        taken(browser, report.as_uri(), "", "h1", (880, 990), out / "report.png")
        serving = subprocess.Popen(
            [_REFDIFF, "serve", "--port", "0", "--json"], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert serving.stdout
            said = json.loads("".join(iter(serving.stdout.readline, "}\n")) + "}")
            at = f"{said['address']}/#/inspections/{inspection_id}"
            taken(browser, said["sign_in"], at, ".viewer[data-loaded]", (1240, 860), out / "review-page.png")
        finally:
            serving.terminate()
            serving.wait()
        browser.close()


if __name__ == "__main__":
    typer.run(main)
