"""The whole network with a tiny random Llama: text-only turns, pictures, placeholders, and a round trip through a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from refdiff.model.errors import InputError
from refdiff.model.language.configuration import DIFFERENCE_TOKENS, IMAGE_TOKENS, PAIR_TOKENS, RefDiffConfig
from refdiff.model.language.network import RefDiffForConditionalGeneration

TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 200 + 64, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
PAIR = [200] * 2 * IMAGE_TOKENS + [201] * DIFFERENCE_TOKENS


@pytest.fixture(scope="module")
def model() -> RefDiffForConditionalGeneration:
    torch.manual_seed(0)
    config = RefDiffConfig(
        text_config=TEXT, image_token_id=200, difference_token_id=201, eos_token_id=2, pad_token_id=2
    )
    made = RefDiffForConditionalGeneration(config)
    torch.nn.init.normal_(made.language_model.model.embed_tokens.weight)
    made.train(False)
    return made


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 255, (1, 2, 3, 320, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_text_only_logits_equal_those_of_plain_llama(model: RefDiffForConditionalGeneration) -> None:
    plain = LlamaForCausalLM(LlamaConfig(**TEXT))  # type: ignore[no-untyped-call]
    plain.load_state_dict(model.language_model.state_dict())
    ids = torch.tensor([[1, 5, 9, 17]])
    assert torch.allclose(model(input_ids=ids).logits[..., :200], plain(ids).logits[..., :200])


@torch.no_grad()
def test_placeholder_and_spare_tokens_cannot_be_generated(model: RefDiffForConditionalGeneration) -> None:
    logits = model(input_ids=torch.tensor([[1, 5]])).logits
    assert torch.isneginf(logits[..., [200, 201]]).all()
    assert torch.isneginf(logits[..., 204:]).all()
    assert logits[..., [202, 203]].isfinite().all()  # the marks of a tool call are said


@torch.no_grad()
def test_pictures_change_only_the_logits_after_them(
    model: RefDiffForConditionalGeneration, pixels: torch.Tensor
) -> None:
    ids = torch.tensor([[1, 5, *PAIR, 9, 11]])
    first, second = (model(input_ids=ids, pixel_values=p).logits for p in (pixels, 255 - pixels))
    assert torch.equal(first[:, :1, :200], second[:, :1, :200])
    assert not torch.allclose(first[:, -1, :200], second[:, -1, :200], atol=1e-3)


@pytest.mark.parametrize(("placeholders", "pairs"), [(0, 1), (PAIR_TOKENS - 1, 1), (PAIR_TOKENS, 2), (PAIR_TOKENS, 0)])
def test_placeholder_count_that_does_not_fit_the_pictures_is_refused(
    model: RefDiffForConditionalGeneration, pixels: torch.Tensor, placeholders: int, pairs: int
) -> None:
    ids = torch.tensor([[1, *PAIR[:placeholders], 9]])
    with pytest.raises(InputError, match=f"{placeholders} placeholders for {pairs * PAIR_TOKENS} visual tokens"):
        model(input_ids=ids, pixel_values=pixels.repeat(pairs, 1, 1, 1, 1) if pairs else None)


@torch.no_grad()
def test_generate_with_cache_equals_generation_without(
    model: RefDiffForConditionalGeneration, pixels: torch.Tensor
) -> None:
    ids = torch.tensor([[1, 5, *PAIR, 9]])
    said = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    step = ids
    for _ in range(4):  # without a cache
        step = torch.cat([step, model(input_ids=step, pixel_values=pixels).logits[:, -1:].argmax(-1)], 1)
    assert said.tolist() == step.tolist()


@torch.no_grad()
def test_saved_model_folder_restores_every_part(
    model: RefDiffForConditionalGeneration, pixels: torch.Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kinds = {n.split(".")[0]: p.dtype for n, p in again.named_parameters()}
    assert kinds == {"encoder": torch.float32, "difference": torch.float32, "projector": torch.float32,
                     "language_model": torch.bfloat16}  # fmt: skip
    ids = torch.tensor([[1, 5, *PAIR, 9]])
    exact = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    exact.train(False)
    whole, other = (m(input_ids=ids, pixel_values=pixels).logits[..., :200] for m in (model, exact))
    assert torch.allclose(whole, other, atol=1e-4)
