"""Pictures of a report, as pure functions: RGB uint8 arrays in, RGB uint8 arrays (or encoded bytes) out.

Small images are enlarged by a whole factor and huge ones reduced, so numbers and lines stay readable. Colour-blind
people can tell orange, sky blue and the inferno map apart, and every line has a dark casing, so it shows on bright and
dark parts alike. Knows nothing about stores or pages.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from refdiff.agent.report.schema import ComponentCount, Finding, Location
from refdiff.model.images import MIN_CROP_PX, Box, Outline, RgbImage, encode_png
from refdiff.tools.vision.regions import map_size

_Rgb = tuple[int, int, int]
_Rect = tuple[float, float, float, float]

ORANGE: _Rgb = (255, 176, 0)  # a finding
SKY: _Rgb = (100, 190, 255)  # a finding within the product's limits
_INK: _Rgb = (22, 25, 29)
_PAPER: _Rgb = (255, 255, 255)
_MUTED: _Rgb = (75, 82, 90)

MIN_LONG_SIDE = 720  # smaller pictures are enlarged to at least this
MAX_LONG_SIDE = 1600  # larger ones are reduced to this
HEAT_SPAN = 2.0  # the colour scale ends at this many thresholds
_HEAT_OPACITY = 0.6
_MIN_BAR_PX = 360  # below, its words do not fit


@dataclass(frozen=True)
class CropPair:
    """The same region of query and registered reference."""

    query: RgbImage
    reference: RgbImage
    region: Box  # what was cut out, in query px


def display_scale(height: int, width: int) -> float:
    """Factor from query px to picture px: a whole number for small images, below 1 for huge ones."""
    long_side = max(height, width)
    if long_side < MIN_LONG_SIDE:
        return float(math.ceil(MIN_LONG_SIDE / long_side))
    return min(1.0, MAX_LONG_SIDE / long_side)


def overlay(
    query: RgbImage,
    findings: Sequence[Finding],
    outlines: Sequence[Outline] = (),
    *,
    components: Sequence[ComponentCount] = (),
    anomaly_map: NDArray[np.float32] | None = None,
    threshold: float | None = None,
) -> RgbImage:
    """The query with numbered boxes: orange, or sky blue and dashed where a finding is within limits.

    query: (H, W, 3) uint8. Finding i of the list gets the number i + 1; its box is in query px.
    outlines: of the findings, if they are known. Each is drawn round its px and covers none of them, the box round it.
    components: of those that are not as many as they should be, what was counted gets a white box (c2 of component 2).
    anomaly_map: float32 of the query's `map_size`, with a threshold in the same unit: what exceeds it is outlined, whatever
    the findings say; for reports without outlines.
    Returns (H * s, W * s, 3) uint8 with s = display_scale(H, W). Tags never leave the picture.
    """
    scale = display_scale(*query.shape[:2])
    canvas = resized(query, scale)
    if anomaly_map is not None and threshold is not None:
        _check_map(query, anomaly_map)
        _draw_outline(canvas, anomaly_map, threshold)
    height, width = canvas.shape[:2]
    boxes = [_to_picture(f.location, scale, (height, width)) for f in findings]
    boxes = [_outlined(canvas, *o) for o in zip(findings, outlines, boxes, strict=True)] if outlines else boxes
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(height, width) / 280))
    font = font_of(max(16, round(max(height, width) / 36)))
    counted: list[tuple[str, Box]] = []
    for miscounted in (c for c in components if c.wrong):
        for place in miscounted.seen:
            counted.append((f"c{miscounted.number}", _to_picture(place, scale, (height, width))))
            _draw_box(draw, counted[-1][1], max(1, line // 2), _PAPER)
    for finding, box in zip(findings, boxes, strict=True):
        _draw_box(draw, box, line, SKY if finding.within_limits else ORANGE, dashed=finding.within_limits)
    taken: list[_Rect] = []
    for number, (finding, box) in enumerate(zip(findings, boxes, strict=True), start=1):
        tag = _place_tag(draw, str(number), font, box, (height, width), taken, boxes)
        taken.append(tag)
        draw.rectangle(tag, fill=SKY if finding.within_limits else ORANGE, outline=_INK, width=max(1, line // 2))
        draw.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), str(number), font=font, fill=_INK, anchor="mm")
    for text, box in counted:
        tag = _place_tag(draw, text, font, box, (height, width), taken, boxes)
        taken.append(tag)
        draw.rectangle(tag, fill=_PAPER, outline=_INK, width=max(1, line // 2))
        draw.text(((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2), text, font=font, fill=_INK, anchor="mm")
    return np.asarray(picture)


def heatmap(query: RgbImage, anomaly_map: NDArray[np.float32], threshold: float | None) -> RgbImage:
    """The anomaly map over the grey query, with a colour bar below.

    anomaly_map: float32 of the query's `map_size`. The scale is fixed at 0 .. 2 thresholds (inferno), so pictures of one
    product are comparable; the white line is the threshold. Without one (no calibration yet) the scale ends at
    the maximum of this image, and the bar says so.
    Returns (H * s + bar, W * s, 3) uint8, wider where the bar is.
    Raises ValueError for a map of another size or a threshold <= 0.
    """
    _check_map(query, anomaly_map)
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise ValueError(f"heatmap threshold is {threshold}; it must be a finite number above 0, or None")
    top = HEAT_SPAN * threshold if threshold is not None else max(float(anomaly_map.max()), 1e-9)
    scale = display_scale(*query.shape[:2])
    base = resized(query, scale)
    height, width = base.shape[:2]
    level = np.clip(anomaly_map / top, 0.0, 1.0).astype(np.float32)
    level = cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    colours = _colours(level)
    grey = np.repeat(cv2.cvtColor(base, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    canvas = np.ascontiguousarray(
        cv2.addWeighted(colours, _HEAT_OPACITY, grey, 1.0 - _HEAT_OPACITY, 0.0), dtype=np.uint8
    )
    if threshold is not None:
        _draw_outline(canvas, anomaly_map, threshold)
    bar = _colour_bar(width, threshold)
    beside = np.full((height, bar.shape[1] - width, 3), _PAPER, np.uint8)  # a narrow part has a wider bar
    return np.concatenate([np.concatenate([canvas, beside], axis=1), bar], axis=0)


def side_by_side(reference: RgbImage, query: RgbImage, label: str = "Part", *, registered: bool = True) -> RgbImage:
    """Reference left, query right, each with its label above; label: of the query.

    Both (H, W, 3) uint8; a reference of another size (compared without registration) is fitted into the query's
    frame without distortion. Returns one uint8 picture.
    """
    labels = (f"Reference ({'registered' if registered else 'not registered'})", label)
    scale = display_scale(*query.shape[:2])
    right = resized(query, scale)
    left = _fit(reference, right.shape[0], right.shape[1])
    gap = max(6, right.shape[1] // 80)
    panels = [titled(p, text) for p, text in zip((left, right), labels, strict=True)]
    spacer = np.full((panels[0].shape[0], gap, 3), 255, dtype=np.uint8)
    return np.concatenate([panels[0], spacer, panels[1]], axis=1)


def crops(query: RgbImage, reference: RgbImage, box: Box, margin: float = 0.6, min_side: int = MIN_CROP_PX) -> CropPair:
    """The surroundings of a box, cut from query and registered reference, enlarged, the box outlined.

    box: x0, y0, x1, y1 in query px. margin: of the box's longer side, on every side; at least min_side px show.
    A reference of another size than the query (not registered) is fitted into the query's frame first.
    """
    height, width = query.shape[:2]
    if reference.shape[:2] != (height, width):
        reference = _fit(reference, height, width)
    x0, y0, x1, y1 = _clamp_box(box, height, width)
    side = max(min_side, round(max(x1 - x0, y1 - y0) * (1 + 2 * margin)))
    left, right = _window((x0 + x1) / 2, side, width)
    top, bottom = _window((y0 + y1) / 2, side, height)
    factor = 360 / max(right - left, bottom - top)
    outline = tuple((a - b) * factor for a, b in zip((x0, y0, x1, y1), (left, top, left, top), strict=True))
    pair: list[RgbImage] = []
    for source in (query, reference):
        # nearest neighbour would invent edges, smoothing would hide them: cubic is the usual middle
        part = Image.fromarray(resized(source[top:bottom, left:right], factor, cv2.INTER_CUBIC))
        _draw_box(ImageDraw.Draw(part), (outline[0], outline[1], outline[2], outline[3]), 2, ORANGE)
        pair.append(np.asarray(part))
    return CropPair(query=pair[0], reference=pair[1], region=(left, top, right, bottom))


def page_image(image: RgbImage, max_side: int = MAX_LONG_SIDE) -> bytes:
    """Encoded bytes for a page: PNG up to 0.3 megapixels, else JPEG; no side longer than max_side px."""
    scale = min(1.0, max_side / max(image.shape[:2]))
    shown = resized(image, scale) if scale < 1 else image
    if shown.shape[0] * shown.shape[1] <= 300_000:
        return encode_png(shown)
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="JPEG", quality=88, subsampling=0)
    return buffer.getvalue()


def plain_jpeg(image: RgbImage, max_side: int = MAX_LONG_SIDE) -> bytes:
    """The image as a JPEG, nothing drawn on it."""
    scale = min(1.0, max_side / max(image.shape[:2]))
    buffer = io.BytesIO()
    picture = Image.fromarray(resized(image, scale) if scale < 1 else image)
    picture.save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def anomaly_layer(anomaly_map: NDArray[np.float32], threshold: float, max_side: int = MAX_LONG_SIDE) -> bytes:
    """The anomaly map as a transparent PNG to lay over the query: clear below half the threshold, then inferno.

    The scale is logarithmic up to this image's peak (4 thresholds at least), so a strong defect keeps its shape and a
    weak one still shows. anomaly_map: (H, W) float32; threshold > 0 in the same unit.
    """
    low = max(threshold, 1e-9) / 2
    top = max(float(anomaly_map.max()), 8 * low)
    spread = np.log(np.maximum(anomaly_map, low) / low) / math.log(top / low)
    level = _resize_map(spread.astype(np.float32), min(1.0, max_side / max(spread.shape)))
    alpha = (np.clip(level / 0.3, 0.0, 1.0) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([_colours(level), alpha])).save(buffer, format="PNG")
    return buffer.getvalue()


# ---- pieces ----


def _check_map(query: RgbImage, anomaly_map: NDArray[np.float32]) -> None:
    if anomaly_map.shape != map_size(query.shape):
        raise ValueError(f"anomaly map is {anomaly_map.shape}, the query is {query.shape[:2]} (H, W); score it again")


def resized(image: RgbImage, scale: float, enlarge: int = cv2.INTER_LINEAR) -> RgbImage:
    """The image (H, W, 3) times `scale`."""
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    method = cv2.INTER_AREA if scale < 1 else enlarge
    return np.ascontiguousarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def _resize_map(level: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    if scale >= 1:
        return level
    return np.asarray(cv2.resize(level, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.float32)


def _fit(image: RgbImage, height: int, width: int) -> RgbImage:
    if image.shape[:2] == (height, width):
        return image
    inner = resized(image, min(height / image.shape[0], width / image.shape[1]))[:height, :width]
    canvas = np.full((height, width, 3), 235, dtype=np.uint8)
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def _window(centre: float, side: int, limit: int) -> tuple[int, int]:
    side = min(side, limit)
    start = min(max(0, round(centre - side / 2)), limit - side)
    return start, start + side


def _clamp_box(box: Box, height: int, width: int) -> Box:
    x0, y0 = min(max(0, box[0]), width - 1), min(max(0, box[1]), height - 1)
    return x0, y0, min(max(x0 + 1, box[2]), width), min(max(y0 + 1, box[3]), height)


def _to_picture(place: Location, scale: float, size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = (round(v * scale) for v in (place.x0, place.y0, place.x1, place.y1))
    return _clamp_box((x0, y0, x1, y1), *size)


def font_of(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all pictures, `size` px."""
    return ImageFont.load_default(size)


