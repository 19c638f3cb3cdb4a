"""`refdiff inspections`: filed inspections, and what people decided about them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from refdiff.memory.kinds import Verdict
from refdiff.model.errors import RefDiffError, StorageError, TamperedError
from refdiff.server.cli import output
from refdiff.server.cli.copies import check_targets, copy_artefacts
from refdiff.server.cli.invocation import open_stores, open_workspace, settings
from refdiff.server.cli.options import (
    Html,
    InspectionId,
    Json,
    MaybeInspectionId,
    MaybeProduct,
    Out,
    clean,
    minute,
    shown_path,
    unknown_said,
)
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # importing it takes seconds
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.report.schema import DefectReport
    from refdiff.memory.journals.jobs import JobStore
    from refdiff.memory.records.dispositions import Disposition
    from refdiff.memory.records.inspections import InspectionRecord
    from refdiff.tools.workspace import Workspace

inspections = typer.Typer(
    help="List filed inspections, show one; cancel waiting, resume interrupted ones.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(inspections, name="inspections")


@inspections.command("list", epilog="Example: refdiff inspections list --verdict FAIL --limit 10")
def list_inspections(
    product: MaybeProduct = None,
    verdict: Annotated[
        Verdict | None,
        typer.Option(metavar="PASS|FAIL|REVIEW", case_sensitive=False, help="Only inspections with this verdict."),
    ] = None,
    part: Annotated[str | None, typer.Option("--part", metavar="ID", help="Only this part.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to list.")] = 50,
    offset: Annotated[int, typer.Option(min=0, help="How many to skip.")] = 0,
    _json: Json = False,
) -> None:
    """List filed inspections, newest first."""
    with open_stores() as stores:
        found = stores.inspections.list(product, verdict, part, limit, offset)
        decided = {r.inspection_id: stores.dispositions.get(r.inspection_id) for r in found}
        nothing = unknown_said(stores, product) or (
            "no inspection matches"
            if part is not None or product is not None or verdict is not None or offset
            else "no inspections filed; start one: refdiff inspect --part ID"
        )
    emit(
        {"inspections": [inspection_row(r) | {"disposition": _plain(decided[r.inspection_id])} for r in found]},
        inspection_table(found, decided) if found else nothing,
    )


def inspection_row(record: InspectionRecord) -> dict[str, Any]:
    plain = asdict(record)
    report = plain.pop("report")
    return plain | {name: report.get(name) for name in ("verdict_reason", "image_score", "p_value")}


def inspection_table(found: list[InspectionRecord], decided: dict[str, Disposition | None]) -> Any:
    shown = output.table("Inspection", "Part", "Product", "Verdict", "Filed", "Decided", "Why")
    for r in found:
        d = decided.get(r.inspection_id)
        decision = f"{d.decision} by {d.by}" if d else ("open" if r.verdict == "REVIEW" else "")
        shown.add_row(
            r.inspection_id,
            output.printable(r.part_id),
            r.product,
            output.verdict_text(r.verdict),
            minute(r.created_at),
            output.printable(decision),
            output.printable(_why(r)),
        )
    return shown


def _why(record: InspectionRecord) -> str:
    if record.removed_at is not None:
        return f"removed on {record.removed_at[:10]} by prune"
    return str(record.report.get("verdict_reason", ""))


def _plain(disposition: Disposition | None) -> dict[str, Any] | None:
    return None if disposition is None else asdict(disposition)


@inspections.command(
    "show",
    epilog="Examples: refdiff inspections show insp-20260131-141500-5f3a9c1e · "
    "refdiff inspections show insp-20260131-141500-5f3a9c1e --html report.html",
)
def show_inspection(inspection_id: InspectionId, html: Html = None, out: Out = None, _json: Json = False) -> None:
    """Show one filed inspection. Pictures that were not filed with it are drawn; they stay in the cache for a while."""
    check_targets(html, out)
    with open_workspace() as workspace:
        show_filed(workspace, inspection_id, html=html, out=out)


def show_filed(
    workspace: Workspace, inspection_id: str, decide: bool = False, html: Path | None = None, out: Path | None = None
) -> None:
    """decide: say how to decide it, while nobody has."""
    from refdiff.agent.filing import ReportFiles, filed_report

    stores = workspace.stores
    record, decided = stores.inspections.get(clean(inspection_id)), stores.dispositions.get(clean(inspection_id))
    try:
        report = filed_report(stores, record.inspection_id)
    except ValidationError as e:
        raise StorageError(
            f"inspection {inspection_id} was filed in another format ({e.error_count()} fields differ); "
            "open it with the version that filed it"
        ) from e
    wrong = stores.audit.not_as_filed(record.inspection_id)
    try:
        report = ReportFiles(workspace).report(record.inspection_id)
    except RefDiffError as e:
        if html or out:
            raise
        output.note(f"its pictures cannot be drawn: {e}")
    names = stores.defect_names.of(record.inspection_id)
    lines = [f"called        {n.finding.removeprefix('f')}: {n.name}, by {n.by}" for n in names.values()]
    if decide and not decided:
        judged = " --good|--bad" if record.verdict == "REVIEW" else ""  # without it, nothing is learned
        lines += [f"decide it: refdiff review {record.inspection_id} --accept|--override{judged} --reason TEXT"]
    if decided:
        lines += [f"decided       {decided.decision} by {decided.by} at {decided.created_at}: {decided.reason}"]
    lines += [] if wrong else [f"copied to     {shown_path(p)}" for p in copy_artefacts(report, html, out)]
    artefacts = {name: getattr(report.artefacts, name) for name in record.report["artefacts"]}
    emit(
        record.report
        | {"artefacts": artefacts, "disposition": _plain(decided), "names": {f: asdict(n) for f, n in names.items()}}
        | ({"damaged": wrong} if wrong else {}),
        output.report_view(report),
        output.files_view(report),
        *map(output.printable, lines),
    )
    if wrong is None:
        output.note("filed before its files had digests in the audit: they are not checked")
    elif wrong:
        raise TamperedError(f"inspection {record.inspection_id}: {'; '.join(wrong.values())}")


@inspections.command("cancel", epilog="Example: refdiff inspections cancel insp-20260131-141500-5f3a9c1e")
def cancel_inspection(inspection_id: InspectionId, _json: Json = False) -> None:
    """Cancel an inspection that waits in the server's queue; its photo is kept. The server may be running."""
    with open_stores() as stores:
        job = stores.jobs.cancel(clean(inspection_id), settings().server.user)
    lines = [
        f"{job.inspection_id}: part {job.request['part_id']}, cancelled",
        f"to inspect it after all: refdiff inspections resume {job.inspection_id}",
    ]
    emit(
        {"inspection_id": job.inspection_id, "state": job.state, "error": job.error}, output.printable("\n".join(lines))
    )


