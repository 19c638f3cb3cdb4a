"""From a conversation to the network's inputs: the chat template, placeholders for pictures, pictures as one square.

What a conversation may hold is in messages.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refdiff.model.difference.features import resize_to
from refdiff.model.errors import StorageError
from refdiff.model.images import RgbImage
from refdiff.model.language.configuration import DIFFERENCE_TOKENS, IMAGE_TOKENS
from refdiff.model.language.messages import safe_messages
from refdiff.model.language.tokens import CALL_TOKEN, DIFFERENCE_TOKEN, IMAGE_TOKEN


@dataclass(frozen=True)
class Prompt:
    """A conversation as the network reads it."""

    ids: list[int]  # of the whole text, placeholders expanded
    pictures: list[tuple[str, str]]  # (reference, query) of every pair, in order


class Processor:
    """Chat template and tokenizer of a model folder."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageError where the folder is not complete."""
        from transformers import PreTrainedTokenizerFast

        try:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as e:
            raise StorageError(f"{folder}: no tokenizer can be read; run: refdiff model build") from e
        self.call_id = int(self.tokenizer.convert_tokens_to_ids(CALL_TOKEN))
        self.end_id = int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """messages: OpenAI's, pictures as {"type": "image", "image": name}. Raises InputError: odd numbers of pictures."""
        safe, pairs = safe_messages(messages)
        text = self.tokenizer.apply_chat_template(
            safe, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        first, second = IMAGE_TOKEN * IMAGE_TOKENS, IMAGE_TOKEN * IMAGE_TOKENS + DIFFERENCE_TOKEN * DIFFERENCE_TOKENS
        parts = str(text).split(IMAGE_TOKEN)
        whole = parts[0] + "".join((first if i % 2 == 0 else second) + part for i, part in enumerate(parts[1:]))
        ids = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        return Prompt(ids, [(str(reference), str(query)) for reference, query in pairs])


def pair_pixels(reference: RgbImage, query: RgbImage, side: int) -> Tensor:
    """(2, 3, side, side) uint8: both pictures squeezed to one square."""
    both = np.stack([resize_to(reference, (side, side)), resize_to(query, (side, side))])
    return torch.from_numpy(both).permute(0, 3, 1, 2).contiguous()
