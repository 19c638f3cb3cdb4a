"""What people decide about filed inspections: dispositions, blind answers, and photos that become golden samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from refdiff.agent.inspector import Inspector
from refdiff.memory.records.adoptions import Approval
from refdiff.memory.records.blind_checks import BlindCheck
from refdiff.memory.records.dispositions import Decision, Disposition, Judgement
from refdiff.model.errors import InputError
from refdiff.model.files import outage
from refdiff.tools.golden_samples.adopt import adopt
from refdiff.tools.workspace import Workspace

Turn = Callable[[], AbstractContextManager[Any]]

log = logging.getLogger(__name__)


def dispose(
    inspector: Inspector,
    inspection_id: str,
    decision: Decision,
    by: str,
    reason: str,
    judged: Judgement | None = None,
    as_reference: bool = False,
    *,
    admin: bool = False,
    turn: Turn = nullcontext,
) -> Disposition:
    """A person's accept or override of a filed inspection; the first one stands. Raises DuplicateError, InputError.

    judged: what the part is; required only for REVIEW. as_reference: the photo of this good part becomes a golden sample,
    at once if the person is an admin, else when an admin or a second person approves it (`decide_reference`);
    `stores.adoptions` holds the outcome (none yet while the bank is unavailable; `adopt_all` tries again). turn: held while
    it is enrolled; may raise UnavailableError.
    """
    stores = inspector.workspace.stores
    disposition = stores.dispositions.add(inspection_id, decision, by, reason, judged, as_reference)
    inspector.end_review(disposition)
    if as_reference:
        _approve(inspector.workspace, inspection_id, by, admin, turn)
    return disposition


def judge_blind(
    workspace: Workspace,
    inspection_id: str,
    judged: Judgement,
    by: str,
    note: str = "",
    as_reference: bool = False,
    *,
    admin: bool = False,
    turn: Turn = nullcontext,
) -> BlindCheck:
    """The judgement of a person who was not shown the verdict; the first answer stands.

    as_reference, admin: as of `dispose`. Raises UnknownRecordError (not drawn for a blind check), DuplicateError,
    InputError.
    """
    answer = workspace.stores.blind_checks.answer(inspection_id, judged, by, note, as_reference)
    if as_reference:
        _approve(workspace, inspection_id, by, admin, turn)
    return answer


def decide_reference(
    workspace: Workspace,
    inspection_id: str,
    approved: bool,
    by: str,
    note: str = "",
    *,
    admin: bool,
    turn: Turn = nullcontext,
) -> Approval:
    """The word of an admin or a second person about a photo that was proposed as a golden sample; it stands.

    An approved photo is enrolled; `stores.adoptions` holds the outcome. Raises UnknownRecordError (nothing proposed),
    DuplicateError, InputError (one's own proposal).
    """
    made = workspace.stores.adoptions.decide(inspection_id, approved, by, note, admin=admin)
    if approved:
        _adopt(workspace, inspection_id, turn)
    return made


def _approve(workspace: Workspace, inspection_id: str, by: str, admin: bool, turn: Turn) -> None:
    """Approve a photo that was just proposed, where an admin proposes it, or a second person did before."""
    try:
        workspace.stores.adoptions.decide(inspection_id, True, by, admin=admin)
    except InputError as e:
        log.info("the photo waits for an admin or a second person: %s", e)
    else:
        _adopt(workspace, inspection_id, turn)


def _adopt(workspace: Workspace, inspection_id: str, turn: Turn) -> None:
    try:
        with turn():
            adopt(workspace, inspection_id)
    except Exception as e:
        if (lacking := outage(e)) is None:
            raise
        # the decision stands, and the consent waits
        log.info("the photo of %s is not enrolled yet: %s", inspection_id, lacking)
