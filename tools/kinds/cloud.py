"""Free point clouds: points in mm, placed in the frame of the product's first golden sample; one picture of six views of
them is what is encoded and shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from refdiff.model.cloud import atlas
from refdiff.model.cloud.points import Cloud
from refdiff.model.cloud.readers import SUFFIXES, read_cloud
from refdiff.model.cloud.registration import canonical, register
from refdiff.model.errors import ImageError, InputError
from refdiff.model.settings import ModelSettings
from refdiff.tools.kinds.reading import How, Look, Pose, Reading, Scan, Window, no_colour
from refdiff.tools.vision.registration import Alignment, registered

_ROOM = 1.15  # of the first golden sample's size: what a view shows


class CloudRules(BaseModel):
    """The section `cloud` of a specification: how files are read and compared. Lengths in mm."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    unit_mm: float | None = Field(default=None, gt=0, le=1e6)  # mm of one unit of the file: never guessed
    max_missing_percent: float = Field(default=25.0, ge=0, le=100)  # of the golden sample's surface, not measured
    max_hole_percent: float = Field(default=10.0, ge=0, le=100)  # of it, in one place
    accuracy_mm: float = Field(default=0.0, ge=0, le=1e4)  # limits of error of the scanner


def rules_of(how: How) -> CloudRules:
    """The rules that a product was read by; the specification has been checked when it was set."""
    return CloudRules.model_validate_json(how.rules) if how.rules else CloudRules()


READ = {"unit_mm"}  # of the rules, those that change how golden samples were read, and so a score


class CloudReader:
    """See `Reader`. The window is what a view shows, in mm either side of the frame's middle."""

    suffixes: frozenset[str] = SUFFIXES

    def read(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Reading:
        cloud, notes = self._cloud(data, name, how, settings)
        if how.window is None:
            raise ImageError(
                f"{name}: the product has no golden samples yet, which say where parts lie; enrol them first"
            )
        return _drawn(Scan(cloud.moved(canonical(cloud)), True), how.window, notes)

    def suggest_window(self, data: bytes, *, name: str, how: How, settings: ModelSettings) -> Window | None:
        cloud, _ = self._cloud(data, name, how, settings)
        points = cloud.moved(canonical(cloud)).points
        half = float(f"{_ROOM * float(np.abs(points).max()):.4g}")
        return -half, half

    def look(self, how: How) -> Look | None:
        return None if how.window is None else Look(how.window, "mm", "grey")

    def join(self, data: bytes, conditions: dict[str, float], colour: bytes | None = None) -> bytes:
        no_colour(colour, "point clouds")
        if conditions:
            raise InputError(f"condition {min(conditions)!r}: nothing is to be stated with a point cloud; leave it out")
        return data

    def _cloud(self, data: bytes, name: str, how: How, settings: ModelSettings) -> tuple[Cloud, tuple[str, ...]]:
        return read_cloud(data, name=name, unit_mm=rules_of(how).unit_mm, settings=settings)

    def place(self, reading: Reading, anchor: Reading) -> Pose:
        """Where a reading lies in the frame of the product's first golden sample."""
        assert reading.scan is not None, "a cloud"
        assert anchor.scan is not None, "a cloud"
        found = register(reading.scan.cloud, anchor.scan.cloud)
        return Pose([float(v) for v in found.matrix.ravel()], found.ok, found.fitted, found.off_mm)

    def placed(self, reading: Reading, pose: Pose, how: How) -> Reading:
        """A reading in that frame."""
        assert reading.scan is not None, "a cloud"
        assert how.window is not None, "a cloud was read with it"
        moved = reading.scan.cloud.moved(np.array(pose.matrix).reshape(4, 4))
        return _drawn(Scan(moved, pose.ok, pose.fitted, pose.off_mm), how.window, reading.notes)

    def alignment(self, query: Reading, golden: Reading) -> Alignment:
        """Both lie in one frame: how well they do."""
        assert query.scan is not None, "a cloud"
        assert golden.scan is not None, "a cloud"
        matrix, size = np.eye(3), atlas.SIZE
        if not (query.scan.placed and golden.scan.placed):
            found = registered("fpfh+icp", matrix, None, 1.0, 0.0, size)
            return replace(
                found, ok=False, method="none", trained_reason="",
                reason=f"The cloud could not be placed: {100 * query.scan.fitted:.0f} % of it lies on the golden sample",
            )  # fmt: skip
        fitted, per_px = query.scan.fitted, (query.mm_per_px or 1.0)
        found = registered("fpfh+icp", matrix, query.scan.off_mm / per_px, fitted, fitted, size)
        return replace(
            found, trained_reason="",
            reason=f"Registered in space by features and ICP ({100 * fitted:.0f} % of it lies on the golden sample, median "
            f"distance {query.scan.off_mm:.2g} mm)",
        )  # fmt: skip


def _drawn(scan: Scan, window: Window, notes: tuple[str, ...]) -> Reading:
    side = window[1] - window[0]
    drawn = atlas.draw(scan.cloud, side)
    picture, depths = atlas.shaded(scan.cloud, drawn), atlas.depths(scan.cloud, drawn)
    return Reading(picture, depths, notes=notes, mm_per_px=drawn.mm_per_px, scan=scan)


def drawn_of(cloud: Cloud, window: Window) -> atlas.Atlas:
    """The atlas that a reading of a cloud was drawn by."""
    return atlas.draw(cloud, window[1] - window[0])
