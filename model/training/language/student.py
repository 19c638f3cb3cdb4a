"""The language model in training: a frozen base with LoRA and a projector, and its loss on a batch of examples."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refdiff.model.language.network import RefDiffForConditionalGeneration
from refdiff.model.language.pair_tokens import PairFeatures
from refdiff.model.language.tokens import NEW_TOKENS
from refdiff.model.number_format import number_format
from refdiff.model.training.language.data import rows_of
from refdiff.model.training.language.examples import Example


class LoraLinear(nn.Module):
    """Hu et al. 2022: W x + scale * B A x, W frozen. A and B are float32, the product is in the input's dtype."""

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale


class Student(nn.Module):
    """The network in training: frozen base in the number format of this CPU, projector, new rows and LoRA in float32."""

    def __init__(self, model: RefDiffForConditionalGeneration, rank: int) -> None:
        super().__init__()
        self.projector = model.projector.float().requires_grad_(True)
        self.llama = model.language_model.model.to(number_format()).requires_grad_(False)
        words = self.llama.embed_tokens.weight
        self.n_words = model.config.image_token_id
        self.placeholders = (model.config.image_token_id, model.config.difference_token_id)
        self.rows = nn.Parameter(words[self.n_words : self.n_words + len(NEW_TOKENS)].float().clone())
        self.scale = 2.0
        self.lora: dict[str, LoraLinear] = {}
        if rank:
            for name, module in list(self.llama.named_modules()):
                for child, linear in list(module.named_children()):
                    if isinstance(linear, nn.Linear):
                        wrapped = LoraLinear(linear, rank, self.scale)
                        setattr(module, child, wrapped)
                        self.lora[f"model.{name}.{child}"] = wrapped

    def forward(self, ids: Tensor, mask: Tensor, seen: PairFeatures | None, at: Tensor) -> Tensor:
        """ids (B, T), mask (B, T) 1 = real, at (N,) flat positions whose next token is asked -> logits (N, V)."""
        x = self.llama.embed_tokens(ids)
        new = ids >= self.n_words
        if new.any():
            x = x.clone()
            x[new] = F.embedding(ids[new] - self.n_words, self.rows).to(x.dtype)
        if seen is not None:
            visual = self.projector(seen).to(x.dtype)
            where = (ids == self.placeholders[0]) | (ids == self.placeholders[1])
            x = x.masked_scatter(where[..., None], visual)
        hidden = self.llama(inputs_embeds=x, attention_mask=mask).last_hidden_state.flatten(0, 1)[at]
        words = F.linear(hidden, self.llama.embed_tokens.weight[: self.n_words])
        extra = F.linear(hidden.float(), self.rows)[:, len(self.placeholders) :]
        return torch.cat([words.float(), extra], 1)

    def target(self, ids: Tensor) -> Tensor:
        """Ids as columns of the logits: the placeholders have none."""
        return torch.where(ids >= self.n_words, ids - len(self.placeholders), ids)

    def trained(self) -> dict[str, Tensor]:
        tensors = {f"projector.{k}": v for k, v in self.projector.state_dict().items()} | {"rows": self.rows.detach()}
        for name, layer in self.lora.items():
            tensors |= {f"lora.{name}.A": layer.A.detach(), f"lora.{name}.B": layer.B.detach()}
        return tensors

    def load(self, tensors: dict[str, Tensor]) -> None:
        own = self.trained()
        with torch.no_grad():
            for name, value in tensors.items():
                if name in own:
                    own[name].copy_(value)


def batch_tensors(batch: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, mask (B, T); flat positions that predict, the weights of what they predict."""
    longest = max(len(e.ids) for e in batch)
    ids, mask = torch.zeros(len(batch), longest, dtype=torch.long), torch.zeros(len(batch), longest, dtype=torch.long)
    weights = torch.zeros(len(batch), longest)
    for i, e in enumerate(batch):
        ids[i, : len(e.ids)], mask[i, : len(e.ids)] = torch.tensor(e.ids), 1
        weights[i, : len(e.ids) - 1] = torch.tensor(e.weights[1:])
    at = weights.flatten().nonzero()[:, 0]
    return ids, mask, at, weights.flatten()[at]


def loss_of(student: Student, batch: Sequence[Example], seen: PairFeatures | None) -> tuple[Tensor, Tensor]:
    """Mean loss, and whether each asked token was right."""
    ids, mask, at, weights = batch_tensors(batch)
    rows = [r for e in batch for r in e.rows]
    logits = student(ids, mask, rows_of(seen, rows) if rows and seen is not None else None, at)
    target = student.target(ids.flatten()[at + 1])
    loss = (F.cross_entropy(logits, target, reduction="none") * weights).sum() / weights.sum()
    return loss, (logits.argmax(1) == target) & (weights >= 1)
