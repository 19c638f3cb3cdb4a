"""`refdiff train`: recipes that train weights on public research data and a customer's own images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from refdiff.model.errors import InputError
from refdiff.model.training.pairs import Source
from refdiff.model.wording import few
from refdiff.server.cli import output
from refdiff.server.cli.invocation import settings
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import emit
from refdiff.server.extras import require_extra

OwnProducts = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Your products: DIR/<product>/train/good/*, optionally test/<defect>/*."),
]
LeaveOut = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Leave out sources whose name begins like this.")
]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Number of processes that make pairs.")]

train = typer.Typer(help="Train the networks on a CPU; every run can be interrupted and resumed.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(train, name="train")


@train.command(
    epilog="Examples: refdiff train difference --data my-parts --out runs/mine · run the same command again to resume"
)
def difference(
    data: OwnProducts = None,
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets: magnetic_tile, piped, deeppcb (and elpv).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder for pool, checkpoints and weights.")] = Path(
        "runs/difference"
    ),
    pairs: Annotated[
        int, typer.Option(min=64, help="Number of training pairs; each takes 1.2 MB of disk with the packaged encoder.")
    ] = 8000,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the pairs.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs.")] = 0,
    workers: Workers = 2,
    leave_out: LeaveOut = None,
    encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A transformers backbone instead of the packaged encoder.")
    ] = None,
    registered: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Go on from weights, on the pairs of `refdiff train pairs`; --pairs is not used."
        ),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The weights to go on from (packaged); with --registered.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=1e-6, max=0.1, help="Learning rate (0.002; 0.001 with --registered).")
    ] = None,
    _json: Json = False,
) -> None:
    """Train the difference network to tell a real defect from a normal change.

    Rendered parts and synthetic defects are always included; add photos with --data, --research or both. Photos that cannot
    be read and products with fewer than two good photos are left out, named and counted.
    """
    require_extra("train")
    if start is not None and registered is None:
        raise InputError("--start needs --registered: pairs made by `refdiff train pairs`")
    settings()  # a bad setting fails before hours of work; sets up logging
    from refdiff.model.difference.scorer import PACKAGED
    from refdiff.model.training.difference import DifferenceRecipe, train_difference
    from refdiff.model.training.sources import research_sources, usable

    own, notes = _own(data)
    sources = [*(research_sources(research) if research else []), *own]
    left_out: dict[str, list[str]] = {}
    if registered:
        sources = [s for s in sources if not s.pixels_count]  # `train pairs` leaves bare boards out, too
    recipe = DifferenceRecipe(pairs=pairs, epochs=epochs, seed=seed, workers=workers, left_out=tuple(leave_out or ()),
                              lr=lr or (1e-3 if registered else DifferenceRecipe.lr),
                              encoder=str(encoder.resolve()) if encoder else None,
                              start=str((start or PACKAGED).resolve()) if registered else None)  # fmt: skip
    with output.progress("training") as report:
        if not registered:  # `train pairs` has left out what it could not use
            sources, left_out = usable(sources, report)
            _note(left_out)
        weights = train_difference(recipe, sources, out, pool=registered, progress=report)
    card = weights.with_name("MODEL_CARD.md")
    emit(
        {"weights": shown_path(weights), "card": shown_path(card), "left_out": left_out, "notes": notes},
        f"weights in {shown_path(weights)}; use them with REFDIFF_DIFFERENCE_WEIGHTS={shown_path(weights)}",
        f"model card   {shown_path(card)}",
    )


@train.command(epilog="Example: refdiff train pairs --research research-data --out runs/pairs")
def pairs(
    data: OwnProducts = None,
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets: magnetic_tile, piped, aliens (and elpv).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder for the pairs.")] = Path("runs/pairs"),
    products: Annotated[
        int, typer.Option(min=2, max=99999, help="Number of products; each takes half a minute and 60 MB of disk.")
    ] = 80,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same products.")] = 0,
    workers: Workers = 2,
    _json: Json = False,
) -> None:
    """Make training pairs as the tools register them, for `refdiff train difference --registered`.

    Rendered products are always included. An interrupted run resumes with the missing products. Photos that cannot be read
    and products with fewer than two good photos are left out, named and counted.
    """
    settings()  # a bad setting fails before hours of work; sets up logging
    from refdiff.model.training.sources import research_sources
    from refdiff.tools.golden_samples.training_pairs import make_pairs

    sources = [s for s in research_sources(research) if not s.pixels_count] if research else []
    own, notes = _own(data)
    sources += own
    with output.progress("pairs") as report:
        made = make_pairs(sources, out, products=products, seed=seed, workers=workers, progress=report)
    emit(
        {
            "pairs": made.pairs,
            "products": made.products,
            "folder": shown_path(out),
            "left_out": made.left_out,
            "notes": notes,
        },
        f"{made.pairs} pairs of {made.products} products in {shown_path(out)}",
    )
    _note(made.left_out)


def _own(data: Path | None) -> tuple[list[Source], list[str]]:
    """The products of --data, and notes on what was left out of them, which are printed."""
    from refdiff.agent.evaluation.own_products import own_products

    sources, notes = own_products(data) if data else ([], [])
    for note in notes:
        output.note(note)
    return sources, notes


def _note(left_out: Mapping[str, Sequence[str]]) -> None:
    """Tell which photos are not used: why -> names."""
    for why, names in left_out.items():
        output.note(f"left out: {len(names)} ({few(names)}): {why}")


@train.command(epilog="Example: refdiff train record --research research-data --data my-parts --out runs/recordings")
def record(
    data: OwnProducts = None,
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets: magnetic_tile, piped, aliens (and elpv).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder for conversations and pictures.")] = Path(
        "runs/recordings"
    ),
    per_product: Annotated[
        int, typer.Option(min=2, help="Inspections per product; each takes about two seconds.")
    ] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same photos and phrasings.")] = 0,
    test: Annotated[bool, typer.Option("--test", help="Use the phrasings reserved for the test.")] = False,
    _json: Json = False,
) -> None:
    """Record inspections as training data for the language model: real tools, true findings, many phrasings.

    An interrupted recording resumes with the missing products. Photos that cannot be read and products with fewer than two
    good photos are left out, named and counted.
    """
    settings()  # a bad setting fails before hours of work; sets up logging
    from refdiff.agent.recording.record import RecordingPlan
    from refdiff.agent.recording.record import record as make
    from refdiff.model.training.sources import research_sources, usable

    if data is None and research is None:
        raise InputError("nothing to record; give --data, --research or both")
    sources = [s for s in research_sources(research) if not s.pixels_count] if research else []
    own, notes = _own(data)
    sources += own
    with output.progress("recording") as report:
        sources, left_out = usable(sources, report)
        _note(left_out)
        n = make(sources, out, RecordingPlan(per_product=per_product, seed=seed, test=test), report)
    emit(
        {"recorded": n, "folder": shown_path(out), "left_out": left_out, "notes": notes},
        f"{n} conversations recorded in {shown_path(out)}",
    )


@train.command(
    epilog="Example: refdiff train language --recordings runs/recordings --research research-data --out runs/language · "
    "run the same command again to resume"
)
def language(
    recordings: Annotated[Path, typer.Option(metavar="DIR", help="Folder written by `refdiff train record`.")],
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets to draw labelled pairs from.")
    ] = None,
    data: OwnProducts = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder for pairs, checkpoints and weights.")] = Path(
        "runs/language"
    ),
    pairs: Annotated[int, typer.Option(min=32, help="Number of labelled pairs; each takes 60 kB of disk.")] = 4800,
    pair_epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the pairs.")] = 1.0,
    talk_epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the conversations.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same order.")] = 0,
    workers: Workers = 2,
    leave_out: LeaveOut = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start from these language weights instead of the base.")
    ] = None,
    projector_epochs: Annotated[
        float, typer.Option(min=0, help="First passes over the pairs that train the projector only; 0 with --start.")
    ] = 0.25,
    _json: Json = False,
) -> None:
    """Train the language model to read pairs and drive the tools: projector first, then LoRA.

    Two cores process about 300 tokens per second: an hour per million tokens. Photos that cannot be read are left out, named
    and counted.
    """
    require_extra("train")
    from refdiff.model.training.language.recipe import LanguageRecipe
    from refdiff.model.training.language.train import train_language
    from refdiff.model.training.sources import research_sources, usable

    own, notes = _own(data)
    sources = [*(research_sources(research) if research else []), *own]
    recipe = LanguageRecipe(pairs=pairs, pair_epochs=pair_epochs, talk_epochs=talk_epochs, seed=seed, workers=workers,
                            left_out=tuple(leave_out or ()), projector_epochs=0.0 if start else projector_epochs,
                            start=str(start.resolve()) if start else None)  # fmt: skip
    with output.progress("training") as report:
        sources, left_out = usable(sources, report)
        _note(left_out)
        weights = train_language(recipe, sources, recordings, out, settings=settings().model, progress=report)
    emit(
        {"weights": shown_path(weights), "left_out": left_out, "notes": notes},
        f"weights in {shown_path(weights)}; use them with REFDIFF_LANGUAGE_WEIGHTS={shown_path(weights)} and "
        "refdiff model build",
    )


@train.command(epilog="Example: refdiff train boards --research sets --out runs/boards")
def boards(
    research: Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds deeppcb/PCBData.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Output folder for the weights.")] = Path("runs/boards"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the crops.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same order.")] = 0,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Leave out this board group, for example group44000.")
    ] = None,
    _json: Json = False,
) -> None:
    """Train the network that finds defects on bare circuit boards (the six types of DeepPCB)."""
    settings()  # a bad setting fails before hours of work; sets up logging
    from refdiff.model.training.boards import BoardRecipe, train_boards
    from refdiff.model.training.sources import deeppcb_groups

    groups = deeppcb_groups(research)
    unknown = sorted(set(leave_out or ()) - set(groups))
    if unknown:
        raise InputError(f"no board group {unknown[0]!r}; there are {', '.join(groups)}")
    recipe = BoardRecipe(epochs=epochs, seed=seed, left_out=tuple(leave_out or ()))
    with output.progress("training") as report:
        weights = train_boards(recipe, groups, out, progress=report)
    emit(
        {"weights": shown_path(weights)},
        f"weights in {shown_path(weights)}; use them with REFDIFF_BOARD_WEIGHTS={shown_path(weights)}",
    )
