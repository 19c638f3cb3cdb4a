"""Structural defects: the list of a part's components with one missing, added, wrong or displaced, or a level wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from refdiff.model.synthesis.defect_brushes.job import Job, near
from refdiff.model.synthesis.materials import Component, hsv, mix
from refdiff.model.synthesis.parts.circuit import random_component


def rearranged(job: Job, components: list[Component]) -> list[Component]:
    """The component list after a structural defect."""
    part, spec, rng = job.part, job.spec, job.rng
    if spec.type == "wrong_fill_level":
        sign = 1.0 if rng.random() < 0.7 else -1.0  # mostly too little; never above the neck

        def refill(c: Component) -> Component:
            change = min(job.size, 0.6 * c.h) if sign > 0 else -min(job.size, 0.15 * c.h)
            return replace(c, y=c.y + change / 2, h=c.h - change)

        return [refill(c) if c.kind == "liquid" else c for c in components]
    if not any(c.kind != "liquid" for c in components):
        return components  # a design without components, or all are gone already: nothing changes
    if spec.type == "added_component":
        spots = part.spots or [replace(components[0], x=components[0].x + 1.5 * components[0].w)]
        spot = spots[near(job, [(c.x, c.y) for c in spots])]
        return [*components, replace(spot, angle=spot.angle + float(rng.normal(0, 1.5)))]
    movable = [i for i, c in enumerate(components) if c.kind != "liquid"]
    i = movable[near(job, [(components[j].x, components[j].y) for j in movable])]
    old = components[i]
    if spec.type == "missing_component":
        return [c for j, c in enumerate(components) if j != i]
    if spec.type == "displaced_component":
        a = job.angle()
        turn = float(rng.normal(0, 1) * (4 + 20 * spec.contrast)) if part.kind != "bottle" else float(rng.normal(0, 4))
        shift = job.size if old.kind != "cap" else min(job.size, 0.35 * old.h)
        dx, dy = np.cos(a) * shift, -np.sin(a) * shift
        if old.kind == "cap":
            dx, dy = 0.2 * dx, -abs(dy) - 1.5 * job.ss  # a cap that is not screwed down stands higher
        new = replace(old, x=old.x + float(dx), y=old.y + float(dy), angle=old.angle + turn)
    else:
        new = _other(old, rng, job)
    return [new if j == i else c for j, c in enumerate(components)]


def _other(old: Component, rng: np.random.Generator, job: Job) -> Component:
    """Something that does not belong there but would fit: other colour, print, pin count or type."""
    look = old.look + int(rng.integers(1, 3))
    if old.kind in ("ic", "connector", "can", "crystal", "chip"):
        if rng.random() < 0.35 + 0.4 * job.spec.contrast:
            kind = str(rng.choice([k for k in ("ic", "connector", "can", "crystal", "chip") if k != old.kind]))
            new = random_component(rng, kind, old.x, old.y, job.part.u, old.angle)
            fit = min(1.0, 1.15 * max(old.w, old.h) / max(new.w, new.h), 1.4 * min(old.w, old.h) / min(new.w, new.h))
            return replace(new, w=new.w * fit, h=new.h * fit)
        colour = hsv(float(rng.random()), 0.5, 0.55 if np.mean(old.colour) < 0.4 else 0.12)
        return replace(old, look=look, colour=mix(old.colour, colour, 0.3 + 0.7 * job.spec.contrast))
    if old.kind in ("screw", "stud"):
        if rng.random() < 0.5:
            return replace(old, look=look)
        return replace(old, kind="stud" if old.kind == "screw" else "screw", look=look)
    hue = hsv(float(rng.random()), 0.7, 0.3 if np.mean(old.colour) > 0.5 else 0.8)
    return replace(old, look=look, colour=mix(old.colour, hue, 0.25 + 0.75 * job.spec.contrast))
