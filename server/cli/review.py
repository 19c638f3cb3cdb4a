"""`refdiff review` and `refdiff rates`: what people decide, what is learned from it, and how often they disagree."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from refdiff.memory.records.adoptions import Adoption
from refdiff.memory.records.blind_checks import Waiting
from refdiff.memory.records.dispositions import Decision, Judgement
from refdiff.memory.stores import Stores
from refdiff.model.errors import InputError
from refdiff.server.cli import output
from refdiff.server.cli.inspections import inspection_row, inspection_table, show_filed
from refdiff.server.cli.options import Json, MaybeProduct, clean, open_stores, open_workspace
from refdiff.server.cli.output import answer
from refdiff.server.settings import ServerSettings, load

_LISTED = 200


def register(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: refdiff review · refdiff review INSPECTION --accept --reason 'scratch, as reported' · "
        "refdiff review INSPECTION --override --as-reference --reason 'dust, part is good' · "
        "refdiff review --blind · refdiff review INSPECTION --blind --good"
    )(review)
    app.command(epilog="Example: refdiff rates --product bracket --since 2026-11-01")(rates)


def review(
    inspection_id: Annotated[str | None, typer.Argument(metavar="INSPECTION")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="The filed verdict holds.")] = False,
    override: Annotated[bool, typer.Option("--override", help="The filed verdict does not hold.")] = False,
    good: Annotated[
        bool | None, typer.Option("--good/--bad", help="What the part is; says it for a REVIEW and for a blind check.")
    ] = None,
    as_reference: Annotated[
        bool, typer.Option("--as-reference", help="The photo of this good part may become a golden sample.")
    ] = False,
    blind: Annotated[
        bool, typer.Option("--blind", help="The random sample that is judged without the verdict, for `refdiff rates`.")
    ] = False,
    reason: Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why; kept with the report.")] = None,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides (default: you).")] = None,
    _json: Json = False,
) -> None:
    """List the inspections that wait for a person, or decide one. The filed report is never rewritten.

    What people decide is learned from: a good part may become a reference, a confirmed defect is remembered.
    """
    judged: Judgement | None = None if good is None else "good" if good else "bad"
    if blind:
        if accept or override:
            raise typer.BadParameter("judge the part, not the verdict: --good or --bad.", param_hint="--blind")
        _blind(inspection_id, judged, as_reference, reason, by)
        return
    decision = _decision(inspection_id, accept, override, reason)
    if decision is None and (judged is not None or as_reference):
        named = "--as-reference" if as_reference else "--good/--bad"
        raise typer.BadParameter("needs --accept or --override (or --blind).", param_hint=named)
    if inspection_id is None:
        with open_stores() as stores:
            waiting = stores.inspections.open_reviews()
        hint = "decide one: refdiff review INSPECTION --accept|--override --good|--bad --reason TEXT"
        shown = (inspection_table(waiting, {}), hint) if waiting else ("no inspection waits for a review",)
        answer.give({"open_reviews": [inspection_row(r) for r in waiting]}, *shown)
        return
    inspection_id = clean(inspection_id)
    with open_stores() as stores:
        if decision is None:
            show_filed(
                stores, inspection_id, f"decide it: refdiff review {inspection_id} --accept|--override --reason TEXT"
            )
            return
        verdict = stores.inspections.get(inspection_id).verdict  # a mistyped id is told before the model loads
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.people.reviews import dispose
    from refdiff.agent.settings import AgentSettings

    who, settings = clean(by or load(ServerSettings).user), load(AgentSettings)
    with open_workspace() as workspace, Inspector(workspace, settings) as inspector:
        made = dispose(inspector, inspection_id, decision, who, clean(reason or ""), judged, as_reference)
        learned = workspace.stores.adoptions.get(inspection_id)
    if verdict == "REVIEW" and judged is None:
        output.note("nothing is learned from it, since it does not say what the part is: add --good or --bad next time")
    lines = [f"{made.inspection_id}: {made.decision} by {made.by}, {made.created_at}"]
    answer.give(asdict(made) | {"learned": _plain(learned)}, *lines, *_learned_lines(as_reference, learned))


def _blind(
    inspection_id: str | None, judged: Judgement | None, as_reference: bool, note: str | None, by: str | None
) -> None:
    """List what waits for a blind check (with its photo, without its verdict), or answer it."""
    if inspection_id is None and (judged is not None or as_reference or note is not None):
        raise typer.BadParameter("say which one; `refdiff review --blind` lists them.", param_hint="INSPECTION")
    with open_stores() as stores:
        if inspection_id is None:
            waiting = stores.blind_checks.waiting(limit=_LISTED)
            shown = _waiting_table(stores, waiting) if waiting else "no part waits for a blind check"
            hint = "look at the photo, not at the report; then: refdiff review INSPECTION --blind --good|--bad"
            answer.give({"blind_checks": [_blind_row(stores, w) for w in waiting]}, shown, *([hint] if waiting else []))
            return
        inspection_id = clean(inspection_id)
        if judged is None:
            raise typer.BadParameter("say what the part is.", param_hint="--good/--bad")
    from refdiff.agent.people.reviews import judge_blind

    who = clean(by or load(ServerSettings).user)
    with open_workspace() as workspace:
        made = judge_blind(workspace, inspection_id, judged, who, clean(note or ""), as_reference)
        learned = workspace.stores.adoptions.get(inspection_id)
    line = f"{made.inspection_id}: {made.judged}, seen by {made.judged_by}, {made.judged_at}"
    answer.give(asdict(made) | {"learned": _plain(learned)}, line, *_learned_lines(as_reference, learned))


def _waiting_table(stores: Stores, waiting: list[Waiting]) -> Any:
    shown = output.table("Inspection", "Part", "Product", "Filed", "Photo")
    for w in waiting:
        photo = str(stores.images.path(w.sha256))
        shown.add_row(
            w.inspection_id, output.printable(w.part_id), w.product, w.created_at[:16].replace("T", " "), photo
        )
    return shown


def _blind_row(stores: Stores, waiting: Waiting) -> dict[str, Any]:
    return asdict(waiting) | {"photo": str(stores.images.path(waiting.sha256))}


def _plain(learned: Adoption | None) -> dict[str, Any] | None:
    return None if learned is None else asdict(learned)


def _learned_lines(asked: bool, learned: Adoption | None) -> list[str]:
    if learned is not None:
        return [
            f"as reference: {output.printable(learned.outcome)}"
            + (f" as {learned.golden_id}" if learned.golden_id else "")
        ]
    waits = (
        "as reference: not yet, the golden bank is in use; a server that has it goes on by itself between inspections, "
        "else `refdiff goldens adopt` does"
    )
    return [waits] if asked else []


def _decision(inspection_id: str | None, accept: bool, override: bool, reason: str | None) -> Decision | None:
    """Raises BadParameter (usage) for options that do not fit together, InputError for an empty reason."""
    if accept and override:
        raise typer.BadParameter("not together with --override.", param_hint="--accept")
    if not accept and not override:
        if reason is not None:
            raise typer.BadParameter("needs --accept or --override.", param_hint="--reason")
        return None
    if inspection_id is None:
        raise typer.BadParameter("say which one; `refdiff review` lists them.", param_hint="INSPECTION")
    if reason is None:
        raise typer.BadParameter("say why the verdict holds or not.", param_hint="--reason")
    if not reason.strip():
        raise InputError("--reason is empty: say why, it is kept with the report")
    return "accept" if accept else "override"


def rates(
    product: MaybeProduct = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Inspections from then on (ISO 8601).")
    ] = None,
    _json: Json = False,
) -> None:
    """How often system and people disagree: false rejects, escapes and kappa, from the random blind checks alone.

    Decisions of `refdiff review` give no rate, because people look at what was failed and know the verdict.
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
        f"{found.n_inspections} inspections, {found.n_drawn} drawn for a blind check, {found.n_waiting} of them wait",
        f"dispositions (no rate, people knew the verdict): {decided}",
        "in brackets: events/parts and the 95 % interval",
    ]
    answer.give(found.model_dump(mode="json"), shown, *lines, *(f"note: {n}" for n in found.notes))
