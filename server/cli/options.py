"""Options that several commands share, and how commands open what they need."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnknownProductError
from refdiff.model.settings import ModelSettings
from refdiff.server.settings import load
from refdiff.tools.settings import ToolsSettings

if TYPE_CHECKING:  # torch loads in seconds: only commands that look at photos pay for it
    from refdiff.tools.workspace import Workspace


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a positive number.")
    return value


def _rate(value: float | None) -> float | None:
    if value is not None and not 0 < value < 0.5:
        raise typer.BadParameter(f"{value} is not between 0 and 0.5.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")]
ProductName = Annotated[str, typer.Option("--product", metavar="P", help="Kind of part.")]
MaybeProduct = Annotated[str | None, typer.Option("--product", metavar="P", help="Kind of part.")]
ScaleMm = Annotated[
    float | None,
    typer.Option("--scale-mm-per-px", metavar="S", callback=_positive, help="Size of one pixel in mm, if known."),
]
References = Annotated[
    int | None, typer.Option("--references", metavar="K", min=1, max=16, help="Goldens to compare with.")
]
AlphaRate = Annotated[
    float | None,
    typer.Option("--alpha", metavar="A", callback=_rate, help="False-reject rate asked for (REFDIFF_ALPHA)."),
]


def open_stores() -> Stores:
    return Stores.open(load(MemorySettings))


@contextlib.contextmanager
def open_workspace(
    references: int | None = None, alpha: float | None = None, threads: int | None = None
) -> Iterator[Workspace]:
    memory, model = load(MemorySettings), load(ModelSettings, threads=threads)
    tools = load(ToolsSettings, references=references, alpha=alpha)
    from refdiff.tools.workspace import Workspace

    with Workspace.open(memory=memory, model=model, tools=tools) as workspace:
        yield workspace


def clean(text: str) -> str:
    """An argument as text that can be stored: bytes that are no UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shown_path(path: Path) -> str:
    return clean(str(path.absolute()))


def unknown_product(known: Iterable[str], product: str) -> UnknownProductError:
    """For a person who mistyped a product: what there is, and the way out."""
    names = ", ".join(known)
    have = f"products: {names}" if names else "there is none yet"
    return UnknownProductError(f"no product {product!r} ({have}); make it with `refdiff enroll --product {product!r}`")
