"""The first stage: the projector learns to point at the words of the right reading, without the language base."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refdiff.model.defect_types import READING_TYPES
from refdiff.model.language.network import JUDGED
from refdiff.model.language.processor import Processor
from refdiff.model.progress import Progress
from refdiff.model.training.language.data import rows_of
from refdiff.model.training.language.examples import TrainingData
from refdiff.model.training.language.recipe import LanguageRecipe
from refdiff.model.training.language.student import Student

_SHARPNESS = 16.0  # of the softmax over cosines


def align_projector(
    student: Student, processor: Processor, recipe: LanguageRecipe, data: TrainingData, progress: Progress
) -> None:
    """Before any language: the global token learns to point at the words of the right reading.

    A cosine softmax over the (frozen) embeddings of "true" and "false" and of the types' names. The base then finds the
    answer in a token that means almost what it is to say; through thirty layers it learned that slowly and badly.
    """
    if not recipe.align_epochs:
        return
    table = student.llama.embed_tokens.weight.float()

    def anchors(words: Sequence[str]) -> Tensor:
        ids = [processor.tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]
        mean = torch.stack([table[i].mean(0) for i in ids])
        return F.normalize(mean - mean.mean(0), dim=1)

    yes_no, types = anchors(("true", "false")), anchors(READING_TYPES)
    rows = torch.tensor([e.rows[0] for e in data.readings])
    answers = [e.truth for e in data.readings]
    defect = torch.tensor([0 if d else 1 for d, _ in answers])
    kind = torch.tensor([READING_TYPES.index(k) for _, k in answers])
    projector = student.projector.train()
    parameters = [*projector.judged.parameters(), *projector.attend.parameters(), *projector.whole.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    rng = np.random.default_rng([recipe.seed, 99])
    per_epoch = math.ceil(len(rows) / 64)
    for step in range(recipe.align_epochs * per_epoch):
        if step % per_epoch == 0:
            order = torch.from_numpy(rng.permutation(len(rows)))
        batch = order[step % per_epoch * 64 :][:64]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / (recipe.align_epochs * per_epoch)))
        token = F.normalize(projector(rows_of(data.seen, rows[batch].tolist()))[:, JUDGED], dim=1)
        loss = F.cross_entropy(_SHARPNESS * token @ yes_no.T, defect[batch])
        loss = loss + F.cross_entropy(_SHARPNESS * token @ types.T, kind[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress("aligning", step + 1, recipe.align_epochs * per_epoch, f"loss {float(loss.detach()):.3f}")
