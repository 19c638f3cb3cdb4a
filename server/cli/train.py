"""`refdiff train`: recipes that make weights, from public research data and a customer's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refdiff.model.errors import InputError
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import output
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import answer
from refdiff.server.settings import load

train = typer.Typer(help="Train the networks; resumable, on a CPU.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(train, name="train")


@train.command(
    epilog="Examples: refdiff train difference --data my-parts --out runs/mine · the same command goes on after a stop"
)
def difference(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your products: DIR/<product>/train/good/*, optionally test/<defect>/*."),
    ] = None,
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets: magnetic_tile, piped, deeppcb (and elpv).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pool, checkpoints and weights go.")] = Path(
        "runs/difference"
    ),
    pairs: Annotated[
        int, typer.Option(min=64, help="Training pairs; 1.2 MB of disk each with the packaged encoder.")
    ] = 8000,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the pairs.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same pairs.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that make pairs.")] = 2,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Do not train on sources of this name (prefix).")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A transformers backbone instead of the packaged encoder.")
    ] = None,
    _json: Json = False,
) -> None:
    """Train the difference network: how a real defect differs from a normal change.

    Rendered parts and synthetic defects are always part of it; give --data, --research or both for photos.
    """
    from refdiff.model.training.difference import DifferenceRecipe, train_difference
    from refdiff.model.training.sources import customer_sources, research_sources

    sources = [*(research_sources(research) if research else []), *(customer_sources(data) if data else [])]
    recipe = DifferenceRecipe(pairs=pairs, epochs=epochs, seed=seed, workers=workers, left_out=tuple(leave_out or ()),
                              encoder=str(encoder.resolve()) if encoder else None)  # fmt: skip
    with output.work("training") as told:
        weights = train_difference(recipe, sources, out, progress=told)
    card = weights.with_name("MODEL_CARD.md")
    answer.give(
        {"weights": shown_path(weights), "card": shown_path(card)},
        f"weights in {shown_path(weights)}; use them with REFDIFF_DIFFERENCE_WEIGHTS={shown_path(weights)}",
        f"model card   {shown_path(card)}",
    )


@train.command(epilog="Example: refdiff train record --research research-data --data my-parts --out runs/recordings")
def record(
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Your products: DIR/<product>/train/good/*, optionally test/<defect>/*."),
    ] = None,
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets: magnetic_tile, piped, aliens (and elpv).")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where conversations and pictures go.")] = Path(
        "runs/recordings"
    ),
    per_product: Annotated[int, typer.Option(min=2, help="Inspections of each product; two seconds each.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same photos and phrasings.")] = 0,
    test: Annotated[bool, typer.Option("--test", help="Use the phrasings that are kept for the test.")] = False,
    _json: Json = False,
) -> None:
    """Record inspections to train the language model on: real tools, findings from the truth, many phrasings.

    A stopped recording goes on with the products that are missing.
    """
    from refdiff.agent.recording.record import RecordingPlan
    from refdiff.agent.recording.record import record as make
    from refdiff.model.training.sources import customer_sources, research_sources

    if data is None and research is None:
        raise InputError("nothing to record: give --data, --research or both")
    sources = [s for s in research_sources(research) if not s.pixels_count] if research else []
    sources += customer_sources(data) if data else []
    with output.progress("recording") as moved:
        n = make(sources, out, RecordingPlan(per_product=per_product, seed=seed, test=test),
                 lambda what, done, total: moved(done, total, what))  # fmt: skip
    answer.give({"recorded": n, "folder": shown_path(out)}, f"{n} conversations recorded in {shown_path(out)}")


@train.command(
    epilog="Example: refdiff train language --recordings runs/recordings --research research-data --out runs/language · "
    "the same command goes on after a stop"
)
def language(
    recordings: Annotated[Path, typer.Option(metavar="DIR", help="Folder of `refdiff train record`.")],
    research: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Public research sets to draw judged pairs from.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your products, as `refdiff train difference`.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where pairs, checkpoints and weights go.")] = Path(
        "runs/language"
    ),
    pairs: Annotated[int, typer.Option(min=32, help="Judged pairs to draw; 60 kB of disk each.")] = 4800,
    pair_epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the pairs.")] = 1.0,
    talk_epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the conversations.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same order.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that make pairs.")] = 2,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Do not train on sources of this name (prefix).")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Go on from these language weights instead of from the base.")
    ] = None,
    projector_epochs: Annotated[
        float, typer.Option(min=0, help="Passes over the pairs with the projector alone, first; 0 with --start.")
    ] = 0.25,
    _json: Json = False,
) -> None:
    """Train the language model to read pairs and to drive the tools: projector, then LoRA.

    About 300 tokens a second on two cores; a million tokens is an hour.
    """
    from refdiff.model.training.language.recipe import LanguageRecipe
    from refdiff.model.training.language.train import train_language
    from refdiff.model.training.sources import customer_sources, research_sources

    sources = [*(research_sources(research) if research else []), *(customer_sources(data) if data else [])]
    recipe = LanguageRecipe(pairs=pairs, pair_epochs=pair_epochs, talk_epochs=talk_epochs, seed=seed, workers=workers,
                            left_out=tuple(leave_out or ()), projector_epochs=0.0 if start else projector_epochs,
                            start=str(start.resolve()) if start else None)  # fmt: skip
    with output.work("training") as told:
        weights = train_language(recipe, sources, recordings, out, settings=load(ModelSettings), progress=told)
    answer.give(
        {"weights": shown_path(weights)},
        f"weights in {shown_path(weights)}; use them with REFDIFF_LANGUAGE_WEIGHTS={shown_path(weights)} and "
        "refdiff model build",
    )


@train.command(epilog="Example: refdiff train boards --research sets --out runs/boards")
def boards(
    research: Annotated[Path, typer.Option(metavar="DIR", help="Folder that holds deeppcb/PCBData.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the weights go.")] = Path("runs/boards"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the crops.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same order.")] = 0,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="Board groups not trained on, e.g. group44000.")
    ] = None,
    _json: Json = False,
) -> None:
    """Train the network that finds defects of bare boards (DeepPCB's six types)."""
    from refdiff.model.training.boards import BoardRecipe, train_boards
    from refdiff.model.training.sources import deeppcb_groups

    groups = deeppcb_groups(research)
    unknown = sorted(set(leave_out or ()) - set(groups))
    if unknown:
        raise InputError(f"no board group {unknown[0]!r}; there are {', '.join(groups)}")
    recipe = BoardRecipe(epochs=epochs, seed=seed, left_out=tuple(leave_out or ()))
    with output.work("training") as told:
        weights = train_boards(recipe, groups, out, progress=told)
    answer.give(
        {"weights": shown_path(weights)},
        f"weights in {shown_path(weights)}; use them with REFDIFF_BOARD_WEIGHTS={shown_path(weights)}",
    )
