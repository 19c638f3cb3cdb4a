"""The RefDiff model in vLLM: our encoder, difference network and projector in front of vLLM's Llama."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors
from vllm.utils.torch_utils import set_default_torch_dtype

from refdiff.model.difference.encoder import EfficientNetLite0
from refdiff.model.difference.network import DifferenceNetwork
from refdiff.model.language.configuration import IMAGE_TOKENS, RefDiffConfig
from refdiff.model.language.network import PairProjector, forbid_placeholders, seeing_parts
from refdiff.model.language.pair_tokens import pair_features, reference_cells
from refdiff.model.language.tokens import IMAGE_TOKEN
from refdiff.server.vllm_plugin.processing import RefDiffDummyInputs, RefDiffInfo, RefDiffProcessor


@MULTIMODAL_REGISTRY.register_processor(RefDiffProcessor, info=RefDiffInfo, dummy_inputs=RefDiffDummyInputs)
class RefDiffForConditionalGeneration(nn.Module, SupportsMultiModal):  # type: ignore[misc]
    encoder: EfficientNetLite0
    difference: DifferenceNetwork
    projector: PairProjector
    if TYPE_CHECKING:  # vLLM's mixin is unknown to the main environment
        configure_mm_token_handling: Any
        _mark_tower_model: Any
        _mark_language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        if modality == "image":
            return IMAGE_TOKEN
        raise ValueError(f"a {modality} was sent; RefDiff reads images only")

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: RefDiffConfig = vllm_config.model_config.hf_config
        self.config = config
        text = config.text_config
        self.configure_mm_token_handling(text.vocab_size, [config.image_token_id, config.difference_token_id])
        # the visual half stays in float32, whatever the dtype of the language half, as in every engine
        with self._mark_tower_model(vllm_config, "image"), set_default_torch_dtype(torch.float32):
            self.encoder, self.difference, self.projector = seeing_parts(config)
            self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=text,
                architectures=["LlamaForCausalLM"],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self._language_dtype = vllm_config.model_config.dtype
        self.eval()

    def embed_multimodal(self, **kwargs: object) -> list[Tensor]:
        """pixel_values: (1, 3, S, S) or (2, 3, S, S) uint8 an item -> (16, H) or (69, H) an item, in that order.

        All pairs of the batch go through encoder and difference network at once; a reference whose pair is in the batch too
        is taken from there.
        """
        items = kwargs.get("pixel_values")
        if items is None:
            return []
        assert isinstance(items, Sequence | Tensor)
        found: list[Tensor | None] = [None] * len(items)
        pairs = [i for i, item in enumerate(items) if len(item) == 2]
        if pairs:
            pixels = torch.stack([items[i] for i in pairs])  # (pairs, 2, 3, S, S)
            tokens = self.projector(pair_features(self.encoder, self.difference, pixels)).to(self._language_dtype)
            for row, i in enumerate(pairs):
                found[i] = tokens[row, IMAGE_TOKENS:]
            for i, item in enumerate(items):
                if len(item) == 1:
                    same = (row for row in range(len(pairs)) if torch.equal(pixels[row, 0], item[0]))
                    if (row_of := next(same, None)) is not None:
                        found[i] = tokens[row_of, :IMAGE_TOKENS]
        alone = [i for i, tokens_of in enumerate(found) if tokens_of is None]
        if alone:
            cells = reference_cells(self.encoder, torch.cat([items[i] for i in alone]))
            for i, tokens_of in zip(alone, self.projector.of_reference(cells).to(self._language_dtype), strict=True):
                found[i] = tokens_of
        return [tokens_of for tokens_of in found if tokens_of is not None]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits with placeholder tokens masked out; None on ranks without logits."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        if logits is not None:
            forbid_placeholders(logits, self.config)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights)
        return loaded
