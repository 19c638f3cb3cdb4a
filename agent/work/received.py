"""Reports of devices at the server: checked against what arrived with them, and filed exactly once."""

from __future__ import annotations

import hashlib
import logging
import re
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from refdiff.agent.report.schema import DefectReport
from refdiff.memory.audit_chain import ARTEFACTS as FILES
from refdiff.memory.golden_bank.golden import Golden
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import InputError, RemovedError, UnknownRecordError
from refdiff.tools.inspection.kept_difference import KeptDifference
from refdiff.tools.kinds.readers import read_arriving
from refdiff.tools.vision.regions import map_size
from refdiff.tools.workspace import Workspace

log = logging.getLogger(__name__)

_CLOCKS_DIFFER = timedelta(minutes=5)  # at most, of a device that is set right
_ID = re.compile(r"insp-\d{8}-\d{6}-[0-9a-f]{8}")  # as `new_inspection_id` makes them; it names files here


def file_received(
    workspace: Workspace, report: bytes, photo: bytes, difference: bytes, *, by: str, filename: str, blind_share: float
) -> tuple[DefectReport, bool]:
    """File what a device recorded (`DeviceRecord`); the filed report, and whether it is new: a repeated message changes
    nothing. Its photo counts as taken at the time of the report: one that arrives late is not the newest of its part.

    by: whose key sent it. blind_share: as of `InspectionStore.file`. Raises InputError where the parts do not belong
    together, the photo cannot be read or the product is not one of this server, DamagedError.
    """
    try:
        found = DefectReport.model_validate_json(report)
    except ValidationError as e:
        advice = "update the device or this server"
        raise InputError(f"report: is no report of this version ({e.error_count()} errors); {advice}") from e
    if not _ID.fullmatch(found.inspection_id):
        raise InputError("report: its inspection_id is none of a device")
    inspections, stores = workspace.stores.inspections, workspace.stores
    if inspections.find(found.inspection_id) is not None:
        try:
            filed = DefectReport.model_validate(inspections.get(found.inspection_id).report)
        except RemovedError:  # it was filed, and pruned since
            return found, False
        if filed.query_sha256 != found.query_sha256:
            raise InputError(f"report: {found.inspection_id} is of another photo here")
        return filed, False
    if stores.jobs.find(found.inspection_id) is not None:
        raise InputError(f"report: {found.inspection_id} was requested here, and not of a device")
    if found.judge.via != "fallback":
        raise InputError("report: is not of a device, whose judge is the script")
    if hashlib.sha256(photo).hexdigest() != found.query_sha256:
        raise InputError("image: is not the photo that the report is about")
    if stores.products.get(found.product) is None:
        raise InputError(f"report: product {found.product!r} is not known here; send it to the server that exported it")
    try:
        golden = workspace.bank.get(found.reference.golden_id)
    except UnknownRecordError as e:
        raise InputError(f"report: its golden sample {found.reference.golden_id} is not known here") from e
    if golden.product != found.product or golden.sha256 != found.reference.sha256:
        raise InputError(f"report: its golden sample {golden.golden_id} is another one here")
    how = workspace.how(found.product)
    reading = read_arriving(photo, name=filename, how=how, settings=workspace.model_settings)
    KeptDifference.decode(difference, size=map_size(reading.picture.shape))
    stores.check_free()
    filed = found.model_copy(update={"requested_by": f"{found.requested_by} ({by})"[:128]})
    stores.images.put(photo)
    if all(c.sha256 != found.query_sha256 for c in stores.captures.history(found.part_id)):
        scale = found.scale.mm_per_px if found.scale.source == "capture" else None
        stores.captures.add(
            found.part_id, found.product, found.query_sha256, scale, filename, _taken_at(found, golden, by)
        )
    new = inspections.file(
        filed.inspection_id,
        filed.part_id,
        filed.product,
        filed.verdict.value,
        filed.created_at,
        filed.model_dump(mode="json"),
        blind_share=blind_share,
        facts={FILES: {}},
        difference=difference,
    )
    return filed, new


def _taken_at(report: DefectReport, golden: Golden, by: str) -> str | None:
    """When the device took the photo; None, and a word in the log, where its clock cannot be right."""
    at = to_utc(report.created_at)
    if at > to_utc(datetime.now(UTC) + _CLOCKS_DIFFER):
        wrong = f"the server's is {utc_now()}"
    elif at < golden.enrolled_at:
        wrong = f"its golden sample {golden.golden_id} was enrolled only at {golden.enrolled_at}"
    else:
        return at
    log.warning(
        "device report %s (%s) is dated %s, but %s: its photo counts as taken now; set the clock of the device. Lists and "
        "refdiff prune go by the time in the report",
        report.inspection_id, by, at, wrong,
    )  # fmt: skip
    return None
