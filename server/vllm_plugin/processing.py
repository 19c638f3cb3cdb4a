"""Multi-modal processing in vLLM: image pairs, their hashes and their placeholders in the prompt.

vLLM processes, hashes, caches and encodes every picture separately, so each item must be complete: the second picture of a
pair (the query) also carries the first (the reference). Its hash covers both; hashed alone, a query would be answered with
the difference to an earlier reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdateDetails,
)

from refdiff.model.difference.features import resize_to
from refdiff.model.language.configuration import DIFFERENCE_TOKENS, IMAGE_TOKENS, MAX_PAIRS, RefDiffConfig
from refdiff.model.language.tokens import IMAGE_TOKEN


@dataclass(frozen=True)
class Picture:
    """pixels: (S, S, 3) uint8 RGB, squeezed to a square. reference: set if this is the second image of a pair."""

    pixels: NDArray[np.uint8]
    reference: NDArray[np.uint8] | None


class PictureItems(ImageProcessorItems):  # type: ignore[misc]
    """One item per image, as vLLM requires; each holds everything that its encoding depends on."""

    data: list[Picture]

    def get(self, index: int) -> Picture:
        return self.data[index]

    def get_item_for_hash(self, index: int) -> object:
        """Hash inputs: both images for the second of a pair, so a cached query never gets the wrong reference."""
        picture = self.data[index]
        return [picture.reference, picture.pixels]


class PairParser(MultiModalDataParser):  # type: ignore[misc]
    """Turns the images of a request into items, in order: reference, query, reference, query, ..."""

    def __init__(self, side: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._side = side

    def _parse_image_data(self, data: Any) -> PictureItems | None:
        """Raises ValueError (400 to the client) for anything but pairs of images."""
        if data is None:
            return None
        if isinstance(data, list) and data and all(isinstance(d, Picture) for d in data):
            return PictureItems(data)  # vLLM parses cache misses again
        given = data if isinstance(data, list) else [data]
        if len(given) % 2 or len(given) > 2 * MAX_PAIRS:
            raise ValueError(
                f"{len(given)} picture(s): send pairs, the reference and then the inspected part, at most {MAX_PAIRS}"
            )
        squares = [self._square(d) for d in given]
        return PictureItems([Picture(s, squares[i - 1] if i % 2 else None) for i, s in enumerate(squares)])

    def _square(self, given: Any) -> NDArray[np.uint8]:
        image = given.media if isinstance(given, MediaWithBytes) else given
        if not isinstance(image, Image.Image):
            raise ValueError("a picture without its pixels: send each as a data URL, not by id or as embeddings")
        return resize_to(np.asarray(image.convert("RGB"), dtype=np.uint8), (self._side, self._side))


class RefDiffInfo(BaseProcessingInfo):  # type: ignore[misc]
    def get_hf_config(self) -> RefDiffConfig:
        return self.ctx.get_hf_config(RefDiffConfig)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": 2 * MAX_PAIRS}

    def get_data_parser(self) -> PairParser:
        return PairParser(self.get_hf_config().pair_px)

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": IMAGE_TOKENS + DIFFERENCE_TOKENS}


class RefDiffDummyInputs(BaseDummyInputsBuilder[RefDiffInfo]):  # type: ignore[misc]
    """The largest request, by which vLLM sizes its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: object) -> Any:
        side = self.info.get_hf_config().pair_px
        blank = np.zeros((side, side, 3), np.uint8)
        return {"image": [Picture(blank, blank) for _ in range(mm_counts.get("image", 0))]}


class RefDiffProcessor(BaseMultiModalProcessor[RefDiffInfo]):  # type: ignore[misc]
    def _get_mm_hashes(self, inputs: ProcessorInputs) -> Any:
        """Hash by content only: a client may reuse its own id for another image."""
        return super()._get_mm_hashes(replace(inputs, mm_uuid_items=None))

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """pixel_values: one (1, 3, S, S) uint8 an item, or (2, 3, S, S), reference then query, for the second of a pair."""
        if "image" not in mm_items:
            return BatchFeature()
        pixels = []
        for picture in mm_items["image"].get_all():
            both = [picture.pixels] if picture.reference is None else [picture.reference, picture.pixels]
            pixels.append(torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2).contiguous())
        return BatchFeature({"pixel_values": pixels})

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {"pixel_values": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: object
    ) -> Sequence[PromptReplacement]:
        config = self.info.get_hf_config()
        image, difference = config.image_token_id, config.difference_token_id

        def tokens(index: int) -> PromptUpdateDetails[list[int]]:
            ids = [image] * IMAGE_TOKENS
            if mm_items["image"].get(index).reference is not None:
                ids += [difference] * DIFFERENCE_TOKENS
            return PromptUpdateDetails.select_token_ids(ids, [image, difference])

        return [PromptReplacement(modality="image", target=[image], replacement=tokens)]
