"""Words of the records that ways in offer as choices: kinds of products, verdicts, roles of keys, kinds of changes. Loads no
database."""

from __future__ import annotations

from typing import Literal, get_args

ProductKind = Literal["photo", "thermal", "depth", "cloud"]  # of its files
PRODUCT_KINDS: tuple[ProductKind, ...] = get_args(ProductKind)

Verdict = Literal["PASS", "FAIL", "REVIEW"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Role = Literal["viewer", "inspector", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may also do what the roles before it may
OPERATOR_FILE = "operator.key"  # where a home keeps the operator's key

ChangeKind = Literal[
    "product", "calibration", "network", "golden", "key", "settings", "capture", "job", "prune", "export"
]
