"""Control tokens: those added for the RefDiff model, and how they are kept out of texts of people and models."""

from __future__ import annotations

import re
from typing import Any

from refdiff.model.errors import InputError

IMAGE_TOKEN, DIFFERENCE_TOKEN = "<image>", "<difference>"
CALL_TOKEN, CALL_END_TOKEN = "<tool_call>", "</tool_call>"
# rows behind the base's vocabulary, in this order
NEW_TOKENS = (IMAGE_TOKEN, DIFFERENCE_TOKEN, CALL_TOKEN, CALL_END_TOKEN)
# what our own tokenizer reads as a control token wherever it stands
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", *NEW_TOKENS)
# what the chat template of any model may give a meaning, ours included
_TEMPLATE_TOKEN = re.compile(r"<\|[^|>]{1,40}\|>|<[|/]?[a-z][\w|. -]{0,40}>|<</?SYS>>|\[/?INST\]", re.IGNORECASE)
MAX_DEPTH = 64  # of lists and objects in tool calls; those that the tools have are four deep


def strip_template_tokens(text: str) -> str:
    """A person's text without anything that a chat template may read as a token, whatever model it is for."""
    before = None
    while before != text:  # taking one out must not assemble another
        before, text = text, _TEMPLATE_TOKEN.sub(" ", text)
    return text


def strip_control_tokens(text: str) -> str:
    """The text with the tokens that have a meaning taken out; taking one out must not assemble another."""
    before = None
    while before != text:
        before = text
        for token in CONTROL_TOKENS:
            text = text.replace(token, " ")
    return text


def strip_all_control_tokens(value: Any, depth: int = MAX_DEPTH) -> Any:
    """JSON data whose texts hold no token with a meaning: a model may have spelt one in its arguments.

    Raises InputError for data nested deeper than `depth`.
    """
    if isinstance(value, str):
        return strip_control_tokens(value)
    if not isinstance(value, list | dict):
        return value
    if depth <= 0:
        raise InputError(f"a message is nested more than {MAX_DEPTH} deep; send plainer arguments of tool calls")
    if isinstance(value, list):
        return [strip_all_control_tokens(v, depth - 1) for v in value]
    return {strip_control_tokens(k): strip_all_control_tokens(v, depth - 1) for k, v in value.items()}
