"""Photos: what cameras and people send, as RGB."""

from __future__ import annotations

from refdiff.model.errors import InputError
from refdiff.model.images import decode_image, measure_window
from refdiff.model.settings import ModelSettings
from refdiff.tools.kinds.reading import How, Look, Reading, Window, no_colour


class PhotoReader:
    """See `Reader`."""

    suffixes: frozenset[str] = frozenset()

    def read(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
        return Reading(decode_image(data, name=name, window=how.window, settings=settings))

    def suggest_window(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Window | None:
        return measure_window(data, name=name, settings=settings)

    def look(self, how: How) -> Look | None:
        return None

    def join(self, data: bytes, conditions: dict[str, float], colour: bytes | None = None) -> bytes:
        no_colour(colour, "photos")
        if conditions:
            raise InputError(f"condition {min(conditions)!r}: nothing is to be stated with a photo; leave it out")
        return data
