"""Options shared by several commands, and how their values are cleaned and shown."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refdiff.model.errors import InputError
from refdiff.server.cli.output import printable
from refdiff.tools.kinds.conditions import parse_conditions

if TYPE_CHECKING:  # the database's library takes a while to import
    from refdiff.memory.stores import Stores


def _positive(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is not a positive number.")
    return value


def _rate(value: float | None) -> float | None:
    if value is not None and not 0 < value < 0.5:
        raise typer.BadParameter(f"{value} is not between 0 and 0.5.")
    return value


Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to stdout.")]
ProductName = Annotated[str, typer.Option("--product", metavar="P", help="Product: the kind of part.")]
MaybeProduct = Annotated[str | None, typer.Option("--product", metavar="P", help="Product: the kind of part.")]
_INSPECTION = typer.Argument(metavar="INSPECTION", help="Inspection id, like insp-20260131-141500-5f3a9c1e.")
InspectionId = Annotated[str, _INSPECTION]
MaybeInspectionId = Annotated[str | None, _INSPECTION]
ScaleMm = Annotated[
    float | None,
    typer.Option("--scale-mm-per-px", metavar="S", callback=_positive, help="Size of one pixel in mm, if known."),
]
References = Annotated[
    int | None,
    typer.Option(
        "--references",
        metavar="K",
        min=1,
        max=16,
        help="Number of nearest golden samples to compare with (REFDIFF_REFERENCES).",
    ),
]
AlphaRate = Annotated[
    float | None,
    typer.Option("--alpha", metavar="A", callback=_rate, help="Requested false-reject rate (REFDIFF_ALPHA)."),
]


Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        metavar="NAME=NUMBER",
        help="Stated with the file instead of what it or the product says (thermal: emissivity, reflected_c, distance_m, "
        "ambient_c, humidity); may be repeated.",
    ),
]


Colour = Annotated[
    Path | None,
    typer.Option(
        "--colour",
        metavar="FILE",
        help="Colour photo of a height map, of the same raster, of a product that states `depth: colour`; default: the file "
        "of its name beside it, or in the folder rgb.",
    ),
]


def conditions_of(given: list[str] | None) -> dict[str, float]:
    """The conditions that were given, by name."""
    try:
        return parse_conditions(",".join(given or []))
    except InputError as e:
        raise typer.BadParameter(f"{e}.", param_hint="--condition") from e


_PERIOD = re.compile(r"(\d{1,6})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def period(text: str) -> timedelta:
    """A length of time as people write it: 12h, 90d, 8w."""
    found = _PERIOD.fullmatch(text.strip())
    if not found:
        raise typer.BadParameter(f"{clean(text)!r} is not a length of time; write 12h, 90d or 8w.")
    return int(found[1]) * _UNITS[found[2]]


Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Copy the report page to FILE.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Copy report and pictures to DIR.")]


def clean(text: str) -> str:
    """An argument as text that can be stored: bytes that are not UTF-8 become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def unknown_said(stores: Stores, product: str | None) -> str:
    """What to say instead of a list where there is no such product; "" where there is, or none was given."""
    if product is None or stores.products.get(product) is not None:
        return ""
    known = ", ".join(p.name for p in stores.products.list()) or "none yet"
    return printable(f"no product {product!r}; known: {known}")


def minute(at: str | None) -> str:
    """A stored time to the minute, UTC: `2026-01-31 14:15`; "" for None."""
    return (at or "")[:16].replace("T", " ")


def shown_path(path: Path) -> str:
    return clean(str(path.absolute()))
