"""`refdiff review` and `refdiff rates`: decisions of people, and how often they disagree with the system."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.model.errors import InputError
from refdiff.server.cli import output
from refdiff.server.cli.inspections import inspection_row, inspection_table, show_filed
from refdiff.server.cli.invocation import open_stores, open_workspace, settings
from refdiff.server.cli.options import Json, MaybeInspectionId, MaybeProduct, clean, minute
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # importing it takes seconds
    from refdiff.agent.people.reviews import Reviews
    from refdiff.memory.records.adoptions import Adoption, WaitingReference
    from refdiff.memory.records.blind_checks import Waiting
    from refdiff.memory.records.dispositions import Decision, Judgement
    from refdiff.memory.stores import Stores

_LISTED = 200
_HUNG = "approved, but its enrolment hung twice; once that is mended, approve it again"


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff review · refdiff review INSPECTION --accept --reason 'scratch, as reported' · "
        "refdiff review INSPECTION --override --as-reference --reason 'dust, part is good' · "
        "refdiff review --blind · refdiff review INSPECTION --blind --good"
    )(review)
    app.command(epilog="Example: refdiff rates --product bracket --since 2026-11-01")(rates)


def review(
    inspection_id: MaybeInspectionId = None,
    accept: Annotated[bool, typer.Option("--accept", help="The filed verdict is right.")] = False,
    override: Annotated[bool, typer.Option("--override", help="The filed verdict is wrong.")] = False,
    good: Annotated[
        bool | None,
        typer.Option("--good/--bad", help="What the part really is; needed for a REVIEW and for a blind check."),
    ] = None,
    as_reference: Annotated[
        bool, typer.Option("--as-reference", help="Let the photo of this good part become a golden sample.")
    ] = False,
    reference: Annotated[
        bool | None,
        typer.Option(
            "--approve-reference/--refuse-reference",
            help="Decide about a photo that somebody proposed as a golden sample; also again, if its enrolment hung "
            "twice.",
        ),
    ] = None,
    blind: Annotated[
        bool,
        typer.Option(
            "--blind",
            help="List or answer blind checks: a random sample judged without the verdict, for `refdiff rates`.",
        ),
    ] = False,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Reason; kept with the report.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides; default: you.")] = None,
    _json: Json = False,
) -> None:
    """List the inspections that are waiting for a person, or decide one. The filed report never changes.

    Decisions are used later: a good part may become a reference, a confirmed defect is remembered. A reference that an
    inspector proposed over HTTP waits for an admin or a second person; whoever runs this command is an admin.
    """
    if reference is not None:
        if accept or override or good is not None or as_reference or blind:
            raise typer.BadParameter("not together with another decision.", param_hint="--approve-reference")
        _decide_reference(inspection_id, reference, reason, by)
        return
    judged: Judgement | None = None if good is None else "good" if good else "bad"
    if blind:
        if accept or override:
            raise typer.BadParameter(
                "a blind check judges the part, not the verdict: give --good or --bad.", param_hint="--blind"
            )
        _blind(inspection_id, judged, as_reference, reason, by)
        return
    decision = _decision(inspection_id, accept, override, reason)
    if decision is None and (judged is not None or as_reference):
        named = "--as-reference" if as_reference else "--good/--bad"
        raise typer.BadParameter("needs --accept or --override (or --blind).", param_hint=named)
    if inspection_id is None:
        with open_stores() as stores:
            waiting, proposed = stores.inspections.open_reviews(), stores.adoptions.waiting()
        hint = "decide one: refdiff review INSPECTION --accept|--override --good|--bad --reason TEXT"
        shown = (inspection_table(waiting, {}), hint) if waiting else ("no inspection is waiting for review",)
        document = {
            "open_reviews": [inspection_row(r) for r in waiting],
            "references": [asdict(p) for p in proposed],
        }
        emit(document, *shown, *_proposed_view(proposed))
        return
    inspection_id = clean(inspection_id)
    if decision is None:
        with open_workspace() as workspace:
            show_filed(workspace, inspection_id, decide=True)
        return
    with open_stores() as stores:
        verdict = stores.inspections.get(inspection_id).verdict  # a mistyped id is reported before the model loads
    who = clean(by or settings().server.user)
    with _people() as (people, stores):
        made = people.dispose(inspection_id, decision, who, clean(reason or ""), judged, as_reference, admin=True)
        adoption = stores.adoptions.get(inspection_id)
    if verdict == "REVIEW" and judged is None:
        output.note("nothing can be learned from this decision without --good or --bad; add one next time")
    lines = [f"{made.inspection_id}: {made.decision} by {made.by}, {made.created_at}"]
    emit(asdict(made) | {"learned": _plain(adoption)}, *lines, *_adoption_lines(as_reference, adoption))


@contextmanager
def _people() -> Iterator[tuple[Reviews, Stores]]:
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.people.reviews import Reviews

    with open_workspace() as workspace, Inspector(workspace, settings().agent) as inspector:
        yield Reviews(inspector), workspace.stores


def _blind(
    inspection_id: str | None, judged: Judgement | None, as_reference: bool, note: str | None, by: str | None
) -> None:
    """List open blind checks (with the photo, without the verdict), or answer one."""
    if inspection_id is None and (judged is not None or as_reference or note is not None):
        raise typer.BadParameter("say which one; `refdiff review --blind` lists them.", param_hint="INSPECTION")
    with open_stores() as stores:
        if inspection_id is None:
            waiting = stores.blind_checks.waiting(limit=_LISTED)
            shown = _waiting_table(stores, waiting) if waiting else "no part is waiting for a blind check"
            hint = "look at the photo, not at the report, then: refdiff review INSPECTION --blind --good|--bad"
            emit({"blind_checks": [_blind_row(stores, w) for w in waiting]}, shown, *([hint] if waiting else []))
            return
        inspection_id = clean(inspection_id)
        if judged is None:
            raise typer.BadParameter("say what the part is.", param_hint="--good/--bad")
    who = clean(by or settings().server.user)
    with _people() as (people, stores):
        answer = people.judge_blind(inspection_id, judged, who, clean(note or ""), as_reference, admin=True)
        adoption = stores.adoptions.get(inspection_id)
    line = f"{answer.inspection_id}: {answer.judged}, seen by {answer.judged_by}, {answer.judged_at}"
    emit(asdict(answer) | {"learned": _plain(adoption)}, line, *_adoption_lines(as_reference, adoption))


def _decide_reference(inspection_id: str | None, approved: bool, note: str | None, by: str | None) -> None:
    """Approve or refuse a photo that was proposed as a golden sample."""
    if inspection_id is None:
        raise typer.BadParameter("say which one; `refdiff review` lists them.", param_hint="INSPECTION")
    inspection_id, who = clean(inspection_id), clean(by or settings().server.user)
    with _people() as (people, stores):
        made = people.decide_reference(inspection_id, approved, who, clean(note or ""), admin=True)
        adoption = stores.adoptions.get(inspection_id)
    said = "approved" if approved else "refused"
    line = f"{made.inspection_id}: reference {said} by {made.by}, {made.created_at}"
    emit(asdict(made) | {"learned": _plain(adoption)}, line, *_adoption_lines(approved, adoption))


def _proposed_view(proposed: list[WaitingReference]) -> list[Any]:
    if not proposed:
        return []
    shown = output.table("Inspection", "Part", "Product", "Proposed", "By", "Why", title="Proposed as golden samples")
    for p in proposed:
        why = f"{p.reason} ({_HUNG})" if p.hung else p.reason
        cells = (p.inspection_id, p.part_id, p.product, minute(p.at), p.by, why)
        shown.add_row(*map(output.printable, cells))
    return [shown, "decide one: refdiff review INSPECTION --approve-reference|--refuse-reference"]


def _waiting_table(stores: Stores, waiting: list[Waiting]) -> Any:
    shown = output.table("Inspection", "Part", "Product", "Filed", "Photo")
    for w in waiting:
        photo = stores.images.where(w.sha256)
        shown.add_row(w.inspection_id, output.printable(w.part_id), w.product, minute(w.created_at), photo)
    return shown


def _blind_row(stores: Stores, waiting: Waiting) -> dict[str, Any]:
    return asdict(waiting) | {"photo": stores.images.where(waiting.sha256)}


def _plain(adoption: Adoption | None) -> dict[str, Any] | None:
    return None if adoption is None else asdict(adoption)


def _adoption_lines(asked: bool, adoption: Adoption | None) -> list[str]:
    if adoption is not None:
        return [
            f"as reference: {output.printable(adoption.outcome)}"
            + (f" as {adoption.golden_id}" if adoption.golden_id else "")
        ]
    waits = (
        "as reference: not yet, the golden bank is in use; a running server adopts the photo between inspections, "
        "otherwise run `refdiff goldens adopt`"
    )
    return [waits] if asked else []


def _decision(inspection_id: str | None, accept: bool, override: bool, reason: str | None) -> Decision | None:
    """Raises BadParameter (usage) for options that exclude each other, InputError for an empty reason."""
    if accept and override:
        raise typer.BadParameter("not together with --override.", param_hint="--accept")
    if not accept and not override:
        if reason is not None:
            raise typer.BadParameter("needs --accept or --override.", param_hint="--reason")
        return None
    if inspection_id is None:
        raise typer.BadParameter("say which one; `refdiff review` lists them.", param_hint="INSPECTION")
    if reason is None:
        raise typer.BadParameter("say why the verdict is right or wrong.", param_hint="--reason")
    if not reason.strip():
        raise InputError("--reason is empty; it is kept with the report, so give one")
    return "accept" if accept else "override"


def rates(
    product: MaybeProduct = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only inspections from this time on (ISO 8601).")
    ] = None,
    _json: Json = False,
) -> None:
    """Show how often people and system disagree: false rejects, escapes and kappa, from blind checks only.

    Review decisions are a biased sample (people know the verdict), so they do not count towards the rates.
    """
    from refdiff.agent.people.rates import PeriodRates, Rate
    from refdiff.agent.people.rates import rates as measure

    with open_stores() as stores:
        found = measure(stores, product, since)

    def cell(rate: Rate) -> str:
        if rate.value is None:
            return "–"
        counts = f"{rate.events}/{rate.n}" if rate.events is not None else f"n {rate.n}"
        spread = "{:.2f} to {:.2f}".format(*rate.interval) if rate.interval else "too few for an interval"
        return f"{rate.value:.3f} ({counts}, {spread})"

    shown = output.table("Period", "Good", "Bad", "False rejects", "Escapes", "Reviews", "Kappa", right=("Good", "Bad"))
    periods: list[PeriodRates] = [*found.months, found.overall]
    for p in periods:
        shown.add_row(
            p.period, str(p.n_good), str(p.n_bad), cell(p.false_reject), cell(p.escape), cell(p.review), cell(p.kappa)
        )
    decided = ", ".join(f"{n} {name}" for name, n in found.dispositions.items())
    lines = [
        f"{found.n_inspections} inspections, {found.n_drawn} drawn for a blind check, {found.n_waiting} of them waiting",
        f"dispositions (not counted in the rates: people knew the verdict): {decided}",
        "in brackets: events/parts and the 95 % interval",
    ]
    emit(found.model_dump(mode="json"), shown, *lines, *(f"note: {n}" for n in found.notes))
