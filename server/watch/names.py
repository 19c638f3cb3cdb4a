"""Which part, and which product, a file shows, by its name."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import regex

from refdiff.memory.rows.captures import normalise_part_id
from refdiff.memory.rows.products import check_product_name
from refdiff.model.errors import InputError

# how long the pattern may take for one name: names come from outside, and a pattern can backtrack for hours
MATCH_S = 1.0


@dataclass(frozen=True)
class NamePattern:
    """Reads part (and product) from a file name without suffix."""

    expression: regex.Pattern[str]  # this library, because its search can be given a time limit
    product: str | None

    @classmethod
    def parse(cls, pattern: str, product: str | None) -> NamePattern:
        """Raises InputError: invalid regular expression, no group `part`, or no source for the product."""
        try:
            expression = regex.compile(pattern)
        except regex.error as e:
            raise InputError(f"--pattern {pattern!r}: invalid regular expression ({e})") from e
        if "part" not in expression.groupindex:
            raise InputError(f"--pattern {pattern!r}: needs a group named part, like (?P<part>\\d+)")
        if product is None and "product" not in expression.groupindex:
            raise InputError("the product is unknown; give --product, or a group named product in --pattern")
        return cls(expression, None if product is None else check_product_name(product))

    def read(self, name: str) -> tuple[str, str]:
        """(part id, product) of a file. Raises InputError if the name does not match, or not within `MATCH_S`."""
        stem = os.fsencode(Path(name).stem).decode("utf-8", "replace")
        try:
            match = self.expression.fullmatch(stem, timeout=MATCH_S)
        except TimeoutError as e:
            raise InputError(
                f"the pattern {self.expression.pattern} took more than {MATCH_S:g} s for this name; "
                "write it without repeats inside repeats"
            ) from e
        if match is None or not match["part"]:
            raise InputError(f"the name does not match the pattern {self.expression.pattern}")
        named = match.groupdict().get("product")
        product = named or self.product
        if product is None:
            raise InputError(f"the name contains no product (pattern {self.expression.pattern})")
        return normalise_part_id(match["part"]), check_product_name(product)
