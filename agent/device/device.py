"""A device: photos in, reports out, decided by an export. The report is the one that the script would file at the server."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from refdiff.agent.report.artefacts import artefacts_of
from refdiff.agent.report.schema import DefectReport, Judge, Software
from refdiff.agent.verdict.assemble import assemble, complete_evidence
from refdiff.memory.artefacts import new_inspection_id
from refdiff.memory.golden_bank.golden import IN_USE
from refdiff.memory.rows.captures import Capture, normalise_part_id
from refdiff.memory.rows.products import check_scale
from refdiff.memory.timestamps import utc_now
from refdiff.model.errors import InputError
from refdiff.model.images import RgbImage, encode_png
from refdiff.model.settings import software_version
from refdiff.tools.context import ToolContext
from refdiff.tools.exported.archive import Manifest
from refdiff.tools.exported.signing import ExportSettings, Keys
from refdiff.tools.exported.workspace import ExportedWorkspace
from refdiff.tools.inspection.calibration import software_fingerprint, weights_in_use
from refdiff.tools.kinds.readers import read_arriving

JUDGE = Judge(model=None, via="fallback", url=None, reason="inspected on a device, by an export")


@dataclass(frozen=True)
class DeviceRecord:
    """What is known of a photo that a device inspected."""

    report: DefectReport
    difference: bytes  # of `KeptDifference`: what a server draws the pictures from, beside photo and golden sample


class Device(AbstractContextManager["Device"]):
    """An open export. Threads may share it; photos are inspected one by one."""

    def __init__(self, workspace: ExportedWorkspace) -> None:
        self.workspace = workspace
        self._one = threading.Lock()

    @classmethod
    def open(cls, path: Path | str, keys: Keys | None = None, threads: int | None = None) -> Self:
        """Check an export and load it. keys: that it is checked by; default: those of the environment, if any are set.

        threads: for the networks; default: as many as cores. Raises InputError (no such file, another version),
        DamagedError, TamperedError, UnavailableError (a package that it needs is not installed; the disk).
        """
        keys = ExportSettings.read().keys if keys is None else keys
        return cls(ExportedWorkspace.of_file(Path(path), keys, threads))

    def __exit__(self, *error: object) -> None:
        self.workspace.close()

    @property
    def manifest(self) -> Manifest:
        """What the export says of itself."""
        return self.workspace.export.manifest

    @property
    def digest(self) -> str:
        """sha256 (hex) of the manifest, which names the export in reports."""
        return self.workspace.export.digest

    def try_out(self) -> None:
        """Inspect the photo of a golden sample, as a check that this export can decide here. Raises what fails."""
        golden = self.workspace.bank.list(statuses=IN_USE)[0]
        self.record(self.workspace.stores.images.get(golden.sha256), "golden", filename=golden.filename)

    def inspect(
        self,
        photo: Path | str | bytes | RgbImage,
        part_id: str,
        *,
        scale_mm_per_px: float | None = None,
        filename: str = "",
    ) -> DefectReport:
        """Inspect a photo of a part: a file, its bytes, or (H, W, 3) uint8 RGB.

        Raises ImageError for a photo that cannot be inspected, InputError, UnavailableError.
        """
        if isinstance(photo, Path | str):
            filename = filename or Path(photo).name
            photo = read_photo(Path(photo))
        data = photo if isinstance(photo, bytes) else encode_png(photo)
        return self.record(data, part_id, scale_mm_per_px=scale_mm_per_px, filename=filename).report

    def record(
        self,
        data: bytes,
        part_id: str,
        *,
        scale_mm_per_px: float | None = None,
        filename: str = "",
        requested_by: str = "device",
    ) -> DeviceRecord:
        """Inspect an image file, and return what a server files of it. Raises as `inspect`."""
        part_id, scale = normalise_part_id(part_id), check_scale(scale_mm_per_px)
        workspace, product = self.workspace, self.workspace.content.product
        with self._one:
            how = workspace.how(product.name)
            reading = read_arriving(data, name=filename or "photo", how=how, settings=workspace.model_settings)
            sha256 = workspace.stores.images.put(data)
            workspace.keep_read(sha256, how, reading)
            capture = Capture(f"cap-{sha256[:12]}", part_id, product.name, sha256, scale, filename, utc_now())
            tools = ToolContext(workspace, part_id, product.name, capture=capture, keeps_pictures=False)
            report = self._report(tools, requested_by)
            return DeviceRecord(report, tools.kept_difference.encode())

    def _report(self, tools: ToolContext, requested_by: str) -> DefectReport:
        inspection_id, canonical = new_inspection_id(), tools.canonical
        return DefectReport(
            **assemble(tools, complete_evidence(tools, []), {}, by_llm=False, history_days=0),
            inspection_id=inspection_id,
            requested_by=requested_by,
            created_at=datetime.now(UTC),
            judge=JUDGE,
            tool_trace=[],
            timings_ms={name: round(ms, 1) for name, ms in canonical.comparison.timings_ms.items()},
            artefacts=artefacts_of(inspection_id),
            software=Software(
                version=software_version(),
                weights_sha256=software_fingerprint(self.workspace, canonical.network),
                weights=weights_in_use(self.workspace, canonical.network),
                export=self.digest,
                number_format=self.manifest.number_format,
            ),
        )


def read_photo(path: Path) -> bytes:
    """The bytes of a file. Raises InputError."""
    try:
        return path.read_bytes()
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
