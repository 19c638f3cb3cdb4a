"""`refdiff enroll` and `refdiff goldens`: the golden samples that parts are compared with."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refdiff.memory.golden_bank.golden import Golden, GoldenStatus
from refdiff.model.errors import InputError
from refdiff.model.wording import few
from refdiff.server.cli import output
from refdiff.server.cli.invocation import current, open_workspace, settings
from refdiff.server.cli.options import (
    Conditions,
    Json,
    MaybeProduct,
    ProductName,
    ScaleMm,
    clean,
    conditions_of,
    minute,
    unknown_said,
)
from refdiff.server.cli.output import emit

if TYPE_CHECKING:
    from refdiff.tools.golden_samples.enroll import EnrollResult

_REASONS_SHOWN = 20

goldens = typer.Typer(
    help="List golden samples; flag, retire or reactivate one; enrol all again.", no_args_is_help=True
)
GoldenIds = Annotated[list[str], typer.Argument(metavar="GOLDEN...", help="Golden ids, like g-0123456789ab.")]
Note = Annotated[str, typer.Option("--note", help="Reason; kept with the golden sample.")]


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff enroll --product bracket --scale-mm-per-px 0.05 photos/good/")(enroll)
    app.add_typer(goldens, name="goldens")


def enroll(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE|FOLDER...", help="Photos of good parts.")],
    product: ProductName,
    scale_mm_per_px: ScaleMm = None,
    part_group: Annotated[
        str | None, typer.Option("--part-group", metavar="G", help="Label of the one part that all these photos show.")
    ] = None,
    station: Annotated[str | None, typer.Option(help="Where the photos were taken.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            metavar="photo|thermal|depth|cloud",
            help="Of what kind the product's files are; said once. Default: what it is, or photo.",
        ),
    ] = None,
    condition: Conditions = None,
    _json: Json = False,
) -> None:
    """Add photos of good parts to the golden bank.

    Folders are searched recursively; files that are no images are left out and counted.
    Enrolling a photo again is harmless: it is only reported.

    A product's files are photos, or of the --kind that is said with its first golden sample. Thermal files (FLIR radiometric
    JPEG, radiometric TIFF, CSV) are compared in kelvin, height maps (depth: organised xyz TIFF, 16-bit or float TIFF, 16-bit
    PNG) and point clouds (cloud: PLY, PCD, STL, XYZ) in mm; what a number in a file means is stated first, with `refdiff
    product set`. Where that says `depth: colour`, each height map comes with a colour photo of the same raster: part.tiff
    and part.png, or xyz/part.tiff and rgb/part.png.
    """
    from refdiff.tools.golden_samples.enroll import enroll as enroll_files
    from refdiff.tools.golden_samples.fit import is_due
    from refdiff.tools.golden_samples.photos import left_out

    user = settings().server.user
    with open_workspace() as workspace, output.progress(output.printable(product)) as moved:
        result = enroll_files(
            workspace,
            product,
            images,
            scale_mm_per_px=scale_mm_per_px,
            part_group=part_group,
            station=station,
            enrolled_by=user,
            kind=kind,
            conditions=conditions_of(condition),
            progress=moved,
        )
        due = is_due(workspace, result.product)
    document = _document(result)
    if result.n_in_bank == 0:
        reasons = few((f"{clean(str(r.path))}: {r.reason}" for r in result.refused), between="; ")
        error = InputError(f"no good sample of {result.product!r} is in the bank: {reasons or 'no image'}")
        if current().as_json:
            details = {"type": "InputError", "message": str(error), "exit_code": error.exit_code}
            emit({"error": details} | document)
        raise error
    emit(document, _summary(result))
    for title, lines in (("refused", result.refused), ("already there", result.already_there)):
        for line in lines[:_REASONS_SHOWN]:
            output.say(f"{title}: {clean(str(line.path))}: {line.reason}", "red" if title == "refused" else "dim")
        if len(lines) > _REASONS_SHOWN:
            output.say(f"{title}: and {len(lines) - _REASONS_SHOWN} more (--json lists them all)")
    if result.others:
        output.note(f"left out: {left_out(result.others)}")
    for text in result.notes:
        output.note(text)
    for golden in result.flagged:
        output.note(
            f"flagged {golden.golden_id} ({golden.filename}): {golden.note} It stays in use; check it, then run "
            f"`refdiff goldens activate {golden.golden_id}` or `refdiff goldens retire {golden.golden_id}`"
        )
    if due:
        output.note(output.fit_hint(result.product))


def _summary(result: EnrollResult) -> str:
    parts = [f"{len(result.added)} enrolled"]
    parts += [f"{len(result.already_there)} already there"] if result.already_there else []
    parts += [f"{len(result.refused)} refused"] if result.refused else []
    others = "1 other file" if len(result.others) == 1 else f"{len(result.others)} other files"
    parts += [f"{others} left out"] if result.others else []
    parts += [f"{len(result.flagged)} flagged"] if result.flagged else []
    return f"{result.product}: {', '.join(parts)}; {result.n_in_bank} in the bank"


def _document(result: EnrollResult) -> dict[str, Any]:
    def lines(name: str) -> list[dict[str, str]]:
        return [{"path": clean(str(r.path)), "reason": r.reason} for r in getattr(result, name)]

    return {
        "product": result.product,
        "added": [asdict(g) for g in result.added],
        "already_there": lines("already_there"),
        "refused": lines("refused"),
        "left_out": [clean(str(path)) for path in result.others],
        "flagged": [asdict(g) for g in result.flagged],
        "notes": result.notes,
        "n_in_bank": result.n_in_bank,
    }


@goldens.command("reenroll", epilog="Example: refdiff goldens reenroll --product bracket")
def reenroll_goldens(product: MaybeProduct = None, _json: Json = False) -> None:
    """Enrol golden samples again from their stored photos: after other weights, another working size, or damage.

    Each keeps its id, status, part group and scale. The next inspection of the product calibrates again.
    """
    from refdiff.tools.golden_samples.reenroll import reenroll

    with open_workspace() as workspace, output.progress("enrolling again") as moved:
        result = reenroll(workspace, product, by=settings().server.user, progress=moved)
    for refused in result.refused[:_REASONS_SHOWN]:
        output.say(f"refused: {refused.golden_id} {clean(refused.filename)}: {refused.reason}", "red")
    if result.refused and not result.restored:
        raise InputError(f"none of {len(result.refused)} golden samples could be enrolled again; see the reasons above")
    counts = Counter(g.product for g in result.restored)
    lines = [f"{name}: {count} enrolled again" for name, count in sorted(counts.items())]
    lines += [f"{len(result.refused)} refused"] if result.refused else []
    document = {"restored": [asdict(g) for g in result.restored], "refused": [asdict(r) for r in result.refused]}
    emit(
        document, output.printable("\n".join(lines) or "all golden samples are in use; there is nothing to enrol again")
    )


@goldens.command("list", epilog="Example: refdiff goldens list --product bracket --status flagged")
def list_goldens(
    product: MaybeProduct = None,
    status: Annotated[
        GoldenStatus | None, typer.Option(metavar="active|flagged|retired", help="Only goldens with this status.")
    ] = None,
    _json: Json = False,
) -> None:
    """List the golden samples, oldest first."""
    statuses = None if status is None else [status]
    with open_workspace() as workspace:
        product = None if product is None else workspace.stores.products.name_of(product)
        found, notes = workspace.bank.list(product, statuses), workspace.bank.notes(product)
        unknown = unknown_said(workspace.stores, product)
    stations = ["Station"] if any(golden.station for golden in found) else []
    shown = output.table("Golden", "Product", "Status", "Part group", *stations, "mm/px", "File", "Enrolled", "Note",
                          right=("mm/px",))  # fmt: skip
    for golden in found:
        scale = "" if golden.scale_mm_per_px is None else f"{golden.scale_mm_per_px:g}"
        cells = (golden.golden_id, golden.product, golden.status, golden.part_group or "",
                 *(golden.station or "" for _ in stations), scale, golden.filename,
                 minute(golden.enrolled_at), golden.note)  # fmt: skip
        shown.add_row(*map(output.printable, cells))
    nothing = "no golden sample is in use here" if notes else unknown or _none_found(status)
    emit({"goldens": [asdict(g) for g in found], "notes": notes}, shown if found else nothing)
    for text in notes:
        output.note(text)


def _none_found(status: str | None) -> str:
    if status is not None:
        return f"no golden sample is {status}"
    return "no golden samples; add some: refdiff enroll --product P FOLDER"


@goldens.command(epilog="Example: refdiff goldens flag g-0123456789ab --note 'scratch at the rim?'")
def flag(ids: GoldenIds, note: Note = "", _json: Json = False) -> None:
    """Mark golden samples for a person to check; they stay in use."""
    _change(ids, "flagged", note)


@goldens.command(epilog="Example: refdiff goldens retire g-0123456789ab --note 'old revision'")
def retire(ids: GoldenIds, note: Note = "", _json: Json = False) -> None:
    """Take golden samples out of use. They are kept; the next inspection of the product calibrates again."""
    _change(ids, "retired", note)


@goldens.command(epilog="Example: refdiff goldens activate g-0123456789ab")
def activate(ids: GoldenIds, note: Note = "", _json: Json = False) -> None:
    """Put flagged or retired golden samples back into use."""
    _change(ids, "active", note)


@goldens.command(epilog="Example: refdiff goldens adopt")
def adopt(_json: Json = False) -> None:
    """Enrol photos that were approved as references (review --as-reference) while the golden bank was in use."""
    from refdiff.tools.golden_samples.adopt import adopt_all

    with open_workspace() as workspace:
        made = adopt_all(workspace)
    lines = [f"{m.inspection_id}: {m.outcome}" + (f" as {m.golden_id}" if m.golden_id else "") for m in made]
    emit(
        {"learned": [asdict(m) for m in made]},
        output.printable("\n".join(lines) or "no photo was adopted"),
    )


def _change(ids: list[str], status: GoldenStatus, note: str) -> None:
    user = settings().server.user
    note = clean(note).strip() or f"{status} by {user}"
    with open_workspace() as workspace:
        for golden_id in ids:  # all or nothing: a mistyped id changes none
            workspace.bank.get(golden_id)
        changed: list[Golden] = [workspace.bank.set_status(golden_id, status, note, user) for golden_id in ids]
    lines = [f"{g.golden_id} ({g.product}, {output.printable(g.filename)}): {g.status}" for g in changed]
    emit({"goldens": [asdict(g) for g in changed]}, "\n".join(lines))
