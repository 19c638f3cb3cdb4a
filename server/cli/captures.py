"""`refdiff captures`: the photos of parts that are waiting to be inspected, or were."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_stores, settings
from refdiff.server.cli.options import Json, MaybeProduct, minute, unknown_said
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.rows.captures import Capture

captures = typer.Typer(help="List captured photos of parts, or remove some.", no_args_is_help=True)
MaybePart = Annotated[str | None, typer.Option("--part", metavar="ID", help="Photos of this part only.")]


def register(app: typer.Typer) -> None:
    app.add_typer(captures, name="captures")


@captures.command("list", epilog="Example: refdiff captures list --part 4412")
def list_captures(part: MaybePart = None, product: MaybeProduct = None, _json: Json = False) -> None:
    """List captured photos, newest first."""
    with open_stores() as stores:
        found = stores.captures.list(part, product)
        given = part is not None or product is not None
        nothing = unknown_said(stores, product) or ("no captured photo matches" if given else "no captured photos")
    emit({"captures": [asdict(c) for c in found]}, _table(found) if found else nothing)


@captures.command("remove", epilog="Example: refdiff captures remove --part 80 --product Alien")
def remove_captures(
    capture: Annotated[str | None, typer.Argument(metavar="CAPTURE", help="Capture id, like c-0123456789ab.")] = None,
    part: MaybePart = None,
    product: MaybeProduct = None,
    _json: Json = False,
) -> None:
    """Forget photos that were captured under a wrong part or product. Filed reports keep theirs."""
    with open_stores() as stores:
        gone = stores.captures.remove(capture, part, product, by=settings().server.user)
    emit({"removed": [asdict(c) for c in gone]}, _table(gone), f"{len(gone)} removed")


def _table(found: list[Capture]) -> Table:
    shown = output.table("Capture", "Part", "Product", "Taken", "File")
    for c in found:
        cells = (c.capture_id, c.part_id, c.product, minute(c.created_at), c.filename)
        shown.add_row(*map(output.printable, cells))
    return shown
