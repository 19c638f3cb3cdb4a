"""The RefDiff language model: encoder + difference -> projector -> Llama, a LLaVA that is shown a difference.

Liu et al., "Visual Instruction Tuning", 2023, with difference tokens besides image tokens. Text-only turns work as in any
Llama. The seeing half stays in float32 whatever the language half is in, so every engine sees the same numbers.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, GenerationMixin, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from refdiff.model.difference.encoder import EfficientNetLite0
from refdiff.model.difference.network import DifferenceConfig, DifferenceNetwork
from refdiff.model.errors import InputError
from refdiff.model.language.configuration import IMAGE_GRID, PAIR_TOKENS, RefDiffConfig
from refdiff.model.language.pair_tokens import IMAGE_DIM, PairFeatures, global_dim, grid_dim, pair_features, region_dim
from refdiff.model.language.tokens import NEW_TOKENS

JUDGED = 2 * IMAGE_GRID**2  # which of a pair's tokens the global one is
_DROPOUT = 0.1  # in training


class _Mlp(nn.Module):
    """Two layers; inputs are standardised by what training saw."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.linear_1, self.linear_2 = nn.Linear(dim, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x - self.get_buffer("mean")) / self.get_buffer("std")).clamp(-8, 8)
        return self.linear_2(F.dropout(F.gelu(self.linear_1(x)), _DROPOUT, self.training))


class PairProjector(nn.Module):
    """PairFeatures of B pairs -> (B, 85, H) in the space of word embeddings.

    Every token is projected by itself, but for the global one (`JUDGED`), which also gathers what the strongest places say:
    whether there is a defect, and which, can be read off this one token.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.images = _Mlp(IMAGE_DIM, hidden)
        self.whole = _Mlp(global_dim(width), hidden)
        self.grid = _Mlp(grid_dim(width), hidden)
        self.regions = _Mlp(region_dim(width), hidden)
        self.judged = _Mlp(region_dim(width), hidden)
        self.attend = nn.Linear(hidden, 1)
        # which token it is, and how long a visual token should be
        self.slots = nn.Parameter(torch.zeros(PAIR_TOKENS, hidden))
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, seen: PairFeatures) -> Tensor:
        images = self.images(seen.images).flatten(1, 2)  # (B, 32, H)
        judged = self.judged(seen.regions)  # (B, 16, H)
        gathered = (torch.softmax(self.attend(judged), 1) * judged).sum(1, keepdim=True)
        whole = self.whole(seen.whole) + gathered
        return self._placed(torch.cat([images, whole, self.grid(seen.grid), self.regions(seen.regions)], 1))

    def of_reference(self, cells: Tensor) -> Tensor:
        """(N, 16, IMAGE_DIM) of references alone -> (N, 16, H): the first tokens of every pair that they are in."""
        return self._placed(self.images(cells))

    def _placed(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.slots[: tokens.shape[1]]
        return F.rms_norm(tokens, tokens.shape[-1:]) * self.gain

    @torch.no_grad()
    def fit_scales(self, seen: PairFeatures) -> None:
        """Take mean and spread of the inputs from training pairs."""
        inputs = {f.name: f.name for f in fields(PairFeatures)} | {"judged": "regions"}
        for name, of in inputs.items():
            part = self.get_submodule(name)
            values = getattr(seen, of).float().flatten(0, -2)
            part.get_buffer("mean").copy_(values.mean(0))
            part.get_buffer("std").copy_(values.std(0).clamp_min(1e-3))


def seeing_parts(config: RefDiffConfig) -> tuple[EfficientNetLite0, DifferenceNetwork, PairProjector]:
    """Encoder, difference network and projector as the configuration says, without weights."""
    difference = DifferenceNetwork(DifferenceConfig.from_card(config.difference_config))
    projector = PairProjector(difference.config.width, config.text_config.hidden_size)
    return EfficientNetLite0(), difference, projector


class RefDiffForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """input_ids hold PAIR_TOKENS placeholders per pair; pixel_values (pairs, 2, 3, S, S) uint8, reference then query."""

    config_class = RefDiffConfig
    config: RefDiffConfig
    main_input_name = "input_ids"
    _no_split_modules = ["LlamaDecoderLayer"]  # noqa: RUF012 (the base's)
    _keep_in_fp32_modules_strict = {"encoder", "difference", "projector"}  # noqa: RUF012 (the base's)
    _tied_weights_keys = {"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"}  # noqa: RUF012 (the base's)

    def __init__(self, config: RefDiffConfig) -> None:
        super().__init__(config)
        self.encoder, self.difference, self.projector = seeing_parts(config)
        self.language_model = LlamaForCausalLM(config.text_config)  # type: ignore[no-untyped-call]
        self.encoder.requires_grad_(False)
        self.difference.requires_grad_(False)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: every weight comes from a file or from `build`."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.lm_head

    def look(self, pixel_values: Tensor) -> Tensor:
        """(pairs, 2, 3, S, S) uint8 -> (pairs, PAIR_TOKENS, H) in the language model's dtype."""
        self.encoder.eval()
        self.difference.eval()
        return self.projector(pair_features(self.encoder, self.difference, pixel_values)).to(self.language_model.dtype)

    def embed(self, input_ids: Tensor, visual: Tensor | None) -> Tensor:
        """(B, T, H) with visual tokens (pairs, PAIR_TOKENS, H) in place of the placeholders. Raises InputError."""
        words = self.get_input_embeddings()(input_ids)
        image, difference = self.config.image_token_id, self.config.difference_token_id
        at = (input_ids == image) | (input_ids == difference)
        wanted, given = int(at.sum()), 0 if visual is None else visual.shape[0] * visual.shape[1]
        if wanted != given:
            raise InputError(
                f"{wanted} placeholders for {given} visual tokens: each pair of pictures takes {PAIR_TOKENS}, and text "
                f"may not hold them"
            )
        if visual is None:
            return words
        return words.masked_scatter(at[..., None], visual.to(words.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        if inputs_embeds is None:
            assert input_ids is not None
            visual = None if pixel_values is None else self.look(pixel_values)
            inputs_embeds = self.embed(input_ids, visual)
        out = self.language_model(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)
        forbid_placeholders(out.logits, self.config)
        return out

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        pixel_values = kwargs.pop("pixel_values", None)
        first = kwargs.pop("is_first_iteration", False)
        prepared = super().prepare_inputs_for_generation(input_ids, is_first_iteration=first, **kwargs)  # type: ignore[misc]
        if first or prepared.get("past_key_values") is None or not prepared["past_key_values"].get_seq_length():
            prepared["pixel_values"] = pixel_values
        return prepared


def forbid_placeholders(logits: Tensor, config: RefDiffConfig) -> None:
    """Placeholders and spare rows are inputs only: their logits become -inf, in place (vLLM masks the same rows)."""
    first = config.image_token_id
    logits[..., [first, config.difference_token_id]] = -torch.inf
    logits[..., first + len(NEW_TOKENS) :] = -torch.inf


AutoModelForImageTextToText.register(RefDiffConfig, RefDiffForConditionalGeneration, exist_ok=True)
