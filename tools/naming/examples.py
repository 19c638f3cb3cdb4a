"""The named defects of a product, ready to be compared with, and what a finding is like among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refdiff.memory.records.defect_names import Example, Sight
from refdiff.model.errors import InputError, StorageError
from refdiff.tools.naming.looks import look, weights_digest
from refdiff.tools.naming.nearest import Rule, learn, nearest
from refdiff.tools.workspace import Workspace

_MEMO = "named defects"  # of the workspace


@dataclass(frozen=True)
class Like:
    """A named finding that another one is like. distance: >= 0, of what they look like."""

    example: Example
    distance: float


@dataclass(frozen=True)
class Similar:
    """What a finding is like. name: what it takes; None where nothing is near enough."""

    name: str | None
    nearest_name: str
    strangeness: float  # against the limit of the rule
    likes: list[Like]  # of the nearest name, nearest first
    others: list[Like]  # of all names, nearest first


@dataclass(frozen=True)
class NamedDefects:
    """The named findings of a product at one revision of its names."""

    product: str
    revision: int
    weights: str
    examples: list[Example]  # that can be compared
    left_out: dict[str, str]  # `Naming.key` -> why it cannot: its photo is gone
    rule: Rule
    precision: float  # that was asked for, 0..1

    @property
    def counts(self) -> dict[str, int]:
        """How many findings have each name, in the order of names."""
        names = [e.name for e in self.examples]
        return {name: names.count(name) for name in sorted(set(names))}

    def parts(self, name: str) -> int:
        """How many parts have a finding of that name: what the rule asks for."""
        return len({e.naming.part_id for e in self.examples if e.name == name})


def named_defects(workspace: Workspace, product: str) -> NamedDefects | None:
    """Those of a product as they are now; None where nobody has named a finding. Kept until somebody names another.

    Findings that were looked at with other weights are looked at again; where that is impossible they are left out, and said
    so. Raises UnavailableError, StorageError where the stores fail.
    """
    store, precision = workspace.stores.defect_names, workspace.settings.name_precision
    revision = store.revision(product)
    if not revision:
        return None
    known = workspace.memo.get((_MEMO, product))
    weights = weights_digest(workspace)
    if isinstance(known, NamedDefects) and (known.revision, known.weights) == (revision, weights):
        return known if known.examples or known.left_out else None
    examples, left_out = _of_these_weights(workspace, product, weights)
    vectors = np.stack([e.vector for e in examples]) if examples else np.zeros((0, 1), np.float32)
    rule = learn(vectors, [e.name for e in examples], precision, [e.naming.part_id for e in examples])
    made = NamedDefects(product, revision, weights, examples, left_out, rule, precision)
    workspace.memo[_MEMO, product] = made
    return made if examples or left_out else None


def _of_these_weights(workspace: Workspace, product: str, weights: str) -> tuple[list[Example], dict[str, str]]:
    store = workspace.stores.defect_names
    fresh: dict[str, NDArray[np.float32]] = {}
    left_out: dict[str, str] = {}
    for example in (e for e in store.examples(product) if e.weights != weights):
        try:
            fresh[example.naming.key] = look(workspace, example.sight, product)
        except (InputError, StorageError) as e:
            left_out[example.naming.key] = str(e)
    if fresh:
        store.put_embeddings(weights, fresh)
    return [e for e in store.examples(product) if e.weights == weights], left_out


def similar(workspace: Workspace, known: NamedDefects, seen: Sight) -> Similar | None:
    """What a finding is like among the named ones; None where none can be compared. Raises as `look` and the bank do."""
    if not known.examples:
        return None
    vector, by_key = look(workspace, seen, known.product), {e.naming.key: e for e in known.examples}
    index = workspace.bank.defects(known.weights, len(vector))
    index.hold(
        known.product,
        known.revision,
        {key: (e.name, e.vector) for key, e in by_key.items()},
        workspace.stores.defect_names.unnamed(known.product),
    )
    found = index.nearest(known.product, vector, by_key)
    return judged(known, [Like(by_key[key], distance) for key, distance in found.items()])


def judged(known: NamedDefects, others: Sequence[Like]) -> Similar | None:
    """The same, from the distances to the named findings."""
    by_name: dict[str, list[float]] = {}
    for like in others:
        by_name.setdefault(like.example.name, []).append(like.distance)
    best = nearest(by_name)
    if best is None:
        return None
    given = best.name if known.rule.allows(best, known.parts(best.name)) else None
    likes = [like for like in others if like.example.name == best.name]
    return Similar(given, best.name, best.strangeness, likes, list(others))
