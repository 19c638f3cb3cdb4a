"""What people decide about filed inspections: dispositions, blind answers, and photos that become golden samples."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from refdiff.agent.inspector import Inspector
from refdiff.memory.records.adoptions import Approval
from refdiff.memory.records.blind_checks import BlindCheck
from refdiff.memory.records.dispositions import Decision, Disposition, Judgement
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError, UnavailableError
from refdiff.model.files import outage
from refdiff.model.progress import Progress, silent
from refdiff.tools.golden_samples.adopt import adopt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reviews:
    """turn: held while the photo of an inspection is enrolled, and yields what is told of its steps; may raise
    UnavailableError."""

    inspector: Inspector
    turn: Callable[[str], AbstractContextManager[Progress]] = lambda inspection_id: nullcontext(silent)

    def dispose(
        self,
        inspection_id: str,
        decision: Decision,
        by: str,
        reason: str,
        judged: Judgement | None = None,
        as_reference: bool = False,
        *,
        admin: bool = False,
    ) -> Disposition:
        """A person's accept or override of a filed inspection; the first one stands.

        judged: what the part is; required only for REVIEW. as_reference: the photo of this good part becomes a golden
        sample, at once if the person is an admin, else when an admin or a second person approves it (`decide_reference`);
        `stores.adoptions` holds the outcome (none yet while the bank is unavailable; `adopt_all` tries again).
        Raises UnknownRecordError, InputError, DuplicateError (says who decided, and when).
        """
        made = self._stores.dispositions.add(inspection_id, decision, by, reason, judged, as_reference)
        try:
            self.inspector.end_review(made)
        except UnavailableError as e:  # the decision stands
            log.warning("the checkpoint of inspection %s stays: %s", inspection_id, e)
        if as_reference:
            self._approve(inspection_id, by, admin)
        return made

    def judge_blind(
        self,
        inspection_id: str,
        judged: Judgement,
        by: str,
        note: str = "",
        as_reference: bool = False,
        *,
        admin: bool = False,
    ) -> BlindCheck:
        """The judgement of a person who was not shown the verdict; the first answer stands.

        as_reference, admin: as of `dispose`. Raises UnknownRecordError (not drawn for a blind check), RemovedError,
        InputError (not blind to it), DuplicateError.
        """
        made = self._stores.blind_checks.answer(inspection_id, judged, by, note, as_reference)
        if as_reference:
            self._approve(inspection_id, by, admin)
        return made

    def decide_reference(self, inspection_id: str, approved: bool, by: str, note: str = "", *, admin: bool) -> Approval:
        """The word of an admin or a second person about a photo that was proposed as a golden sample; it stands, unless the
        enrolment of an approved photo hangs and is given up: then it can be approved again, or refused.

        An approved photo is enrolled; `stores.adoptions` holds the outcome. Raises UnknownRecordError (nothing proposed),
        RemovedError, InputError (one's own proposal), DuplicateError.
        """
        made = self._stores.adoptions.decide(inspection_id, approved, by, note, admin=admin)
        if approved:
            self._adopt(inspection_id)
        return made

    @property
    def _stores(self) -> Stores:
        return self.inspector.workspace.stores

    def _approve(self, inspection_id: str, by: str, admin: bool) -> None:
        """Approve a photo that was just proposed, where an admin proposes it, or a second person did before."""
        try:
            self._stores.adoptions.decide(inspection_id, True, by, admin=admin)
        except InputError as e:
            log.info("the photo waits for an admin or a second person: %s", e)
        else:
            self._adopt(inspection_id)

    def _adopt(self, inspection_id: str) -> None:
        try:
            with self.turn(inspection_id) as progress:
                adopt(self.inspector.workspace, inspection_id, progress)
        except Exception as e:
            if (lacking := outage(e)) is None:
                raise
            # the decision stands, and the consent waits
            log.info("the photo of %s is not enrolled yet: %s", inspection_id, lacking)
