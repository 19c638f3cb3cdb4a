"""Wording that messages of every room share."""

from __future__ import annotations

from collections.abc import Iterable


def few(names: Iterable[str], most: int = 3, between: str = ", ") -> str:
    """The first of some names, and how many more there are: `a, b, c and 4 more`; "" for none."""
    named = list(names)
    more = f" and {len(named) - most} more" if len(named) > most else ""
    return between.join(named[:most]) + more
