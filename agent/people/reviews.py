"""What people decide about filed inspections: dispositions, blind answers, and photos that become golden samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from refdiff.agent.inspector import Inspector
from refdiff.memory.records.blind_checks import BlindCheck
from refdiff.memory.records.dispositions import Decision, Disposition, Judgement
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
    turn: Turn = nullcontext,
) -> Disposition:
    """A person's accept or override of a filed inspection; the first one stands. Raises DuplicateError, InputError.

    judged: what the part is; required only for REVIEW. as_reference: the photo of this good part becomes a golden sample;
    `stores.adoptions` holds the outcome (none yet while the bank is unavailable; `adopt_all` tries again). turn: held while
    it is enrolled; may raise UnavailableError.
    """
    stores = inspector.workspace.stores
    disposition = stores.dispositions.add(inspection_id, decision, by, reason, judged, as_reference)
    inspector.end_review(disposition)
    if as_reference:
        _adopt(inspector.workspace, inspection_id, turn)
    return disposition


def judge_blind(
    workspace: Workspace,
    inspection_id: str,
    judged: Judgement,
    by: str,
    note: str = "",
    as_reference: bool = False,
    turn: Turn = nullcontext,
) -> BlindCheck:
    """The judgement of a person who was not shown the verdict; the first answer stands.

    Raises UnknownRecordError (not drawn for a blind check), DuplicateError, InputError.
    """
    answer = workspace.stores.blind_checks.answer(inspection_id, judged, by, note, as_reference)
    if as_reference:
        _adopt(workspace, inspection_id, turn)
    return answer


def _adopt(workspace: Workspace, inspection_id: str, turn: Turn) -> None:
    try:
        with turn():
            adopt(workspace, inspection_id)
    except Exception as e:
        if (lacking := outage(e)) is None:
            raise
        # the decision stands, and the consent waits
        log.info("the photo of %s is not enrolled yet: %s", inspection_id, lacking)
