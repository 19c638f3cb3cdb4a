"""Token sequences to train on, from judged pairs and recorded conversations, and the order in which they come.

Only assistant messages carry a loss.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.model.defect_types import NO_DEFECT
from refdiff.model.difference.scorer import read_network
from refdiff.model.errors import InputError
from refdiff.model.language.pair_tokens import PairFeatures
from refdiff.model.language.processor import Processor
from refdiff.model.language.reading import READ, reading_text
from refdiff.model.progress import Progress
from refdiff.model.training.language.data import Recordings, build_pairs, pairs_of, read_recordings
from refdiff.model.training.language.recipe import LanguageRecipe
from refdiff.model.training.pairs import Source

_ASSISTANT = "<|im_start|>assistant\n"


@dataclass(frozen=True)
class Example:
    """One sequence of T tokens."""

    ids: tuple[int, ...]  # (T,) with placeholders for pictures
    weights: tuple[float, ...]  # (T,) of the loss on predicting each id
    rows: tuple[int, ...]  # of the pairs it shows, in order
    kind: str  # "reading", "inspection" or "question"
    key: str = ""  # of the photo it is about
    truth: tuple[bool, str] = (False, NO_DEFECT)  # of a reading: defect or not, and its type


@dataclass(frozen=True)
class TrainingData:
    """All examples of a run, and the pairs that they show."""

    seen: PairFeatures  # of all pairs: `Example.rows` count these
    readings: list[Example]  # judged pairs to train on
    talks: list[Example]  # conversations to train on
    val: list[Example]  # held out of both
    sources: list[str]  # names of what the examples are of


def encode_talk(
    line: dict[str, Any], processor: Processor, tools: Sequence[dict[str, Any]], rows: Sequence[int]
) -> Example:
    """A recorded conversation as one sequence; the loss is on what the assistant says, unless a message is marked."""
    messages = [{k: v for k, v in m.items() if k in ("role", "content", "tool_calls")} for m in line["messages"]]
    whole = processor.render(messages, tools if line["kind"] == "inspection" else (), add_generation_prompt=False).ids
    opening = processor.tokenizer(_ASSISTANT, add_special_tokens=False)["input_ids"]
    end = processor.end_id
    wanted = [bool(m.get("train", True)) for m in line["messages"] if m["role"] == "assistant"]
    weights = [0.0] * len(whole)
    at, turn = 0, 0
    while at < len(whole):
        if whole[at : at + len(opening)] == opening:
            at += len(opening)
            stop = whole.index(end, at)
            if wanted[turn]:
                weights[at : stop + 1] = [1.0] * (stop + 1 - at)
            turn, at = turn + 1, stop
        at += 1
    return Example(tuple(whole), tuple(weights), tuple(rows), line["kind"])


def encode_reading(truth: dict[str, Any], logit: float, processor: Processor, row: int) -> Example:
    """A judged pair. The confidence to state is what the frozen network gives the truth, one half at least."""
    sure = 1 / (1 + math.exp(-logit if truth["defect"] else logit))
    answer = reading_text(truth["defect"], truth["type"], max(0.5, sure))
    asked: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": READ}, *({"type": "image", "image": n} for n in "rq")]}
    ]
    prompt = processor.render(asked).ids
    said = processor.tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    # what is decided weighs more than the form, which the grammar gives
    kind = json.loads(answer)["type"]
    decided = [(answer.index(v), answer.index(v) + len(v)) for v in (json.dumps(truth["defect"]), f'"{kind}"')]
    weights = [3.0 if any(lo < b and a < hi for lo, hi in decided) else 0.2 for a, b in said["offset_mapping"]]
    return Example(
        (*prompt, *said["input_ids"], processor.end_id), (*[0.0] * len(prompt), *weights, 0.2), (row,), "reading",
        truth=(truth["defect"], kind),
    )  # fmt: skip


def image_logits(seen: PairFeatures, n_types: int, width: int) -> list[float]:
    """The difference network's own image logit of every pair, where `pair_tokens` put it."""
    return [float(v) for v in seen.whole[:, 0, 2 * width + n_types]]


