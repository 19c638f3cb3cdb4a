"""`refdiff audit`: list what was changed, export the audit trail, and verify that nobody changed it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.memory.kinds import ChangeKind
from refdiff.model.errors import InputError, TamperedError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_stores, settings
from refdiff.server.cli.options import Json, clean, shown_path
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.audit_store import Checked

audit = typer.Typer(
    help="List, export or verify the tamper-evident audit trail: requests, evidence, reports, decisions, and every "
    "change of what decides.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    app.add_typer(audit, name="audit")


@audit.command(
    epilog="Examples: refdiff audit export --out audit.jsonl · refdiff audit export INSPECTION --out one.jsonl · "
    "refdiff audit export --since 2026-11-01 --out november.jsonl"
)
def export(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write (JSON lines).")],
    inspection_id: Annotated[str | None, typer.Argument(metavar="INSPECTION", help="Only this inspection.")] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only records from this time on (ISO 8601; UTC without a zone)."),
    ] = None,
    _json: Json = False,
) -> None:
    """Write the audit trail to a file: every request, photo, golden, version, tool call, report and disposition.

    Each record carries the hash of all records before it. With REFDIFF_AUDIT_KEY, the file is sealed (HMAC-SHA256).
    """
    from refdiff.memory.audit_export import verify_export, write_export

    if inspection_id is not None and since is not None:
        raise typer.BadParameter("not together with INSPECTION.", param_hint="--since")
    if out.is_dir():
        raise InputError(f"--out {clean(str(out))}: a folder; name the file to write")
    chosen = None if inspection_id is None else clean(inspection_id)
    with open_stores() as stores:
        size = write_export(out, stores.audit.export(chosen, since, by=settings().server.user))
        checked = verify_export(stores.audit, out)
    if checked.problem is not None:  # the file holds what the home holds; it proves nothing
        raise TamperedError(f"exported to {shown_path(out)}, but this home was tampered with at {checked.problem}")
    emit(
        {"file": shown_path(out), "bytes": size, "records": checked.records, "head": checked.head},
        f"{checked.records} records in {shown_path(out)}",
        f"head {checked.head}: keep it elsewhere; a rewritten trail cannot produce it again",
    )


@audit.command("list", epilog="Examples: refdiff audit list · refdiff audit list --kind product --about bracket")
def list_changes(
    kind: Annotated[ChangeKind | None, typer.Option("--kind", help="Only changes of this kind.")] = None,
    about: Annotated[
        str | None, typer.Option("--about", metavar="TEXT", help="Only of this product, golden sample or key.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only changes from this time on (ISO 8601; UTC without a zone)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many to list, the newest.")] = 100,
    _json: Json = False,
) -> None:
    """List who changed what decides: specifications, golden samples, calibrations, settings, keys. Oldest first.

    A specification that was set for a while and put back shows as two changes; the reports in between carry its digest.
    """
    with open_stores() as stores:
        found = stores.audit.changes(kind, clean(about) if about else None, since, limit)
    shown = output.table("Record", "When", "Who", "What", "Change")
    for r in found:
        key = f" ({r.facts['by_key']})" if r.facts.get("by_key") else ""
        failed = f"taken back: {r.facts['failed']}; " if r.facts.get("failed") else ""
        cells = (str(r.seq), r.at[:19].replace("T", " "), f"{r.by}{key}", f"{r.kind} {r.facts.get('subject', '')}".strip(),
                 f"{failed}{r.facts.get('change', '')}")  # fmt: skip
        shown.add_row(*map(output.printable, cells))
    document = [{k: v for k, v in asdict(r).items() if k != "inspection_id"} for r in found]
    emit({"changes": document}, shown if found else "no changes recorded")


@audit.command(
    epilog="Examples: refdiff audit verify audit.jsonl · refdiff audit verify --store · "
    "refdiff audit verify audit.jsonl --store"
)
def verify(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="An exported file.")] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Check this home; with FILE, also that it still holds what the file does.")
    ] = False,
    photos: Annotated[bool, typer.Option("--photos", help="With --store: check every inspected photo too.")] = False,
    _json: Json = False,
) -> None:
    """Check an exported file or this home, and name all that was tampered with, damaged or lost.

    A home is checked with the pages and pictures of its reports. Exit code: 0 intact, 65 not.
    """
    from refdiff.memory.audit_export import verify_export

    if file is None and not store:
        raise typer.BadParameter("name a FILE, or give --store.", param_hint="FILE")
    if photos and not store:
        raise typer.BadParameter("needs --store.", param_hint="--photos")
    checks: list[tuple[str, Checked]] = []
    with open_stores() as stores:
        if file is not None:
            checks.append((clean(str(file)), verify_export(stores.audit, file, against_store=store)))
        if store:
            checks.append((str(stores.settings.home), stores.audit.verify_store(photos, artefacts=True)))
    wrong = [(what, problem) for what, c in checks for problem in c.problems]
    notes = [note for _, c in checks for note in c.notes]
    if wrong:
        (what, problem), more = wrong[0], len(wrong) - 1
        error = TamperedError(f"{what}: not intact: {problem}" + (f"; and {more} more" if more else ""))
        if current().as_json:
            details = {"type": "TamperedError", "message": str(error), "exit_code": error.exit_code}
            emit({"error": details, "intact": False, "checks": [_plain(w, c) for w, c in checks]})
        for what, problem in wrong[1:]:
            output.note(f"{what}: {problem}")
        for text in notes:
            output.note(text)
        raise error
    shown = [
        line for what, c in checks for line in (f"{what}: intact, {c.records} records", f"head {c.head}", *c.notes)
    ]
    emit({"intact": True, "checks": [_plain(w, c) for w, c in checks]}, *shown)


def _plain(what: str, checked: Checked) -> dict[str, Any]:
    return {"checked": what} | asdict(checked)
