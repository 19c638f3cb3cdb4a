"""`refdiff defects`: what people call the findings of reports; later findings like them take those names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_workspace, settings
from refdiff.server.cli.options import InspectionId, Json, MaybeProduct, ProductName, clean, minute, unknown_said
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # importing it takes seconds
    from refdiff.agent.people.names import DefectNames
    from refdiff.memory.records.defect_names import Naming

defects = typer.Typer(
    help="Name the findings of reports; later findings like them take those names.", no_args_is_help=True
)
FindingId = Annotated[str, typer.Argument(metavar="FINDING", help="Number of the finding in the report, like 2.")]
Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Reason; kept with the name.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who says so; default: you.")]


def register(app: typer.Typer) -> None:
    app.add_typer(defects, name="defects")


@defects.command(
    "name", epilog="Examples: refdiff defects name INSPECTION 2 'solder ball' · refdiff defects name INSPECTION 1 dust"
)
def name_defect(
    inspection_id: InspectionId,
    finding: FindingId,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What you call it: 1 to 48 letters, digits, blanks and .,/()+&'#%_-")
    ],
    note: Note = "",
    by: By = None,
    _json: Json = False,
) -> None:
    """Name a finding, or correct its name. The filed report stays as it is; later reports use the name.

    A name is given from findings of 3 parts on, once a second kind of defect has a name too, where leaving one out shows it
    to be right often enough (REFDIFF_NAME_PRECISION). It decides nothing: verdict and limits go by the network's own types.
    """
    with _names() as names:
        made = names.name(clean(inspection_id), clean(finding), clean(name), _who(by), clean(note))
        known = [n for n in names.overview(made.product) if n.name == made.name]
    lines = [f"{n.name}: named on {n.findings} finding{'s' if n.findings > 1 else ''}; {n.why}" for n in known]
    emit(asdict(made) | {"names": [asdict(n) for n in known]}, output.printable("\n".join([_line(made), *lines])))


@defects.command("list", epilog="Example: refdiff defects list --product bracket")
def list_defects(product: MaybeProduct = None, _json: Json = False) -> None:
    """List the names, whether later findings take them (and if not, why), and the findings that have them."""
    with _names() as names:
        stores = names.workspace.stores
        known, findings = names.overview(product), stores.defect_names.named(product)
        unknown = unknown_said(stores, product)
    document = {"names": [asdict(n) for n in known], "findings": [asdict(n) for n in findings]}
    if not known:
        of = "" if product is None else f" of {product}"
        hint = f"no finding{of} has a name yet; name one: refdiff defects name INSPECTION FINDING NAME"
        emit(document, unknown or output.printable(hint))
        return
    table = output.table("Product", "Name", "Findings", "Given", "Why", right=("Findings",))
    for n in known:
        table.add_row(n.product, output.printable(n.name), str(n.findings), "yes" if n.given else "no", n.why)
    named = output.table("Inspection", "Finding", "Part", "Name", "By", "At", title="Named findings")
    named.columns[0].no_wrap = True  # an id is there to be copied
    for f in findings:
        cells = (f.inspection_id, f.finding.removeprefix("f"), f.part_id, str(f.name), f.by, minute(f.created_at))
        named.add_row(*map(output.printable, cells))
    emit(document, table, named)


@defects.command("rename", epilog="Example: refdiff defects rename blob 'solder ball' --product bracket")
def rename_defects(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of the product.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="The new name; one that exists joins the two.")],
    product: ProductName,
    note: Note = "",
    by: By = None,
    _json: Json = False,
) -> None:
    """Call all findings of a name something else."""
    with _names() as names:
        made = names.rename(clean(product), clean(name), clean(to), _who(by), clean(note))
    emit({"findings": [asdict(m) for m in made]}, output.printable("\n".join(map(_line, made)) or "nothing to change"))


@defects.command("remove", epilog="Example: refdiff defects remove INSPECTION 2 --note 'not a defect'")
def remove_name(
    inspection_id: InspectionId, finding: FindingId, note: Note = "", by: By = None, _json: Json = False
) -> None:
    """Take the name of a finding away. Who called it what, and when, stays in the audit trail."""
    with _names() as names:
        made = names.forget(clean(inspection_id), clean(finding), _who(by), clean(note))
    emit(asdict(made), output.printable(_line(made)))


@contextmanager
def _names() -> Iterator[DefectNames]:
    from refdiff.agent.people.names import DefectNames

    with open_workspace() as workspace:
        yield DefectNames(workspace)


def _who(by: str | None) -> str:
    return clean(by or settings().server.user)


def _line(made: Naming) -> str:
    from refdiff.tools.evidence import finding_of

    called = f"called {made.name}" if made.name else "has no name any more"
    before = f" (before: {made.before})" if made.before else ""
    return f"{finding_of(made.finding, made.part_id)}: {called}{before}, by {made.by}, {made.created_at}"