def training_data(recipe: LanguageRecipe, sources: Sequence[Source], recordings: Path, out: Path, processor: Processor,
          tools: Sequence[dict[str, Any]], weights: Path, progress: Progress) -> TrainingData:  # fmt: skip
    kept = [s for s in sources if not any(s.name.startswith(p) for p in recipe.left_out)]
    seen, truth = build_pairs(kept, recipe.seed, recipe.pairs, out / "pairs", recipe.workers,
                              lambda d, t: progress("pairs", d, t), weights)  # fmt: skip
    recorded: Recordings = read_recordings(recordings, out / "recorded", recipe.workers,
                                           lambda d, t: progress("encoding recordings", d, t), weights)  # fmt: skip
    first = len(truth)
    if recorded.seen is not None:
        seen = PairFeatures.cat([seen, recorded.seen])
    net, _, _ = read_network(weights)
    n_types = net.type_head.out_channels
    logits = image_logits(seen, n_types, net.config.width)
    readings = [replace(encode_reading(t, logits[i], processor, i), key=f"pair {i}") for i, t in enumerate(truth)]
    talks: list[Example] = []
    names = {t["source"] for t in truth}
    for number, line in enumerate(recorded.lines):
        if line["test"] or any(line["product"].startswith(p) for p in recipe.left_out):
            continue
        rows = [first + recorded.rows[p] for p in pairs_of(line)]
        names.add(line["product"])
        key = str(line.get("photo", number))
        if line["kind"] == "reading":
            readings.append(replace(encode_reading(line["reading"], logits[rows[0]], processor, rows[0]), key=key))
        else:
            talks.append(replace(encode_talk(line, processor, tools, rows), key=key))
    if not talks:
        raise InputError(f"{recordings}: no conversation to train on; record some first")
    val = [e for part in (readings, talks) for e in split_by_photo(part, held=True)]
    return TrainingData(
        seen, split_by_photo(readings, held=False), split_by_photo(talks, held=False), val, sorted(names)
    )


def split_by_photo(examples: Sequence[Example], *, held: bool) -> list[Example]:
    """Training examples, or the twentieth that is held out (the first, if chance holds out none); all of one photo go to one
    side."""
    mine = [int(hashlib.sha256(e.key.encode()).hexdigest(), 16) % 20 == 0 for e in examples]
    if not any(mine):
        mine[0] = True
    return [e for e, out in zip(examples, mine, strict=True) if out == held]


def _batches(
    examples: Sequence[Example], order: Sequence[int], tokens: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Batches of about one length that hold at most `tokens` with padding, in random order."""
    keyed = sorted(order, key=lambda i: (len(examples[i].ids), i))
    made: list[list[int]] = []
    batch: list[int] = []
    for i in keyed:
        if batch and len(examples[i].ids) * (len(batch) + 1) > tokens:
            made.append(batch)
            batch = []
        batch.append(i)
    made.append(batch)
    for j in rng.permutation(len(made)):
        yield made[j]


def schedule(recipe: LanguageRecipe, data: TrainingData) -> list[tuple[int, list[Example]]]:
    """(stage, batch) for the whole run, the same whenever it is asked."""
    plan: list[tuple[int, list[Example]]] = []
    stages = ((1, recipe.projector_epochs, 0.0), (2, recipe.pair_epochs, recipe.talk_epochs))
    for stage, pair_epochs, talk_epochs in stages:
        rng = np.random.default_rng([recipe.seed, stage])
        mixed: list[tuple[int, list[Example]]] = []
        for part, epochs in ((data.readings, pair_epochs), (data.talks, talk_epochs)):
            left = epochs
            while left > 0:
                order = rng.permutation(len(part))[: math.ceil(min(1.0, left) * len(part))].tolist()
                mixed += [(stage, [part[i] for i in b]) for b in _batches(part, order, recipe.tokens, rng) if b]
                left -= 1
        plan += [mixed[i] for i in rng.permutation(len(mixed))]
    return plan
