"""Pictures of measured values, such as temperatures: one span and colour bar for part and reference, values of spots, and
signed maps of the difference. Pure functions: arrays in, RGB uint8 arrays out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from refdiff.agent.report import pictures
from refdiff.agent.report.schema import Finding
from refdiff.model.images import F32, RgbImage
from refdiff.model.thermal.palettes import DIVERGING, coloured, table
from refdiff.tools.kinds.reading import Look

_INK, _PAPER = (22, 25, 29), (255, 255, 255)
_TICKS = 6  # about so many
_BARS = 41  # of a histogram
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)  # of ticks, times a power of ten


@dataclass(frozen=True)
class Colours:
    """The colour photos of a height map and its reference (registered; beyond its edge, grey as what was not measured),
    (H, W, 3) on the px of the part, and what the colour adds to the anomaly map, (H, W). threshold: of that."""

    query: RgbImage
    reference: RgbImage
    anomaly_map: F32
    threshold: float


@dataclass(frozen=True)
class Values:
    """What a part and its reference measure, on the pixels of the part; NaN where nothing is known.

    look: how values are shown. against_reference, against_own: (H, W) signed differences, from the reference and from the
    part's own healthy places (None: of kinds that know none). visible: (h, w, 3), the photo that the file carries.
    """

    look: Look
    query: F32
    reference: F32
    against_reference: F32
    against_own: F32 | None
    visible: RgbImage | None = None
    mark_difference: bool = False  # findings are marked with their difference, not with what was measured
    colour: Colours | None = None  # of a height map that was compared in colour, too


def with_bar(picture: RgbImage, look: Look) -> RgbImage:
    """A picture (H, W, 3) of values with its colour bar at the right."""
    return _beside(picture, _bar(picture.shape[0], look.span, look.unit, table(look.palette)))


def overlay(values: Values, drawn: RgbImage, findings: Sequence[Finding], factor: float) -> RgbImage:
    """The overlay `drawn` with the extreme of each finding marked, and the colour bar. factor: from values to its px."""
    if values.mark_difference:
        return _spotted(drawn, values.against_reference, values.look, findings, factor)
    return with_bar(_spotted(drawn, values.query, values.look, findings, factor), values.look)


def side_by_side(values: Values, findings: Sequence[Finding], *, registered: bool) -> RgbImage:
    """Reference left, part right, both by the one colour bar at the right, each with its value at every spot; and the
    visible photo, where there is one."""
    look, factor = values.look, pictures.display_scale(*values.query.shape)
    panels = []
    for title, plane in (
        (f"Reference ({'registered' if registered else 'not registered'})", values.reference),
        ("Part", values.query),
    ):
        shown = pictures.resized(coloured(plane, look.span, look.palette), factor)
        marked = [] if values.mark_difference else findings
        spotted = _spotted(shown, plane, look, marked, factor, values.query)
        panels.append(pictures.titled(spotted, title))
    height = panels[0].shape[0]
    panels.append(_bar(height, look.span, look.unit, table(look.palette)))
    if values.visible is not None:
        head = panels[0].shape[0] - round(values.query.shape[0] * factor)
        tall = height - head
        wide = max(1, round(values.visible.shape[1] * tall / values.visible.shape[0]))
        small = np.asarray(cv2.resize(values.visible, (wide, tall), interpolation=cv2.INTER_AREA), np.uint8)
        panels.append(_fitted(pictures.titled(small, "Visible photo (as the camera framed it)"), height))
    if values.colour is None:
        return _row(panels)
    photos = pictures.side_by_side(values.colour.reference, values.colour.query, "Part", registered=registered)
    return above(_row(panels), photos)


def difference(values: Values, threshold: float, unit: str) -> RgbImage:
    """The signed maps beside each other, blue colder or lower, red hotter or higher, by one bar. threshold: > 0, of the
    findings; the bar reaches to four of them at least, and to the largest difference. A histogram joins a single map."""
    planes = [values.against_reference, *([] if values.against_own is None else [values.against_own])]
    largest = max(float(np.nanmax(np.abs(p))) if np.isfinite(p).any() else 0.0 for p in planes)
    reach = max(4 * threshold, largest, 1e-6)
    factor = pictures.display_scale(*values.query.shape)
    titles = ("Difference from the reference", "Difference from the part's own healthy places")
    panels = []
    for title, plane in zip(titles[: len(planes)], planes, strict=True):
        shown = coloured(plane, (-reach, reach), DIVERGING)
        panels.append(pictures.titled(pictures.resized(shown, factor), title))
    panels.append(_bar(panels[0].shape[0], (-reach, reach), unit, table(DIVERGING)))
    if values.against_own is None:
        panels.append(_histogram(values.against_reference, reach, unit, panels[0].shape[0]))
    if (colour := values.colour) is None:
        return _row(panels)
    shown = pictures.heatmap(colour.query, colour.anomaly_map, colour.threshold)
    return above(_row(panels), pictures.titled(shown, "Difference of the colour photo"))


def _histogram(signed: F32, reach: float, unit: str, height: int) -> RgbImage:
    """How many px lie how far off: bars from -reach to reach, in the colours of the map; their heights are logarithmic,
    since a defect is a small part of a part."""
    counts, edges = np.histogram(signed[np.isfinite(signed)], _BARS, (-reach, reach))
    size = max(12, min(22, height // 30))
    font, width = pictures.font_of(size), max(200, round(0.6 * height))
    panel = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((size, size), "Pixels by difference (log)", font=font, fill=_INK, anchor="lm")
    left, right, top, bottom = size, width - size, 2 * size + size // 2, height - 3 * size
    colours = table(DIVERGING)
    tall = np.log1p(counts) / max(float(np.log1p(counts.max())), 1e-9)
    for i, part in enumerate(tall):
        x0, x1 = (left + (right - left) * (i + d) / _BARS for d in (0.1, 0.9))
        shown = colours[min(255, round((edges[i] + edges[i + 1] + 2 * reach) / (4 * reach) * 255))]
        if part > 0:
            colour = tuple(int(c) for c in shown)
            draw.rectangle((x0, bottom - part * (bottom - top), x1, bottom), fill=colour, outline=_INK)
    draw.line((left, bottom, right, bottom), fill=_INK, width=2)
    for at, anchor in ((-reach, "lm"), (0.0, "mm"), (reach, "rm")):
        x = left + (right - left) * (at + reach) / (2 * reach)
        draw.text((x, bottom + size), f"{at:.3g} {unit}" if at else f"0 {unit}", font=font, fill=_INK, anchor=anchor)
    return np.asarray(panel)


def _spotted(
    picture: RgbImage,
    plane: F32,
    look: Look,
    findings: Sequence[Finding],
    factor: float,
    found_in: F32 | None = None,
) -> RgbImage:
    """A cross at the extreme of each finding, with the plane's value there. found_in: values that tell where it is."""
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    size = max(13, round(max(picture.shape[:2]) / 48))
    font = pictures.font_of(size)
    for finding in findings:
        at = finding.location
        box = np.s_[at.y0 : at.y1, at.x0 : at.x1]
        seen = (plane if found_in is None else found_in)[box]
        if not np.isfinite(seen).any():
            continue
        cold = bool(finding.quantities) and finding.quantities[0].value < 0
        flat = int(np.nanargmin(seen) if cold else np.nanargmax(seen))
        y, x = (int(i) for i in np.unravel_index(flat, seen.shape))
        value = plane[at.y0 + y, at.x0 + x]
        px, py = (at.x0 + x + 0.5) * factor, (at.y0 + y + 0.5) * factor
        arm = size * 0.45
        for colour, width in ((_INK, 5), (_PAPER, 2)):
            draw.line((px - arm, py, px + arm, py), fill=colour, width=width)
            draw.line((px, py - arm, px, py + arm), fill=colour, width=width)
        text = f"{value:.1f} {look.unit}" if math.isfinite(value) else "no value"
        wide = draw.textlength(text, font=font)
        x0 = px + arm + 3 if px + arm + 3 + wide < picture.shape[1] else px - arm - 3 - wide
        draw.text((x0, py), text, font=font, fill=_PAPER, anchor="lm", stroke_width=2, stroke_fill=_INK)
    return np.asarray(drawn)


