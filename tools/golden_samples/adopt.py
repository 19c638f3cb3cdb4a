"""Adoption: the photo of a part that a person found good becomes a golden sample, with that person's consent and the
approval of an admin or a second person.

It is enrolled like any other photo (refused if it is there already, flagged if it is odd), keeps its source, and can be
retired like any other golden. A golden from a disposition serves as a reference but is excluded from calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from refdiff.memory.golden_bank.golden import Golden, GoldenSource, group_of_part, make_golden_id
from refdiff.memory.records.adoptions import Abandoned, Adoption
from refdiff.memory.rows.captures import Capture
from refdiff.model.errors import BusyError, InputError, RemovedError, UnknownRecordError
from refdiff.model.progress import Progress, silent
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.golden_samples.outliers import flag_outliers
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.workspace import Workspace

log = logging.getLogger(__name__)

# why a golden is retired
_ABANDONED = "its enrolment hung and was given up"
_UNREADABLE = "its photo cannot be read any more, and was refused as a reference"


def adopt(workspace: Workspace, inspection_id: str, progress: Progress = silent) -> Adoption:
    """Enrol the approved photo of an inspection, once; later calls return the first outcome. progress: see `enroll`.

    Raises InputError (nobody gave consent or approved it), UnknownRecordError, StorageError, BankBusyError,
    BusyError (another thread or process enrols approved photos), UnavailableError (also where it was given up meanwhile).
    The consent stays then, and the call can be repeated.
    """
    known = workspace.stores.adoptions.get(inspection_id)
    if known is not None:
        return known
    with _alone(workspace):
        return _adopt(workspace, inspection_id, progress)


def _adopt(workspace: Workspace, inspection_id: str, progress: Progress) -> Adoption:
    stores = workspace.stores
    try:
        record = stores.inspections.get(inspection_id)
    except RemovedError as e:  # earlier versions took an answer about it; nothing will ever be enrolled
        return stores.adoptions.add(inspection_id, None, f"refused: {e}")
    by, source = _consent(workspace, inspection_id)
    approval = stores.adoptions.approval(inspection_id)
    if approval is None or not approval.approved:
        raise InputError(
            f"inspection {inspection_id}: its photo waits for the word of an admin or a second person; "
            f"`refdiff review {inspection_id} --approve-reference` gives it"
        )
    sha256 = str(record.report.get("query_sha256") or "")
    try:
        data = stores.images.get(sha256)
    except (InputError, UnknownRecordError) as e:
        # nobody comes back to it once it is refused
        _retire_left(workspace, record.product, sha256, _UNREADABLE)
        return stores.adoptions.add(inspection_id, None, f"refused: {e}")
    capture = _capture(workspace, record.part_id, record.product, sha256)
    result = enroll(
        workspace,
        record.product,
        [Upload((capture.filename if capture else "") or f"part {record.part_id}", data)],
        scale_mm_per_px=capture.scale_mm_per_px if capture else None,
        part_group=group_of_part(record.part_id),
        enrolled_by=by,
        golden_source=source,
        progress=progress,
    )
    left = None if result.added else _left_behind(workspace, record.product, sha256)
    if result.added or left:
        golden = left or result.added[0]
        if golden.status == "retired" and golden.note in (_ABANDONED, _UNREADABLE):
            workspace.bank.set_status(golden.golden_id, "active")
        flagged = flag_outliers(workspace, record.product, [left.golden_id]) if left else result.flagged
        odd = "; flagged because it is unlike the others" if flagged else ""
        return stores.adoptions.add(inspection_id, golden.golden_id, f"enrolled{odd}")
    refusal = [*result.already_there, *result.refused][0]
    return stores.adoptions.add(inspection_id, None, f"refused: {refusal.reason}")


def adopt_all(
    workspace: Workspace,
    turn: Callable[[str], AbstractContextManager[Progress]] = lambda inspection_id: nullcontext(silent),
    retiring: Callable[[str], AbstractContextManager[object]] = lambda inspection_id: nullcontext(),
) -> list[Adoption]:
    """Retire what enrolments that hung and were given up left in the bank; then enrol all photos with consent that could not
    be enrolled at the time (bank in use, disk full), oldest first. turn, retiring: held while that of an inspection is
    enrolled, and while what its enrolment left is retired; the first one yields what is told of the steps.

    One that cannot be enrolled holds up no other: the log names what was left out, and the next call tries it again. Raises
    what is no InputError as `adopt`.
    """
    adoptions, made = workspace.stores.adoptions, []
    left_out: dict[str, InputError] = {}
    with _alone(workspace):
        for photo in adoptions.abandoned():  # first: an enrolment may fail, or hang
            with retiring(photo.inspection_id):
                _clear(workspace, photo)
        for inspection_id in adoptions.consented():
            try:
                with turn(inspection_id) as progress:
                    made.append(adoptions.get(inspection_id) or _adopt(workspace, inspection_id, progress))
            except InputError as e:
                left_out[inspection_id] = e
    if left_out:
        why = "; ".join(f"{inspection_id}: {e}" for inspection_id, e in left_out.items())
        log.warning("%s approved photos could not be enrolled and are left out: %s", len(left_out), why)
    return made


def _alone(workspace: Workspace) -> AbstractContextManager[None]:
    """So that nobody retires what somebody else puts into use."""
    return workspace.stores.db.lock("adopt", BusyError("approved photos are being enrolled; try again later"))


def _clear(workspace: Workspace, photo: Abandoned) -> None:
    """Retire the golden that an enrolment which hung left behind."""
    if photo in workspace.stores.adoptions.abandoned(photo.inspection_id):  # else it was approved again meanwhile
        _retire_left(workspace, photo.product, photo.photo, _ABANDONED)
        workspace.stores.adoptions.clear(photo.inspection_id)


def _retire_left(workspace: Workspace, product: str, sha256: str, why: str) -> None:
    """Retire the golden that an enrolment left behind, unless a person has taken it into use."""
    golden = _left_behind(workspace, product, sha256)
    if golden is not None and (golden.status == "flagged" or (golden.status == "active" and not golden.note)):
        workspace.bank.set_status(golden.golden_id, "retired", why)


def _consent(workspace: Workspace, inspection_id: str) -> tuple[str, GoldenSource]:
    """Who gave consent, and where. A blind answer comes first: it makes the photo an unbiased sample."""
    check = workspace.stores.blind_checks.get(inspection_id)
    if check is not None and check.as_reference:
        return str(check.judged_by), "blind_check"
    disposition = workspace.stores.dispositions.get(inspection_id)
    if disposition is not None and disposition.as_reference:
        return disposition.by, "disposition"
    raise InputError(
        f"inspection {inspection_id}: nobody has approved its photo as a reference; "
        "approve it with `refdiff review INSPECTION --override --as-reference`"
    )


def _left_behind(workspace: Workspace, product: str, sha256: str) -> Golden | None:
    """The golden that an earlier call enrolled before it crashed or hung, without recording the outcome."""
    try:
        golden = workspace.bank.get(make_golden_id(product, sha256))
    except UnknownRecordError:
        return None
    return None if golden.source == "enrolled" or workspace.stores.adoptions.claimed(golden.golden_id) else golden


def _capture(workspace: Workspace, part_id: str, product: str, sha256: str) -> Capture | None:
    taken = workspace.stores.captures.history(part_id)
    return next((c for c in taken if (c.product, c.sha256) == (product, sha256)), None)
