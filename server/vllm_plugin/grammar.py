"""JSON in the format of the training data and the embedded engine: one space after commas and colons, none elsewhere.

vLLM offers JSON with any whitespace (a small model may fill its answer with line breaks) or with none (which is not in the
training data and makes later turns worse). So each schema is passed to vLLM as a grammar.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

SEPARATORS = (", ", ": ")


def tight_json(schema: dict[str, Any]) -> str:
    """The grammar (EBNF of xgrammar) of the texts that fit a JSON schema. Raises ValueError for an invalid schema."""
    return _tight_json(json.dumps(schema))


@lru_cache(maxsize=64)
def _tight_json(schema: str) -> str:
    import xgrammar

    try:
        return str(xgrammar.Grammar.from_json_schema(schema, any_whitespace=False, separators=SEPARATORS))
    except RuntimeError as e:  # the only exception of xgrammar
        # without its source location
        raise ValueError(re.sub(r"^\[[\d:]+\] \S+:\d+: ", "", str(e).strip().splitlines()[-1])[:300]) from e
