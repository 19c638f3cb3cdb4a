"""Thermal pictures: temperatures in °C; in grey, through the product's window, they are encoded and registered."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from refdiff.model.errors import ImageError
from refdiff.model.images import grey_through_window
from refdiff.model.settings import ModelSettings
from refdiff.model.thermal.conditions import CONDITIONS, with_conditions
from refdiff.model.thermal.palettes import Palette
from refdiff.model.thermal.readers import KELVIN_0, SUFFIXES, ReadingRules, Thermogram, read_thermogram
from refdiff.tools.kinds.conditions import Stated
from refdiff.tools.kinds.reading import How, Look, Reading, Window, no_colour

_MIN_SPAN_K = 2.0  # of a window: less would turn noise into contrast


class ThermalRules(BaseModel):
    """The section `thermal` of a specification: how files are read, compared and shown. Temperatures in °C."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    # reading
    gain: float | None = Field(default=None, gt=0, le=1000)  # K a count, of TIFF, PNG and CSV: never guessed
    offset_c: float = Field(default=KELVIN_0, ge=-10_000, le=10_000)  # °C at count 0
    emissivity: float | None = Field(default=None, gt=0, le=1)
    reflected_c: float | None = Field(default=None, ge=-273.15, le=3000)
    distance_m: float | None = Field(default=None, gt=0, le=100_000)
    ambient_c: float | None = Field(default=None, ge=-273.15, le=200)
    humidity: float | None = Field(default=None, gt=0, le=1)
    # comparing
    remove_ambient: bool = True  # what the whole part is warmer by than its golden sample is said, and not counted
    max_ambient_k: float = Field(default=10.0, gt=0, le=1000)  # a larger shift sends the part to a person
    # how well the camera measures: limits of error, of which the larger counts, and one standard deviation of the emissivity
    accuracy_k: float = Field(default=2.0, ge=0, le=100)
    accuracy_percent: float = Field(default=2.0, ge=0, le=100)
    emissivity_uncertainty: float = Field(default=0.02, ge=0, le=0.5)
    # pictures
    palette: Palette = "iron"
    span_c: tuple[float, float] | None = None  # coldest and hottest of the colour bar; default: the product's window

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.span_c is not None and not self.span_c[0] < self.span_c[1]:
            raise ValueError("span_c is [coldest, hottest]")
        return self

    @property
    def reading(self) -> ReadingRules:
        stated = {n: float(v) for n in CONDITIONS if (v := getattr(self, n)) is not None}
        return ReadingRules(self.gain, self.offset_c, stated)


def rules_of(how: How) -> ThermalRules:
    """The rules that a product was read by; the specification has been checked when it was set."""
    return ThermalRules.model_validate_json(how.rules) if how.rules else ThermalRules()


# of the rules, those that change a score
SCORED = {"gain", "offset_c", "remove_ambient", *CONDITIONS}


class ThermalReader:
    """See `Reader`. The window is in °C."""

    suffixes: frozenset[str] = SUFFIXES

    def read(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
        found = self._thermogram(data, name, how, settings)
        if how.window is None:
            raise ImageError(
                f"{name}: the product has no golden samples yet, which say what temperatures are shown; enrol them first"
            )
        picture = grey_through_window(found.celsius, how.window)
        stated = [
            Stated(n, known.label, found.conditions[n][0], known.unit, found.conditions[n][1])
            for n, known in CONDITIONS.items()
            if n in found.conditions
        ]
        return Reading(picture, found.celsius, found.visible, tuple(stated), found.notes)

    def suggest_window(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Window | None:
        celsius = self._thermogram(data, name, how, settings).celsius
        lo, hi = (float(v) for v in np.percentile(celsius[np.isfinite(celsius)], (0.1, 99.9)))
        margin = max((hi - lo) / 4, _MIN_SPAN_K / 2)
        return round(lo - margin, 2), round(hi + margin, 2)

    def look(self, how: How) -> Look | None:
        rules = rules_of(how)
        span = rules.span_c or how.window
        return None if span is None else Look(span, "°C", rules.palette)

    def join(self, data: bytes, conditions: dict[str, float], colour: bytes | None = None) -> bytes:
        no_colour(colour, "thermal pictures")
        return with_conditions(data, conditions)

    def _thermogram(self, data: bytes, name: str, how: How, settings: ModelSettings) -> Thermogram:
        return read_thermogram(data, name=name, rules=rules_of(how).reading, settings=settings)
