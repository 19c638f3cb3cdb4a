"""What is kept of a comparison, so that its pictures can be drawn whenever somebody asks: a small grey PNG.

Its pixels are the anomaly map, its text is how the reference lies on the photo, and the outlines of the findings. With the
photo, the golden sample and the report that makes every picture of an inspection.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from refdiff.model.errors import DamagedError
from refdiff.model.images import F32, Outline

_TEXT = "refdiff"  # key of the PNG's text
_WHITE = 255
_UNIT = 0.5  # thresholds: the grey scale is linear well below it, logarithmic above
_UNFITTED = (0.0, 0.0, 0.0, 1.0)
_MOST_BYTES = 64 << 20  # of what is packed in the text: bits of the map, outlines
_TOO_LARGE = Image.DecompressionBombError
_LEAST = 1e-6  # instead of dividing by 0
# parts of the value and `_UNIT` together: what halving the map may change, and from one grey to the next
_TOLERANCE, _STEP = 0.05, 0.02


@dataclass(frozen=True)
class KeptDifference:
    """anomaly_map: (H, W) float32 >= 0, `map_size` of the photo. threshold: > 0, of the map.

    matrix: (3, 3), px of the golden sample -> px of the photo; a mere resize where it could not be registered.
    outlines: of the findings, in their order, px of the photo; None: kept by a version that had none. offset: added to the
    measured values of the golden sample before they were compared, where the product's kind does that. rules, anchor: by
    which its files were read (see `How`), which may change later. fit: of height maps, see `Difference.fit`.
    colour: of height maps with a colour photo, what the colour adds to the map; mm: of height, that is 1 of the map.
    """

    anomaly_map: F32
    threshold: float
    matrix: NDArray[np.float64]
    outlines: Sequence[Outline] | None = None
    offset: float = 0.0
    rules: str = ""
    fit: tuple[float, float, float, float] = _UNFITTED
    colour: F32 | None = None
    mm: float = 1.0
    anchor: str = ""

    def encode(self) -> bytes:
        """PNG bytes: the map in at most 256 greys, as coarse as it is smooth. In pictures it looks the same."""
        level = np.log(1 + self.anomaly_map / (_UNIT * self.threshold))  # several times as fast as log1p
        # where nothing was compared it drops to 0 at once, which no coarse map can show: that is kept apart, as bits
        compared = self.anomaly_map > 0
        inside = np.asarray(compared, np.float32)
        while min(level.shape) > 1:
            halved, still_inside = _halved(level, inside)
            if float((np.abs(_resize(halved, level.shape, cv2.INTER_LINEAR) - level) * inside).max()) > _TOLERANCE:
                break
            level, inside = halved, still_inside
        step = max(_STEP, float(level.max()) / _WHITE)
        grey = np.rint(level / step).astype(np.uint8)
        text = PngImagePlugin.PngInfo()
        about = {
            "size": self.anomaly_map.shape,
            "threshold": self.threshold,
            "step": step,
            "matrix": self.matrix.tolist(),
        }
        if not compared.all():
            about["compared"] = _as_text(np.packbits(compared).tobytes())
        if self.outlines is not None:
            about["outlines"] = _packed(self.outlines)
        if self.offset:
            about["offset"] = self.offset
        if self.rules:
            about["rules"] = self.rules
        if self.anchor:
            about["anchor"] = self.anchor
        if self.fit != _UNFITTED:
            about["fit"] = self.fit
        if self.colour is not None:
            about["mm"] = self.mm
            about["colour"] = _as_text(KeptDifference(self.colour, self.threshold, np.eye(3)).encode())
        text.add_text(_TEXT, json.dumps(about))
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, format="PNG", pnginfo=text)
        return buffer.getvalue()

    @classmethod
    def decode(cls, data: bytes, size: tuple[int, int] | None = None, *, whole: bool = True) -> KeptDifference:
        """What `encode` made. size: (H, W) that the map must have. whole: with the colour's part. Raises DamagedError for
        anything else."""
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                grey = np.asarray(image, np.float32)
                about = json.loads(image.info[_TEXT])
            threshold, (height, width) = float(about["threshold"]), about["size"]
            if size is not None and (height, width) != size:
                raise ValueError(f"a map of {height} x {width} px, not of {size[0]} x {size[1]}")
            level = _resize(grey * np.float32(about["step"]), (int(height), int(width)), cv2.INTER_LINEAR)
            anomaly_map = np.expm1(level) * np.float32(_UNIT * threshold)
            if "compared" in about:  # earlier versions kept it in the map
                bits = np.frombuffer(_from_text(about["compared"]), np.uint8)
                anomaly_map *= np.unpackbits(bits, count=anomaly_map.size).reshape(anomaly_map.shape)
            outlines = _unpacked(about["outlines"]) if "outlines" in about else None
            matrix = np.array(about["matrix"], np.float64).reshape(3, 3)
            offset, rules = float(about.get("offset", 0.0)), str(about.get("rules", ""))
            a, b, c, factor = (float(v) for v in about.get("fit", _UNFITTED))
            colour = None
            if "colour" in about:
                if not whole:  # devices send such files: one in the other without end would take all memory
                    raise ValueError("the colour's part has a part of its own")
                colour = cls.decode(_from_text(about["colour"]), (int(height), int(width)), whole=False).anomaly_map
            fit, mm = (a, b, c, factor), float(about.get("mm", 1.0))
            anchor = str(about.get("anchor", ""))
            return cls(anomaly_map, threshold, matrix, outlines, offset, rules, fit, colour, mm, anchor)
        except (OSError, ValueError, KeyError, TypeError, SyntaxError, cv2.error, zlib.error, _TOO_LARGE) as e:
            raise DamagedError(f"what was kept of the comparison is damaged ({e}); restore it from a backup") from e


def _packed(outlines: Sequence[Outline]) -> str:
    """Outlines as text, a byte or two for each point."""
    return _as_text(json.dumps([[polygon.ravel().tolist() for polygon in outline] for outline in outlines]).encode())


def _unpacked(text: str) -> list[Outline]:
    found = json.loads(_from_text(text))
    return [[np.array(polygon, np.int32).reshape(-1, 2) for polygon in outline] for outline in found]


def _as_text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode("ascii")


def _from_text(text: str) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b64decode(text), _MOST_BYTES)
    if not unpacking.eof:
        raise ValueError("cut off, or too long")
    return data


def _halved(level: F32, inside: F32) -> tuple[F32, F32]:
    """Half as fine, of the cells that are inside (1, else 0) alone; a ring around them goes on as they do."""
    size = (level.shape[0] + 1) // 2, (level.shape[1] + 1) // 2
    part = _resize(inside, size, cv2.INTER_AREA)
    mean = _resize(level * inside, size, cv2.INTER_AREA) / np.maximum(part, _LEAST)
    here = np.asarray(part > 0, np.float32)
    around = np.asarray(cv2.blur(mean * here, (3, 3))) / np.maximum(cv2.blur(here, (3, 3)), _LEAST)
    return np.asarray(np.where(part > 0, mean, around), np.float32), here


def _resize(values: F32, size: tuple[int, ...], how: int) -> F32:
    return np.asarray(cv2.resize(values, (size[1], size[0]), interpolation=how), np.float32)
