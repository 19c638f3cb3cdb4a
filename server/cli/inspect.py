"""`refdiff capture`, `inspect` and `ask`: from the photo of a part to a filed verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.model.errors import InputError
from refdiff.server.cli import output
from refdiff.server.cli.copies import check_targets, copy_artefacts
from refdiff.server.cli.invocation import open_stores, open_workspace, settings
from refdiff.server.cli.options import (
    AlphaRate,
    Colour,
    Conditions,
    Html,
    Json,
    MaybeProduct,
    Out,
    ProductName,
    References,
    ScaleMm,
    clean,
    conditions_of,
    shown_path,
)
from refdiff.server.cli.output import emit

if TYPE_CHECKING:
    from refdiff.tools.golden_samples.photos import Upload

VERDICT_CODES = {"PASS": 0, "FAIL": 1, "REVIEW": 2}

PartId = Annotated[str, typer.Option("--part", metavar="ID", help="Part id, with or without a leading #.")]
Photo = Annotated[Path | None, typer.Option("--image", metavar="IMAGE", help="Capture this photo first.")]


@dataclass(frozen=True)
class Options:
    """What `inspect` and `ask` have in common; None: not given."""

    image: Path | None
    product: str | None
    scale_mm_per_px: float | None
    condition: list[str] | None
    colour: Path | None
    references: int | None
    alpha: float | None
    html: Path | None
    out: Path | None


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: refdiff capture --part 4412 --product bracket photo.png")(capture)
    app.command(
        epilog="Examples: refdiff inspect --part 4412 · "
        "refdiff inspect --part 4412 --image photo.png --product bracket --html report.html"
    )(inspect)
    app.command(
        epilog='Examples: refdiff ask "inspect part #4412 against the nearest good sample" · '
        'refdiff ask "how long is finding 1?" --about insp-20260131-141500-5f3a9c1e'
    )(ask)


def capture(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="The photo.")],
    part: PartId,
    product: ProductName,
    scale_mm_per_px: ScaleMm = None,
    condition: Conditions = None,
    colour: Colour = None,
    _json: Json = False,
) -> None:
    """Record the photo of one part. A part photographed again keeps both photos; the newest is inspected."""
    from refdiff.tools.golden_samples.captures import record_capture

    with open_stores() as stores:
        known = [p.name for p in stores.products.list()]
        taken = record_capture(
            stores, part, product, _with_colour(image, colour), scale_mm_per_px=scale_mm_per_px, settings=settings().model,
            conditions=conditions_of(condition),
        )  # fmt: skip
    if taken.product not in known:
        have = f" (products so far: {', '.join(known)})" if known else ""
        output.note(f"product {taken.product!r} is new{have}; it needs good samples: refdiff enroll --product ...")
    emit(asdict(taken), f"part {taken.part_id}, product {taken.product}: captured as {taken.capture_id}")


def inspect(
    part: PartId,
    image: Photo = None,
    product: MaybeProduct = None,
    scale_mm_per_px: ScaleMm = None,
    condition: Conditions = None,
    colour: Colour = None,
    references: References = None,
    alpha: AlphaRate = None,
    html: Html = None,
    out: Out = None,
    _json: Json = False,
) -> None:
    """Inspect a part against its nearest golden samples and file the report.

    Exit code: 0 PASS, 1 FAIL, 2 REVIEW.
    """
    _inspect(
        "", part, Options(image, product, scale_mm_per_px, condition or None, colour, references, alpha, html, out)
    )


def ask(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The request or question; names the part.")],
    image: Photo = None,
    part: Annotated[
        str | None, typer.Option("--part", metavar="ID", help="Part id, if the text does not name it.")
    ] = None,
    product: MaybeProduct = None,
    about: Annotated[
        str | None, typer.Option("--about", metavar="INSPECTION", help="Ask about this filed report instead.")
    ] = None,
    scale_mm_per_px: ScaleMm = None,
    condition: Conditions = None,
    colour: Colour = None,
    references: References = None,
    alpha: AlphaRate = None,
    html: Html = None,
    out: Out = None,
    _json: Json = False,
) -> None:
    """Ask in plain words; a request that names a part is inspected and filed.

    With --about a question about a filed report is answered with what the report says, in the language of the question
    (English, German, Spanish, Chinese).

    Exit code: 0 PASS, 1 FAIL, 2 REVIEW; an answer without a verdict is 0.
    """
    from refdiff.agent.language.intent import the_part, the_product

    text = clean(text).strip()
    if not text:
        raise InputError('the question is empty; try: refdiff ask "inspect part #4412"')
    options = Options(image, product, scale_mm_per_px, condition or None, colour, references, alpha, html, out)
    if about is not None:
        given = {"part": part, **vars(options)}
        if extra := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise typer.BadParameter(f"the report is filed; leave {', '.join(extra)} out.", param_hint="--about")
        _answer_about(about, text)
        return
    with open_stores() as stores:
        named = the_part(text, stores.captures.stored, part, photo=image is not None)
        if product is None:
            options = replace(options, product=the_product([text], [p.name for p in stores.products.list()]))
    if named is not None:
        _inspect(text, named, options)
        return
    if image is not None:
        raise InputError("the photo needs a part: name it in the text (part #4412) or with --part")
    from refdiff.agent.inspector import Inspector

    with open_workspace() as workspace, Inspector(workspace, settings().agent) as inspector:
        reply = inspector.answer(text)
    emit({"answer": reply, "verdict": None}, output.printable(reply))


def _with_colour(image: Path, colour: Path | None) -> Path | Upload:
    """The file, with the colour photo that was named with it."""
    from refdiff.tools.golden_samples.colour_pairs import with_its_photo

    return image if colour is None else with_its_photo(image, settings().model, colour)


def _answer_about(inspection_id: str, text: str) -> None:
    from refdiff.agent.inspector import Inspector

    with (
        open_workspace() as workspace,
        output.watching("question") as show,
        Inspector(workspace, settings().agent, on_event=show) as inspector,
    ):
        reply = inspector.answer_about(inspection_id, text)
    emit({"answer": reply, "inspection_id": inspection_id, "verdict": None}, output.printable(reply))


def _inspect(text: str, part: str, options: Options) -> None:
    if options.image is None and options.scale_mm_per_px is not None:
        raise typer.BadParameter("the scale of a photo; give --image too.", param_hint="--scale-mm-per-px")
    if options.image is None and options.condition is not None:
        raise typer.BadParameter("stated with a file; give --image too.", param_hint="--condition")
    if options.image is None and options.colour is not None:
        raise typer.BadParameter("the colour photo of a height map; give that with --image.", param_hint="--colour")
    check_targets(options.html, options.out)  # a mistyped folder must not cost an inspection
    from refdiff.memory.rows.captures import normalise_part_id

    part_id, product = normalise_part_id(part), _product(part, options)
    # later: a mistyped id is refused at once
    from refdiff.agent.inspector import Inspector
    from refdiff.agent.request import prepare

    with open_workspace(references=options.references, alpha=options.alpha) as workspace:
        request = prepare(
            workspace, part_id, text, requested_by=settings().server.user, product=product,
            photo=options.image and _with_colour(options.image, options.colour),
            scale_mm_per_px=options.scale_mm_per_px, conditions=conditions_of(options.condition),
        )  # fmt: skip
        with (
            output.watching(f"part {part_id}") as show,
            Inspector(workspace, settings().agent, on_event=show) as inspector,
        ):
            report = inspector.run(request)
    copies = copy_artefacts(report, options.html, options.out)
    lines = [f"copied to     {shown_path(p)}" for p in copies]
    files = output.files_view(report)
    emit(report.model_dump(mode="json"), output.report_view(report), files, *lines)
    raise typer.Exit(VERDICT_CODES[report.verdict])


def _product(part: str, options: Options) -> str:
    """The product to inspect in. A mistyped part or a missing product is reported here, before torch loads."""
    from refdiff.tools.inspection.captures import find_part, product_of

    with open_stores() as stores:
        if options.image is None:
            return find_part(stores, part, options.product).product
        if options.product is not None:
            return stores.products.name_of(options.product)
        try:
            return product_of(stores, part)
        except InputError as e:
            raise typer.BadParameter(f"{e}.", param_hint="--product") from e
