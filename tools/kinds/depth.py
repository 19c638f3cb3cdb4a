"""Height maps: heights in mm, larger nearer to the sensor; in grey, through the product's window, they are encoded and
registered. Where the product says so, each has a colour photo on its own pixels, which is compared, too."""

from __future__ import annotations

from typing import Self

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from refdiff.model.errors import ImageError, InputError
from refdiff.model.height.colour_file import split_colour, with_colour
from refdiff.model.height.difference import nearest_filled
from refdiff.model.height.plane import Removal, fit_plane, height_of
from refdiff.model.height.readers import Direction, HeightRules, read_height_map
from refdiff.model.images import F32, RgbImage, decode_image, grey_through_window
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.palettes import Palette
from refdiff.tools.kinds.reading import How, Look, Reading, Window

_FILLED_PX = 9  # holes up to this wide are filled in the picture, so registration does not follow them
_TILT_KNOWN: tuple[Removal, ...] = ("plane", "plane_and_scale")
_OFFSET_KNOWN: tuple[Removal, ...] = ("offset", *_TILT_KNOWN)
_MARGIN = 0.25  # of the range of the first golden sample, either side


class DepthRules(BaseModel):
    """The section `depth` of a specification: how files are read, compared and shown. Heights in mm."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # reading
    unit_mm: float | None = Field(default=None, gt=0, le=1e6)  # mm of one unit of the file: never guessed
    offset_mm: float = Field(default=0.0, ge=-1e6, le=1e6)  # at 0 of the file
    values: Direction | None = None  # distance from the sensor, or height above something: never guessed
    hole: float | None = 0.0  # the number that marks what was not measured, besides NaN; null: none does
    # each height map comes with a colour photo of the same raster; not written where there is none, so that specifications
    # and calibrations of other products stay what they were
    colour: bool = Field(default=False, exclude_if=lambda stated: not stated)
    # comparing
    remove: Removal = "plane"  # what of the part as a whole is fitted to its golden sample, and not counted
    max_offset_mm: float | None = Field(default=None, gt=0, le=1e6)  # of that; more sends the part to a person
    max_tilt_deg: float | None = Field(default=None, gt=0, le=90)
    max_missing_percent: float = Field(default=10.0, ge=0, le=100)  # of the golden sample's surface, not measured
    max_hole_percent: float = Field(default=0.5, ge=0, le=100)  # of it, in one hole
    accuracy_mm: float = Field(default=0.0, ge=0, le=1e4)  # limits of error of the sensor
    # pictures
    palette: Palette = "grey"
    span_mm: tuple[float, float] | None = None  # lowest and highest of the colour bar; default: the product's window

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.span_mm is not None and not self.span_mm[0] < self.span_mm[1]:
            raise ValueError("span_mm is [lowest, highest]")
        return self

    @property
    def problem(self) -> str:
        """Why such rules cannot be checked; "" if they can. Said where they are set: those of earlier versions are read."""
        for name, needed in (("max_offset_mm", _OFFSET_KNOWN), ("max_tilt_deg", _TILT_KNOWN)):
            if getattr(self, name) is not None and self.remove not in needed:
                return (
                    f"{name} is about what is removed of the part as a whole, and `remove: {self.remove}` removes no such "
                    f"thing; set `remove` to {' or '.join(needed)}, or leave {name} out (what differs is a deviation then)"
                )
        return ""

    @property
    def reading(self) -> HeightRules:
        return HeightRules(self.unit_mm, self.offset_mm, self.values, self.hole)


def rules_of(how: How) -> DepthRules:
    """The rules that a product was read by; the specification has been checked when it was set."""
    return DepthRules.model_validate_json(how.rules) if how.rules else DepthRules()


# of the rules, those that change how golden samples were read ...
READ = {"unit_mm", "offset_mm", "values", "hole", "remove", "colour"}
# ... and those that change a score
SCORED = READ


class DepthReader:
    """See `Reader`. The window is in mm above the part's own plane, as far as that is removed."""

    suffixes: frozenset[str] = frozenset()

    def read(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
        height, photo = split_colour(data)
        mm, level, pitch = self._levelled(height, name, how, settings)
        if how.window is None:
            raise ImageError(
                f"{name}: the product has no golden samples yet, which say what heights are shown; enrol them first"
            )
        colour = _colour(photo, mm.shape, name, how, settings)
        shown = colour if how.in_colour and colour is not None else _picture(mm, how.window)
        return Reading(shown, mm, colour, level=level, mm_per_px=pitch)

    def suggest_window(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Window | None:
        height, photo = split_colour(data)
        mm, _, _ = self._levelled(height, name, how, settings)
        _colour(photo, mm.shape, name, how, settings)  # what is refused sets no window
        lo, hi = (float(v) for v in np.percentile(mm[np.isfinite(mm)], (0.1, 99.9)))
        margin = max(_MARGIN * (hi - lo), 1e-3)
        return float(f"{lo - margin:.6g}"), float(f"{hi + margin:.6g}")

    def look(self, how: How) -> Look | None:
        rules = rules_of(how)
        span = rules.span_mm or how.window
        return None if span is None else Look(span, "mm", rules.palette)

    def join(self, data: bytes, conditions: dict[str, float], colour: bytes | None = None) -> bytes:
        if conditions:
            raise InputError(f"condition {min(conditions)!r}: nothing is to be stated with a height map; leave it out")
        return data if colour is None else with_colour(data, colour)

    def _levelled(
        self, data: bytes, name: str, how: How, settings: ModelSettings
    ) -> tuple[F32, tuple[float, float, float], float | None]:
        """(H, W) mm without what is removed of the part as a whole, the plane of that, and mm per px."""
        rules = rules_of(how)
        found = read_height_map(data, name=name, rules=rules.reading, settings=settings)
        level = fit_plane(found.mm, rules.remove)
        return found.mm - height_of(level, found.mm.shape), level, found.mm_per_px


def states_colour(how: How) -> bool:
    """Whether each file of a product comes with a colour photo."""
    return how.kind == "depth" and rules_of(how).colour


def _colour(
    photo: bytes | None, size: tuple[int, ...], name: str, how: How, settings: ModelSettings
) -> RgbImage | None:
    """The colour photo of a height map of `size` (H, W); None of products without. Raises ImageError."""
    stated = rules_of(how).colour
    if photo is None and not stated:
        return None
    if photo is None:
        raise ImageError(
            f"{name}: its colour photo is missing, and the product states that each height map has one (`depth: colour`); "
            "lay it beside the height map under the same name (part.tiff and part.png), or send both (`--colour FILE`; over "
            "HTTP the field `colour`)"
        )
    if not stated:
        raise ImageError(
            f"{name}: came with a colour photo, and the product states none; leave it out, or state `colour: true` under "
            "`depth` before the first golden sample is enrolled"
        )
    colour = decode_image(photo, name=f"colour photo of {name}", settings=settings)
    if colour.shape[:2] != size:
        raise ImageError(
            f"{name}: its colour photo has {colour.shape[1]} x {colour.shape[0]} px, the height map {size[1]} x {size[0]} "
            "px; both have to be of one raster: export the colour as the sensor maps it onto the heights"
        )
    return colour


def _picture(mm: F32, window: Window) -> RgbImage:
    """(H, W, 3) grey, high is bright; what was not measured is black, but for small holes."""
    known = np.isfinite(mm)
    if known.all():
        return grey_through_window(mm, window)
    closed = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((_FILLED_PX, _FILLED_PX), np.uint8)) > 0
    return grey_through_window(np.where(closed | known, nearest_filled(mm), np.nan).astype(np.float32), window)
