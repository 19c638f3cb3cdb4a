"""Defects of print: smeared ink, missing ink."""

from __future__ import annotations

import cv2
import numpy as np

from refdiff.model.synthesis.defect_brushes.job import Job, Painted, lump, near
from refdiff.model.synthesis.materials import blend, paint


def _print_box(job: Job) -> tuple[float, float, float, float]:
    boxes = job.part.prints
    return boxes[near(job, [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes])]


def print_smear(job: Job) -> Painted:
    """Wet ink dragged sideways."""
    x0, y0, x1, y1 = _print_box(job)
    h, w = job.mat.height.shape
    run = max(3, round(job.size))
    bx0, by0 = max(0, int(x0 - 0.5 * run)), max(0, int(y0))
    bx1, by1 = min(w, int(x1 + run)), min(h, int(y1) + 1)
    area = job.mat.window(bx0, by0, bx1, by1)
    kernel = np.zeros((1, 2 * run + 1), np.float32)
    kernel[0, :run] = np.linspace(0.3, 1, run)  # the wet ink is dragged one way
    kernel /= kernel.sum()
    dragged = np.asarray(cv2.filter2D(area.albedo, -1, kernel), np.float32)
    inside = (area.cover > 0.99).astype(np.uint8) * 255
    ramp = np.zeros_like(inside)
    ramp[:, run // 3 : max(run // 3 + 1, ramp.shape[1] - run // 3)] = 255
    ramp = np.asarray(cv2.blur(ramp, (2 * (run // 3) + 1, 1)), np.uint8)
    blend(area, np.minimum(ramp, inside), bx0, by0, colour=dragged, alpha=0.2 + 0.7 * job.spec.contrast)
    return None, None


def missing_print(job: Job) -> Painted:
    """Ink did not take: paper shows through in a patch over print, found where there is ink to lose."""
    part = job.part
    paper = np.asarray(part.paper)
    inked = np.abs(job.mat.albedo[::2, ::2] - paper.astype(np.float32)).max(-1) > 0.12
    inked &= (job.allowed[::2, ::2] > 0) & (job.mat.cover[::2, ::2] > 0.99)
    boxed = np.zeros_like(inked)
    for x0, y0, x1, y1 in part.prints:
        boxed[int(max(0, y0) / 2) : int(y1 / 2), int(max(0, x0) / 2) : int(x1 / 2)] = True
    inked &= boxed
    ys, xs = np.nonzero(inked)
    if len(ys) == 0:
        x, y = job.spot()
    elif job.where is not None:
        k = int(np.argmin((2 * xs - job.where[0]) ** 2 + (2 * ys - job.where[1]) ** 2))
        x, y = 2.0 * xs[k], 2.0 * ys[k]
    else:
        k = int(job.rng.integers(len(ys)))
        x, y = 2.0 * xs[k], 2.0 * ys[k]
    outline = lump(job.rng, x, y, job.size, 0.25)
    colour = (float(paper[0]), float(paper[1]), float(paper[2]))
    paint(job.mat, outline, colour, alpha=0.2 + 0.8 * job.spec.contrast, soft=0.5)
    return None, None
