"""What a conversation with the RefDiff model may hold, the same for every engine: harmless texts, pictures in pairs.

A user message has no picture or two (reference, then query), a conversation at most four pairs. Texts that the tokenizer
reads as tokens with a meaning are taken out wherever a person (or a model) wrote them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refdiff.model.errors import InputError
from refdiff.model.language.configuration import MAX_PAIRS
from refdiff.model.language.tokens import strip_all_control_tokens, strip_control_tokens

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]


def safe_messages(messages: Sequence[Message], picture: str = "image") -> tuple[list[Message], list[tuple[Any, Any]]]:
    """OpenAI's messages with harmless texts, and what the blocks of every pair hold: (reference, query) in order.

    picture: the type of a block that is one; its content is under that very name. Raises InputError: odd numbers of
    pictures, too many pairs, blocks and roles that mean nothing.
    """
    pairs: list[tuple[Any, Any]] = []
    safe = [_safe(m, picture, pairs) for m in messages]
    if len(pairs) > MAX_PAIRS:
        raise InputError(f"{len(pairs)} pairs of pictures in a conversation; at most {MAX_PAIRS} are read")
    return safe, pairs


def _safe(message: Message, picture: str, pairs: list[tuple[Any, Any]]) -> Message:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise InputError(f"a message of role {str(role)[:40]!r}; use {', '.join(ROLES)}")
    if message.get("tool_calls"):
        message = message | {"tool_calls": strip_all_control_tokens(message["tool_calls"])}
    if isinstance(content, str) or content is None:
        return message | {"content": strip_control_tokens(content or "")}
    blocks = _blocks(content, picture)
    shown = [b[picture] for b in blocks if b["type"] == picture]
    if shown and (len(shown) != 2 or role != "user"):
        raise InputError(
            f"a {role} message with {len(shown)} picture(s); user messages have none or two: "
            "the reference, then the inspected part"
        )
    if shown:
        pairs.append((shown[0], shown[1]))
    return message | {"content": blocks}


def _blocks(content: Any, picture: str) -> list[Message]:
    """Blocks of a message; neighbouring texts are one, so no token is spelt across two of them."""
    if not isinstance(content, list):
        raise InputError(f"the content of a message is a text or a list of blocks, not a {type(content).__name__}")
    blocks: list[Message] = []
    for block in content:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == picture and picture in block:
            blocks.append(block)
        elif kind == "text" and isinstance(block.get("text"), str):
            if blocks and blocks[-1]["type"] == "text":
                blocks[-1] = blocks[-1] | {"text": blocks[-1]["text"] + block["text"]}
            else:
                blocks.append({"type": "text", "text": block["text"]})
        else:
            raise InputError(f"a block of type {str(kind)[:40]!r} in a message; use 'text' and {picture!r}")
    return [b if b["type"] == picture else b | {"text": strip_control_tokens(b["text"])} for b in blocks]