@inspections.command("resume", epilog="Example: refdiff inspections resume")
def resume_inspections(
    inspection_id: MaybeInspectionId = None,
    _json: Json = False,
) -> None:
    """Finish inspections that a crash, an outage or a bug interrupted: all of them, or one. Each is filed once.

    Also one that the server gave up or that was cancelled, if you name it. Stop the server first. One that fails again does
    not keep the others from being finished; the exit code is then that of its error.
    """
    from refdiff.agent.inspector import Inspector

    with (
        open_workspace() as workspace,
        output.watching("resuming") as show,
        Inspector(workspace, settings().agent, on_event=show) as inspector,
    ):
        jobs = workspace.stores.jobs
        if inspection_id is not None:
            ids = [clean(inspection_id)]
        else:
            broken = (j.inspection_id for j in jobs.list(("failed",), -1) if not j.is_final)
            ids = list(dict.fromkeys([*inspector.pending(), *broken]))
        reports: list[DefectReport] = []
        failed: dict[str, Exception] = {}
        for one in ids:
            try:
                reports.append(_finish(inspector, jobs, one))
            except Exception as e:  # raised below, once the others are finished
                failed[one] = e
    lines = [f"{r.inspection_id}: part {r.part_id}, {r.verdict}" for r in reports]
    emit(
        {"inspections": [r.model_dump(mode="json") for r in reports], "failed": {i: str(e) for i, e in failed.items()}},
        *([output.printable("\n".join(lines) or "no interrupted inspections")] if reports or not failed else []),
    )
    for one, error in failed.items():
        output.note(f"{one}: {error}")
    if failed:
        raise next(iter(failed.values()))


def _finish(inspector: Inspector, jobs: JobStore, inspection_id: str) -> DefectReport:
    from refdiff.agent.request import InspectionRequest

    job = jobs.find(inspection_id)
    failed = job.error if job is not None and job.state == "failed" else None
    again = None if failed is None else jobs.retry(inspection_id, settings().server.user)
    try:
        if job is None or job.state == "done" or inspector.request_of(inspection_id) is not None:
            report = inspector.resume(inspection_id)
        else:  # it ended before its first checkpoint
            report = inspector.run(InspectionRequest.of_job(job.request))
    except BaseException:
        if failed is not None and again is not None:
            jobs.give_up(again, failed)  # unless a worker has taken it meanwhile
        raise
    jobs.finish(inspection_id)
    return report
