"""Defects of solder: a bridge between two pins, a void in a pad."""

from __future__ import annotations

import numpy as np

from refdiff.model.synthesis.defect_brushes.job import Job, Painted, lump, near
from refdiff.model.synthesis.materials import TIN, mix, paint


def solder_bridge(job: Job) -> Painted:
    """Solder between two neighbouring pins."""
    pairs = job.part.pin_pairs
    a, b = (np.array(p) for p in pairs[near(job, [((p[0] + q[0]) / 2, (p[1] + q[1]) / 2) for p, q in pairs])])
    gap = float(np.hypot(*(b - a)))
    path = np.stack([a + (b - a) * t for t in np.linspace(0, 1, 12)])
    width = (0.3 + 0.4 * job.spec.contrast) * min(gap, 8 * job.ss)
    neck = 1 - 0.35 * np.sin(np.linspace(0, np.pi, 12))
    normal = np.array([-(b - a)[1], (b - a)[0]]) / gap
    outline = np.concatenate(
        [path - normal * (neck * width / 2)[:, None], (path + normal * (neck * width / 2)[:, None])[::-1]]
    )
    paint(job.mat, outline, TIN, rise=2.5, gloss=0.9, soft=0.6, alpha=0.45 + 0.5 * job.spec.contrast)
    return None, None


def solder_void(job: Job) -> Painted:
    """A dark gap in the solder of a pad."""
    pads = job.part.pads
    (x, y), r = pads[near(job, [p for p, _ in pads])]
    r = max(0.9 * job.ss, min(r, 0.5 * job.size))
    paint(
        job.mat,
        lump(job.rng, x, y, 2 * r, 0.1),
        mix(TIN, (0.03, 0.03, 0.03), min(1, 0.2 + job.strength * 1.4)),
        rise=-1.5,
        gloss=0.0,
    )
    return None, None