def _ticks(span: tuple[float, float]) -> list[float]:
    lo, hi = span
    rough = (hi - lo) / _TICKS
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-9)))
    step = next(s * power for s in _STEPS if s * power >= rough * 0.999)
    first = math.ceil(lo / step - 1e-9)
    return [i * step for i in range(first, math.floor(hi / step + 1e-9) + 1)]


def _bar(height: int, span: tuple[float, float], unit: str, colours: RgbImage) -> RgbImage:
    """A colour bar as tall as a picture: ticks with their numbers, the unit above."""
    size = max(12, min(22, height // 30))
    font = pictures.font_of(size)
    ticks = _ticks(span)
    words = [f"{tick:g}" for tick in ticks]
    probe = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    label = max((probe.textlength(word, font=font) for word in words), default=0)
    width = round(2.2 * size + label + size)
    strip = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(strip)
    top, bottom = round(2.4 * size), height - size
    ramp = colours[np.linspace(255, 0, max(1, bottom - top)).round().astype(int)]
    strip.paste(Image.fromarray(np.repeat(ramp[:, None], size, axis=1)), (size // 2, top))
    draw.rectangle((size // 2, top, size // 2 + size - 1, bottom - 1), outline=_INK)
    draw.text((size // 2, top - size), unit, font=font, fill=_INK, anchor="lm")
    for tick, word in zip(ticks, words, strict=True):
        y = bottom - 1 - (tick - span[0]) / (span[1] - span[0]) * (bottom - top - 1)
        draw.line((1.5 * size, y, 1.5 * size + size // 3, y), fill=_INK, width=2)
        draw.text((2.1 * size, y), word, font=font, fill=_INK, anchor="lm")
    return np.asarray(strip)


def _fitted(picture: RgbImage, height: int) -> RgbImage:
    """A picture with white below, or cut, to that height."""
    missing = height - picture.shape[0]
    if missing <= 0:
        return picture[:height]
    return np.concatenate([picture, np.full((missing, picture.shape[1], 3), 255, np.uint8)])


def _beside(left: RgbImage, right: RgbImage) -> RgbImage:
    return np.concatenate([left, _fitted(right, left.shape[0])], axis=1)


def above(upper: RgbImage, lower: RgbImage) -> RgbImage:
    """Two pictures (H, W, 3), one above the other."""
    wide = max(upper.shape[1], lower.shape[1])
    both = [np.pad(p, ((0, 0), (0, wide - p.shape[1]), (0, 0)), constant_values=255) for p in (upper, lower)]
    gap = np.full((max(6, wide // 80), wide, 3), 255, np.uint8)
    return np.concatenate([both[0], gap, both[1]])


def _row(panels: Sequence[RgbImage]) -> RgbImage:
    gap = np.full((panels[0].shape[0], max(6, panels[0].shape[1] // 80), 3), 255, np.uint8)
    row = panels[0]
    for panel in panels[1:]:
        row = np.concatenate([row, gap, _fitted(panel, row.shape[0])], axis=1)
    return row
