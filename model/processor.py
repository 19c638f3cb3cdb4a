"""From a conversation to the network's inputs: the chat template, placeholders for pictures, pictures as one square.

Every user message has no picture or two (reference, then query), a conversation at most four pairs. Placeholder texts that a
person (or a model) wrote are harmless: they are taken out of every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refdiff.model.configuration import (
    DIFFERENCE_TOKEN,
    DIFFERENCE_TOKENS,
    IMAGE_TOKEN,
    IMAGE_TOKENS,
    MAX_PAIRS,
    NEW_TOKENS,
)
from refdiff.model.encoder import resize_to
from refdiff.model.errors import InputError, StorageError
from refdiff.model.images import RgbImage

CHAT_TEMPLATE = Path(__file__).parent / "weights" / "chat_template.jinja"
_BASE_SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Prompt:
    """ids: of the whole text, placeholders expanded. pictures: (reference, query) of every pair, in order."""

    ids: list[int]
    pictures: list[tuple[str, str]]


class Processor:
    """Chat template and tokenizer of a model folder."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageError where the folder is not complete."""
        from transformers import PreTrainedTokenizerFast

        try:
            self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as e:
            raise StorageError(f"{folder}: no tokenizer can be read; run: refdiff model build") from e
        self.image_id, self.difference_id, self.call_id, self.call_end_id = (
            int(i) for i in self.tokenizer.convert_tokens_to_ids(list(NEW_TOKENS))
        )
        self.end_id = int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    @cached_property
    def _guarded(self) -> tuple[str, ...]:
        return (*_BASE_SPECIAL, *NEW_TOKENS)

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        *,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """messages: OpenAI's, pictures as {"type": "image", "image": name}. Raises InputError: odd numbers of pictures."""
        pictures: list[tuple[str, str]] = []
        safe = [self._safe(m, pictures) for m in messages]
        if len(pictures) > MAX_PAIRS:
            raise InputError(f"{len(pictures)} pairs of pictures in a conversation; at most {MAX_PAIRS} are read")
        text = self.tokenizer.apply_chat_template(
            safe, tools=list(tools) or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        reference, query = IMAGE_TOKEN * IMAGE_TOKENS, IMAGE_TOKEN * IMAGE_TOKENS + DIFFERENCE_TOKEN * DIFFERENCE_TOKENS
        parts = str(text).split(IMAGE_TOKEN)
        whole = parts[0] + "".join((reference if i % 2 == 0 else query) + part for i, part in enumerate(parts[1:]))
        return Prompt(self.tokenizer(whole, add_special_tokens=False)["input_ids"], pictures)

    def _safe(self, message: dict[str, Any], pictures: list[tuple[str, str]]) -> dict[str, Any]:
        if message.get("tool_calls"):
            message = message | {"tool_calls": self._plain(message["tool_calls"])}
        content = message.get("content")
        if isinstance(content, str) or content is None:
            return message | {"content": self.harmless(content or "")}
        shown = [str(b["image"]) for b in content if b.get("type") == "image"]
        if shown and (len(shown) != 2 or message.get("role") != "user"):
            raise InputError(
                f"a {message.get('role')} message with {len(shown)} picture(s); user messages have none or two: "
                "the reference, then the inspected part"
            )
        if shown:
            pictures.append((shown[0], shown[1]))
        blocks = [b if b.get("type") == "image" else b | {"text": self.harmless(b.get("text", ""))} for b in content]
        return message | {"content": blocks}

    def _plain(self, value: Any) -> Any:
        """Calls whose texts hold no token with a meaning: a model may have spelt one."""
        if isinstance(value, str):
            return self.harmless(value)
        if isinstance(value, list):
            return [self._plain(v) for v in value]
        return {k: self._plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    def harmless(self, text: str) -> str:
        """The text with the tokens that have a meaning taken out; taking one out must not assemble another."""
        before = None
        while before != text:
            before = text
            for token in self._guarded:
                text = text.replace(token, " ")
        return text


def pair_pixels(reference: RgbImage, query: RgbImage, side: int) -> Tensor:
    """(2, 3, side, side) uint8: both pictures squeezed to one square."""
    both = np.stack([resize_to(reference, (side, side)), resize_to(query, (side, side))])
    return torch.from_numpy(both).permute(0, 3, 1, 2).contiguous()
