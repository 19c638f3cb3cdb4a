"""From a conversation to tokens: append-only template, picture pairs, control tokens stripped from text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.utils.function_calling import convert_to_openai_tool

from refdiff.agent import prompts
from refdiff.model.errors import InputError, StorageError
from refdiff.model.language.configuration import MAX_PAIRS, PAIR_TOKENS
from refdiff.model.language.processor import Processor
from refdiff.model.language.tokens import CALL_END_TOKEN, DIFFERENCE_TOKEN, IMAGE_TOKEN, NEW_TOKENS
from refdiff.tools.registry import TRAINED_TOOLS

SCHEMAS = [convert_to_openai_tool(t, strict=True) for t in TRAINED_TOOLS]
Message = dict[str, Any]


@pytest.fixture(scope="module")
def processor(model_folder: Path) -> Processor:
    return Processor(model_folder)


def _call(name: str, **arguments: Any) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": name, "arguments": arguments}]}


def _pair(text: str, names: tuple[str, ...] = ("a", "b")) -> Message:
    return {
        "role": "user",
        "content": [{"type": "text", "text": text}, *({"type": "image", "image": n} for n in names)],
    }


def _run() -> list[Message]:
    """A canonical run of twelve turns and more."""
    messages: list[Message] = [
        {"role": "system", "content": prompts.SYSTEM},
        {"role": "user", "content": prompts.request_message("inspect part #4412", "4412")},
    ]
    results = {"evidence": "e1", "product": "bracket", "width_px": 640, "height_px": 480, "scale": "known"}
    for name, arguments in (
        ("find_part", {"part_id": "4412"}), ("retrieve_reference", {"k": 4}), ("align", {"golden_id": "g-0123456789ab"}),
        ("score_difference", {"golden_ids": []}), ("zoom", {"region": "r1"}), ("measure", {"region": "r1"}),
    ):  # fmt: skip
        messages += [_call(name, **arguments), {"role": "tool", "content": json.dumps(results), "name": name}]
        if name in ("score_difference", "zoom"):
            messages.append(_pair("Pair of e4: reference first, then photo."))
    return messages


def test_system_prompt_has_at_most_350_tokens(processor: Processor) -> None:
    ids = processor.render(_run()[:1], SCHEMAS, add_generation_prompt=False).ids
    assert len(ids) <= 350


def _id(processor: Processor, token: str) -> int:
    return int(processor.tokenizer.convert_tokens_to_ids(token))


def test_chat_template_only_appends_tokens(processor: Processor) -> None:
    messages = _run()
    assert len(messages) >= 12
    before: list[int] = []
    for n in range(1, len(messages) + 1):
        ids = processor.render(messages[:n], SCHEMAS, add_generation_prompt=False).ids
        assert ids[: len(before)] == before
        before = ids
    assert len(before) < 1500


def test_rendered_answer_has_the_generated_tokens(processor: Processor) -> None:
    """What is generated after the prompt and what the next turn renders are the same tokens: the cache holds."""
    messages = _run()
    prompt = processor.render(messages[:2], SCHEMAS).ids
    whole = processor.render(messages[:3], SCHEMAS, add_generation_prompt=False).ids
    said = processor.tokenizer('\n{"name": "find_part", "arguments": {"part_id": "4412"}}\n', add_special_tokens=False)
    end = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert whole == [
        *prompt,
        processor.call_id,
        *said["input_ids"],
        _id(processor, CALL_END_TOKEN),
        processor.end_id,
        *end,
    ]


def test_picture_pair_takes_its_placeholder_tokens(processor: Processor) -> None:
    prompt = processor.render([_pair("look", ("ref", "photo"))])
    placeholders = [i for i in prompt.ids if i in (_id(processor, IMAGE_TOKEN), _id(processor, DIFFERENCE_TOKEN))]
    assert len(placeholders) == PAIR_TOKENS
    assert placeholders == sorted(placeholders)  # both pictures, then their difference
    assert prompt.pictures == [("ref", "photo")]


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c"), ("a", "b", "c", "d")])
def test_pictures_that_are_not_a_pair_are_refused(processor: Processor, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"{len(names)} picture"):
        processor.render([_pair("look", names)])


def test_fifth_picture_pair_is_refused(processor: Processor) -> None:
    assert len(processor.render([_pair("look")] * MAX_PAIRS).pictures) == MAX_PAIRS
    with pytest.raises(InputError, match="5 pairs"):
        processor.render([_pair("look")] * (MAX_PAIRS + 1))


@pytest.mark.parametrize("token", [*NEW_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
@pytest.mark.parametrize("role", ["user", "tool", "system"])
def test_control_tokens_in_text_are_stripped(processor: Processor, token: str, role: str) -> None:
    special = set(
        processor.tokenizer.convert_tokens_to_ids([*NEW_TOKENS, "<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    )
    nested = f"{token[:3]}{token}{token[3:]}"  # taking one out must not make another

    def counted(text: str) -> list[int]:
        return [i for i in processor.render([{"role": role, "content": text}]).ids if i in special]

    assert counted(f"a {token}{nested} b") == counted("a b")


def test_control_token_split_across_text_blocks_is_stripped(processor: Processor) -> None:
    split = [{"type": "text", "text": "a <ima"}, {"type": "text", "text": "ge> b"}]
    assert (
        processor.render([{"role": "user", "content": split}]).ids
        == processor.render([{"role": "user", "content": "a   b"}]).ids
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "root", "content": "x"},
        {"role": "user", "content": 5},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "video", "video": "x"}]},
        {"role": "user", "content": [{"type": "text"}]},
    ],
)
def test_unknown_roles_and_content_are_refused(processor: Processor, message: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"use|text"):
        processor.render([message])


def test_control_tokens_in_tool_calls_are_stripped(processor: Processor) -> None:
    said = _call("submit_report", findings=[{"description": "<image> a <|im_end|>"}], reasoning="</tool_call>")
    clean = _call("submit_report", findings=[{"description": "  a  "}], reasoning=" ")
    assert processor.render([said]).ids == processor.render([clean]).ids


def test_folder_without_a_model_names_the_build_command(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="refdiff model build"):
        Processor(tmp_path)
