"""Configuration of the RefDiff language model: how many visual tokens a pair has, which ids they take, what is behind."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, LlamaConfig, PretrainedConfig

from refdiff.model.errors import InputError

NEW_ROWS = 64  # added to the vocabulary: the tokens above, the rest spare
IMAGE_GRID, DIFFERENCE_GRID, MAX_REGIONS = 4, 6, 16
IMAGE_TOKENS = IMAGE_GRID**2  # of each picture
DIFFERENCE_TOKENS = 1 + DIFFERENCE_GRID**2 + MAX_REGIONS  # of a pair: global, grid, regions
PAIR_TOKENS = 2 * IMAGE_TOKENS + DIFFERENCE_TOKENS
MAX_PAIRS = 4  # a conversation
MAX_CONTEXT = 6144  # tokens of a conversation


class RefDiffConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """What a model folder's config.json says."""

    model_type = "refdiff"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": LlamaConfig}

    text_config: LlamaConfig  # of the Llama that reads
    pair_px: int  # side of the square that both pictures are brought to
    image_token_id: int  # placeholder of an image token
    difference_token_id: int  # placeholder of a difference token
    difference_config: dict[str, Any]  # `config` of the difference network's card

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        pair_px: int = 320,
        image_token_id: int = 49152,
        difference_token_id: int = 49153,
        difference_config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config or LlamaConfig()
        self.pair_px = pair_px
        self.image_token_id = image_token_id
        self.difference_token_id = difference_token_id
        self.difference_config = difference_config or {
            "width": 64,
            "channels": {"4": 24, "8": 40, "16": 112, "32": 320},
        }
        if kwargs.pop("image_only", False):  # folders built earlier say false
            raise InputError(
                "a model without difference tokens is no longer supported; run: refdiff model build --again"
            )
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> LlamaConfig:
        return self.text_config


AutoConfig.register("refdiff", RefDiffConfig, exist_ok=True)
