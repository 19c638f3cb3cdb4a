"""Enrolling goldens again from their stored photos: after a change of weights or working size, and after damage."""

from __future__ import annotations

from dataclasses import dataclass, field

from refdiff.memory.golden_bank.bank_file import DamagedGolden
from refdiff.memory.golden_bank.golden import Golden, make_golden_id
from refdiff.model.errors import InputError
from refdiff.model.progress import Progress, silent
from refdiff.tools.framing.frames import found_place
from refdiff.tools.inspection.frame_vectors import golden_vectors
from refdiff.tools.workspace import Workspace

_GUESSED = "restored after its record was damaged: part group, scale and station are lost; is it a good part?"


@dataclass(frozen=True)
class NotRestored:
    """A golden that could not be enrolled again."""

    golden_id: str
    filename: str  # "" where that is lost too
    reason: str  # in words, with the way out


@dataclass(frozen=True)
class ReenrollResult:
    """The outcome of one re-enrolment."""

    restored: list[Golden] = field(default_factory=list)  # in use again, with the status and the notes they had
    refused: list[NotRestored] = field(default_factory=list)


def reenroll(
    workspace: Workspace, product: str | None = None, *, by: str = "refdiff", progress: Progress = silent
) -> ReenrollResult:
    """Encode the photos of goldens that another encoder has, or that are damaged, and enrol them with this encoder.

    product: None for all. by: who does it. Each keeps its id, status, part group, scale and who enrolled it. Raises
    StorageError and UnavailableError where the stores fail; what was restored before stays, and the same call continues.
    """
    bank = workspace.bank
    wanted = {g.golden_id: g for g in bank.of_other_encoders(product)}
    result = ReenrollResult()
    for damaged in bank.damaged():
        golden = damaged.golden or wanted.get(damaged.golden_id) or _recognised(workspace, damaged)
        if golden is None:
            reason = f"{damaged.reason}, and no stored photo is this golden's; enrol its photo again"
            result.refused.append(NotRestored(damaged.golden_id, "", reason))
        elif product in (None, golden.product):
            wanted[golden.golden_id] = golden
    for done, golden in enumerate(wanted.values(), start=1):
        try:
            place = None  # photos are placed when that is first needed; what was measured is found where it lies
            if workspace.kind(golden.product) != "photo":
                place = workspace.stores.frames.get(golden.golden_id) or found_place(workspace, golden)
            bank.add(golden, *golden_vectors(workspace, golden, place), by)
            if place is not None:
                workspace.stores.frames.put(place)
            result.restored.append(golden)
        except InputError as e:
            result.refused.append(NotRestored(golden.golden_id, golden.filename, str(e)))
        progress("enrolling again", done, len(wanted))
    return result


def _recognised(workspace: Workspace, damaged: DamagedGolden) -> Golden | None:
    """The golden of a damaged record: its id is made of its product and the sha256 of its photo, so both can be found."""
    products = [p.name for p in workspace.stores.products.list()]
    for sha256 in workspace.stores.images.ids():
        for name in products:
            if make_golden_id(name, sha256) == damaged.golden_id:
                return Golden(damaged.golden_id, name, sha256, status="flagged", note=_GUESSED)
    return None
