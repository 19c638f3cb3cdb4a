"""`refdiff export`: a product as one file for devices that have no torch, and the check of such a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refdiff.model.errors import InputError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_workspace, settings
from refdiff.server.cli.options import Json, MaybeProduct, shown_path
from refdiff.server.cli.output import emit

Graphs = Literal["openvino", "onnx"]  # of model/difference/sessions.py


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="Write a product as one file for a device, or check such a file.")
    app.add_typer(commands, name="export")
    commands.callback(
        invoke_without_command=True,
        epilog="Examples: refdiff export --product bracket --out bracket.refdiff · refdiff export verify bracket.refdiff",
    )(export)
    commands.command(epilog="Example: refdiff export verify bracket.refdiff")(verify)


def export(
    context: typer.Context,
    product: MaybeProduct = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The file to write, FILE.refdiff.")] = None,
    graphs: Annotated[Graphs, typer.Option("--format", help="What will run the networks on the device.")] = "openvino",
    _json: Json = False,
) -> None:
    """Write a product as one file: all that `refdiff-edge` needs to decide its parts as this installation does.

    Networks, golden samples with their features and places, calibration, specification, and a sha256 of each part.
    With REFDIFF_EXPORT_KEY set, it is signed. A stale calibration is redone first.
    """
    if context.invoked_subcommand is not None:
        return
    if product is None or out is None:
        raise InputError("name the product and the file: refdiff export --product P --out FILE.refdiff")
    from refdiff.tools.exported.archive import SUFFIX, ExportSettings
    from refdiff.tools.exported.export import export_product

    if out.suffix != SUFFIX:
        raise InputError(f"--out {out}: the name of an export ends in {SUFFIX}")
    by, key = settings().server.user, ExportSettings().key  # the first reads the file of settings
    with open_workspace() as workspace, output.progress("exporting") as moved:
        made = export_product(workspace, product, out, graphs=graphs, key=key, by=by, progress=moved)
    signed = "signed" if made.signed else "not signed: set REFDIFF_EXPORT_KEY"
    emit(
        _document(made.path, made.manifest) | {"golden_samples": made.golden_samples, "signed": made.signed},
        f"{shown_path(out)}: {made.golden_samples} golden samples, {made.parts} parts, "
        f"{out.stat().st_size / 1e6:.1f} MB, {signed}",
    )


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export.")],
    _json: Json = False,
) -> None:
    """Check an export as a device does: every part, the signature, and whether this version computes its scores.

    Exit code: 0 a device of this version decides by it; 65 it is cut off, changed, of another version, or not signed by
    REFDIFF_EXPORT_KEY.
    """
    from refdiff.tools.exported.archive import ExportSettings
    from refdiff.tools.exported.workspace import ExportedWorkspace

    settings()  # reads the file of settings
    key, started = ExportSettings().key, time.perf_counter()
    opened = ExportedWorkspace.of_file(file, key)
    with opened:
        export = opened.export
        signature = (
            "its signature is right"
            if export.signed
            else ("signed, which was not checked: set REFDIFF_EXPORT_KEY" if export.is_signed else "not signed")
        )
        emit(
            _document(file, export.manifest) | {"signed": export.is_signed, "signature_checked": export.signed},
            f"{shown_path(file)}: product {export.manifest.product}, {len(export.manifest.parts)} parts as exported; "
            f"{signature}; opened in {time.perf_counter() - started:.1f} s",
        )  # fmt: skip


def _document(path: Path, manifest: Any) -> dict[str, Any]:
    about = manifest.model_dump(mode="json", exclude={"parts"})
    return {"path": shown_path(path), "bytes": manifest.nbytes, "parts": len(manifest.parts), **about}
