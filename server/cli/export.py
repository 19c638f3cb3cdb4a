"""`refdiff export`: a product as one file for devices that have no torch, and the check of such a file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refdiff.model.errors import InputError
from refdiff.server.cli import output
from refdiff.server.cli.invocation import open_workspace, settings
from refdiff.server.cli.options import Json, MaybeProduct, shown_path
from refdiff.server.cli.output import emit

if TYPE_CHECKING:  # import torch
    from refdiff.agent.device.int8 import Beside
    from refdiff.tools.exported.export import Exported

Graphs = Literal["openvino", "onnx"]  # of model/difference/sessions.py


def register(app: typer.Typer) -> None:
    commands = typer.Typer(help="Write a product as one file for a device, or check such a file.")
    app.add_typer(commands, name="export")
    commands.callback(
        invoke_without_command=True,
        epilog="Examples: refdiff export --product bracket --out bracket.refdiff · "
        "refdiff export --product bracket --publish · refdiff export verify bracket.refdiff",
    )(export)
    commands.command(epilog="Example: refdiff export verify bracket.refdiff")(verify)


def export(
    context: typer.Context,
    product: MaybeProduct = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The file to write, FILE.refdiff.")] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Let devices fetch it from the server of this home.")
    ] = False,
    graphs: Annotated[Graphs, typer.Option("--format", help="What will run the networks on the device.")] = "openvino",
    int8: Annotated[
        bool, typer.Option("--int8", help="Quantise the networks to 8 bits; refused where they find fewer defects.")
    ] = False,
    _json: Json = False,
) -> None:
    """Write a product as one file: all that `refdiff-edge` needs to decide its parts as this installation does.

    Networks, golden samples with their features and places, calibration, specification, and a sha256 of each part.
    With REFDIFF_EXPORT_PRIVATE_KEY or REFDIFF_EXPORT_KEY set, it is signed. A stale calibration is redone first.
    With --int8, the export has its own calibration, and defects drawn on golden samples show what that costs; exit code 65
    where it finds fewer of them than float32.
    """
    if context.invoked_subcommand is not None:
        return
    if product is None:
        raise typer.BadParameter("name the product.", param_hint="--product")
    if out is None and not publish:
        raise typer.BadParameter("name a file, or give --publish.", param_hint="--out")
    from refdiff.agent.device.published import write_and_publish
    from refdiff.tools.exported.archive import SUFFIX
    from refdiff.tools.exported.export import export_product

    if out is not None and out.suffix != SUFFIX:
        raise InputError(f"--out {out}: the name of an export ends in {SUFFIX}")
    by, keys = settings().server.user, settings().export.keys
    with open_workspace() as workspace, output.progress("exporting") as moved:

        def write(file: Path) -> tuple[Exported, Beside | None]:
            if int8:
                from refdiff.agent.device.int8 import export_int8

                return export_int8(workspace, product, file, graphs=graphs, keys=keys, by=by, progress=moved)
            return export_product(workspace, product, file, graphs=graphs, keys=keys, by=by, progress=moved), None

        def write_both(arriving: Path) -> tuple[Exported, Beside | None]:
            written = write(out or arriving)
            if out is not None:
                shutil.copyfile(out, arriving)
            return written

        if publish:
            (made, beside), _ = write_and_publish(workspace, product, write_both, by=by)
        else:
            assert out is not None
            made, beside = write(out)
    place = shown_path(out) if out is not None else f"product {made.manifest.product}"
    lines = [
        f"{place}: {made.golden_samples} golden samples, {made.parts} parts, {made.manifest.nbytes / 1e6:.1f} MB, "
        + ("signed" if made.signed else "not signed: set REFDIFF_EXPORT_PRIVATE_KEY or REFDIFF_EXPORT_KEY"),
        f"export {made.digest}" + (", published for devices" if publish else ""),
    ]
    if beside is not None:
        lines += [
            f"int8, calibrated by itself: AUROC {beside.auroc[1]:.3f} (float32 {beside.auroc[0]:.3f}, difference "
            f"{beside.interval[0]:+.3f} to {beside.interval[1]:+.3f}), {beside.escapes[1]} (float32 {beside.escapes[0]}) of "
            f"{beside.defects} drawn defects not failed at a false-reject rate of {beside.attained:.3g}",
            f"networks {beside.mb[1]:.1f} MB (float32 {beside.mb[0]:.1f}), {beside.ms[1]:.0f} ms of CPU time a photo on one "
            f"thread here (float32 {beside.ms[0]:.0f})",
        ]
        if beside.slower:
            lines.append("warning: int8 is slower than float32 on this machine; on one like it, leave out --int8")
    elif (here := made.manifest.installation_number_format) != made.manifest.number_format:
        lines.append(
            f"this installation computes in {here}, devices in {made.manifest.number_format}: the export is calibrated in "
            f"that, so a device may decide otherwise here and there (scores of the golden samples differ by up to "
            f"{made.rounding:.1g}). For the same numbers, set REFDIFF_NUMBER_FORMAT={made.manifest.number_format} here"
        )
    about = {"sha256": made.digest, "golden_samples": made.golden_samples, "signed": made.signed, "published": publish}
    about["rounding"] = made.rounding
    emit(_document(out, made.manifest) | about, "\n".join(lines))


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An export.")],
    _json: Json = False,
) -> None:
    """Check an export as a device does: every part, the signature, and whether this version computes its scores.

    Exit code: 0 a device of this version decides by it; 65 it is cut off, changed, of another version, or not signed by
    REFDIFF_EXPORT_PUBLIC_KEY or REFDIFF_EXPORT_KEY.
    """
    from refdiff.tools.exported.workspace import ExportedWorkspace

    keys, started = settings().export.keys, time.perf_counter()
    opened = ExportedWorkspace.of_file(file, keys)
    with opened:
        export = opened.export
        signature = (
            "its signature is right"
            if export.signed
            else ("signed, which was not checked: no key is set" if export.is_signed else "not signed")
        )
        emit(
            _document(file, export.manifest)
            | {"sha256": export.digest, "signed": export.is_signed, "signature_checked": export.signed},
            f"{shown_path(file)}: product {export.manifest.product}, {len(export.manifest.parts)} parts as exported, "
            f"{export.manifest.number_format}; {signature}; opened in {time.perf_counter() - started:.1f} s",
        )  # fmt: skip


def _document(path: Path | None, manifest: Any) -> dict[str, Any]:
    about = manifest.model_dump(mode="json", exclude={"parts"})
    return {"path": path and shown_path(path), "bytes": manifest.nbytes, "parts": len(manifest.parts), **about}