def _draw_box(draw: ImageDraw.ImageDraw, box: _Rect, line: int, colour: _Rgb, dashed: bool = False) -> None:
    """Drawn outwards where there is room, so the line does not cover what it points at."""
    width, height = draw.im.size
    x0, y0 = max(box[0] - line, 0), max(box[1] - line, 0)
    x1, y1 = min(box[2] + line - 1, width - 1), min(box[3] + line - 1, height - 1)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=line + 2)
    if not dashed:
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)
        return
    dash = 4 * line
    for x in np.arange(x0, x1, 2 * dash):
        for y in (y0, y1 - line + 1):
            draw.rectangle((x, y, min(x + dash, x1), y + line - 1), fill=colour)
    for y in np.arange(y0, y1, 2 * dash):
        for x in (x0, x1 - line + 1):
            draw.rectangle((x, y, x + line - 1, min(y + dash, y1)), fill=colour)


def _outlined(canvas: RgbImage, finding: Finding, outline: Outline, box: Box) -> Box:
    """Draw the outline of a finding; the box, px of the picture, grown so that all of the stroke lies in it."""
    at = finding.location
    inside = np.zeros((at.y1 - at.y0, at.x1 - at.x0), np.uint8)
    cv2.fillPoly(inside, outline, (255,), offset=(-at.x0, -at.y0))
    wide, tall = box[2] - box[0], box[3] - box[1]
    how = cv2.INTER_AREA if wide < inside.shape[1] else cv2.INTER_NEAREST
    line = _outline_px(canvas)
    clear = line + 4  # px between it and what it goes round: half the stroke, its casing and its soft edge
    around = 2 * clear
    shown = np.pad((cv2.resize(inside, (wide, tall), interpolation=how) > 0).astype(np.uint8), around)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * clear + 1, 2 * clear + 1))
    contours, _ = cv2.findContours(cv2.dilate(shown, disc), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    _stroke(canvas, contours, line, (box[0] - around, box[1] - around))
    height, width = canvas.shape[:2]
    return (
        max(0, box[0] - around), max(0, box[1] - around), min(width, box[2] + around), min(height, box[3] + around)
    )  # fmt: skip


def _outline_px(canvas: RgbImage) -> int:
    return max(1, round(max(canvas.shape[:2]) / 600))


def _stroke(canvas: RgbImage, contours: Sequence[NDArray], line: int, corner: tuple[int, int] = (0, 0)) -> None:
    """White, with a dark casing of a px on either side."""
    cv2.drawContours(canvas, contours, -1, _INK, line + 2, cv2.LINE_AA, offset=corner)
    cv2.drawContours(canvas, contours, -1, _PAPER, line, cv2.LINE_AA, offset=corner)


def _draw_outline(canvas: RgbImage, anomaly_map: NDArray[np.float32], threshold: float) -> None:
    height, width = canvas.shape[:2]
    level = cv2.resize(anomaly_map, (width, height), interpolation=cv2.INTER_LINEAR)
    mask = (level >= threshold).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    _stroke(canvas, contours, _outline_px(canvas))


def _overlap(a: _Rect, b: _Rect) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place_tag(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: _Rect,
    size: tuple[int, int],
    taken: Sequence[_Rect],
    boxes: Sequence[_Rect],
) -> _Rect:
    """Where the number goes: next to its box, hiding as little as possible of other numbers and boxes."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    tall = min((bottom - top) * 1.7, size[0] - 1)
    wide = min(max(right - left + 0.7 * tall, tall), size[1] - 1)
    x0, y0, x1, y1 = box
    gap = max(2.0, tall / 6)
    candidates = [
        (x0, y0 - gap - tall),
        (x1 - wide, y0 - gap - tall),
        (x0, y1 + gap),
        (x1 - wide, y1 + gap),
        (x1 + gap, y0),
        (x0 - gap - wide, y0),
        (x1 + gap, y1 - tall),
        (x0 - gap - wide, y1 - tall),
    ]

    def rect(at: tuple[float, float]) -> _Rect:
        x = min(max(0.0, at[0]), size[1] - 1 - wide)
        y = min(max(0.0, at[1]), size[0] - 1 - tall)
        return x, y, x + wide, y + tall

    def cost(r: _Rect) -> float:
        return 4 * sum(_overlap(r, t) for t in taken) + sum(_overlap(r, b) for b in boxes)

    return min((rect(c) for c in candidates), key=cost)


def _colours(level: NDArray[np.float32]) -> RgbImage:
    """(H, W) float32 in 0..1 to (H, W, 3) uint8."""
    return cv2.cvtColor(
        cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB
    ).astype(np.uint8)


def titled(picture: RgbImage, text: str) -> RgbImage:
    """A picture (H, W, 3) with a title above."""
    return np.concatenate([_header(picture.shape[1], text), picture])


def _header(width: int, text: str) -> RgbImage:
    size = max(13, min(26, width // 30))
    strip = Image.new("RGB", (width, 2 * size), _INK)
    font = font_of(size)
    draw = ImageDraw.Draw(strip)
    while len(text) > 4 and draw.textlength(text, font=font) > width - size:
        text = text[:-4].rstrip() + "..."
    draw.text((size // 2, size), text, font=font, fill=_PAPER, anchor="lm")
    return np.asarray(strip)


def _colour_bar(width: int, threshold: float | None) -> RgbImage:
    """A bar of at least `width` px."""
    width = max(width, _MIN_BAR_PX)
    size = max(12, min(24, width // 34))
    bar, pad = size, size
    strip = Image.new("RGB", (width, int(size * 5.2)), _PAPER)
    ramp = np.repeat(np.linspace(0, 1, width - 2 * pad, dtype=np.float32)[None], bar, axis=0)
    grey = np.full((*ramp.shape, 3), 128, dtype=np.uint8)  # as over a mid-grey part
    colours = cv2.addWeighted(_colours(ramp), _HEAT_OPACITY, grey, 1.0 - _HEAT_OPACITY, 0.0)
    top = int(size * 1.9)
    strip.paste(Image.fromarray(np.asarray(colours, dtype=np.uint8)), (pad, top))
    draw, font = ImageDraw.Draw(strip), font_of(size)
    if threshold is None:
        title, ticks = "Difference (no threshold yet)", {0.0: "0", 1.0: "max of this image"}
    else:
        title = f"Difference, threshold {threshold:.3g}"
        ticks = {0.0: "0", 0.5: "threshold", 1.0: f"{HEAT_SPAN:g} x or more"}
    draw.text((pad, size), title, font=font, fill=_INK, anchor="lm")
    for at, label in ticks.items():
        x = pad + at * (width - 2 * pad - 1)
        draw.line((x, top - 3, x, top + bar + 5), fill=_INK, width=2)
        anchor = {0.0: "lt", 1.0: "rt"}.get(at, "mt")
        draw.text((x, top + bar + size * 0.5), label, font=font, fill=_MUTED if at != 0.5 else _INK, anchor=anchor)
    return np.asarray(strip)
