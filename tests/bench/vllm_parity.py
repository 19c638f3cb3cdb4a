"""Does vLLM answer as the network in plain torch does? Readings of rendered pairs, token by token.

Run in the vLLM environment: python tests/bench/vllm_parity.py MODEL_FOLDER --pairs 50 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from refdiff.model.images import RgbImage
from refdiff.model.language.network import RefDiffForConditionalGeneration
from refdiff.model.language.processor import Processor, pair_pixels
from refdiff.model.language.reading import READ, READING_SCHEMA
from refdiff.model.synthesis.materials import PART_KINDS
from refdiff.model.synthesis.render import DefectSpec, applicable_types, render
from refdiff.server.vllm_plugin.grammar import tight_json

Pair = tuple[RgbImage, RgbImage]


@dataclass(frozen=True)
class Answer:
    """What one reading was. tokens, logprobs: generated, of each the log-probability among what the grammar allows.
    cached: tokens of the prompt that were not read again."""

    text: str
    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    cached: int


@dataclass(frozen=True)
class Agreement:
    """same: readings whose every token is torch's own greedy choice. largest, median: of |log-probability difference|."""

    pairs: int
    tokens: int
    same: int
    largest: float
    median: float


def rendered_pairs(n: int, seed: int = 0, side: int = 256) -> list[Pair]:
    """(reference, query) of n rendered parts, every second with a defect; both of one part, so that they differ little."""
    made: list[Pair] = []
    for i in range(n):
        kind, design = PART_KINDS[i % len(PART_KINDS)], seed + i // len(PART_KINDS)
        types = applicable_types(kind)
        broken = [DefectSpec(types[i % len(types)], contrast=1.0, seed=i)] if i % 2 else []
        reference, query = (
            render(kind, design, 1, size=(side, side), noise_seed=2 * i + k, defects=broken if k else []).image
            for k in range(2)
        )
        made.append((reference, query))
    return made


def conversation(pair: Pair | None, text: str = READ) -> list[dict[str, Any]]:
    """The fixed question about a pair, as vLLM's offline interface takes it."""
    pictures = [] if pair is None else [{"type": "image_pil", "image_pil": Image.fromarray(p)} for p in pair]
    return [{"role": "user", "content": [{"type": "text", "text": text}, *pictures]}]


def open_vllm(folder: Path, dtype: str, **settings: Any) -> Any:
    """A vLLM engine in this process, with chunks smaller than a reading's prompt, so that pictures are split."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    for name, value in (("VLLM_CPU_KVCACHE_SPACE", "1"), ("HF_HUB_OFFLINE", "1"), ("VLLM_NO_USAGE_STATS", "1")):
        os.environ.setdefault(name, value)
    from vllm import LLM

    grammar = {"backend": "xgrammar"}
    given = {"max_model_len": 2048, "max_num_seqs": 16, "max_num_batched_tokens": 128, "block_size": 32,
             "enforce_eager": True, "limit_mm_per_prompt": {"image": 8}, "structured_outputs_config": grammar,
             "seed": 0}  # fmt: skip
    return LLM(str(folder), dtype=dtype, **given | settings)


def vllm_readings(llm: Any, pairs: Sequence[Pair]) -> list[Answer]:
    """Readings of all pairs, batched as vLLM likes."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    wanted = SamplingParams(temperature=0, max_tokens=64, logprobs=0,
                            structured_outputs=StructuredOutputsParams(grammar=tight_json(READING_SCHEMA)))  # fmt: skip
    answers = []
    for done in llm.chat([conversation(p) for p in pairs], wanted, use_tqdm=False):
        said = done.outputs[0]
        logprobs = [chosen[token].logprob for token, chosen in zip(said.token_ids, said.logprobs, strict=True)]
        answers.append(
            Answer(
                said.text, list(done.prompt_token_ids), list(said.token_ids), logprobs, int(done.num_cached_tokens or 0)
            )
        )
    return answers


class TorchReader:
    """The network in plain torch, with the same grammar."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        import xgrammar

        self.processor = Processor(folder)
        self.network = RefDiffForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
        self.network.train(False)
        self._vocabulary = self.network.config.text_config.vocab_size
        known = xgrammar.TokenizerInfo.from_huggingface(self.processor.tokenizer, vocab_size=self._vocabulary)
        compiler = xgrammar.GrammarCompiler(known)
        self._grammar = compiler.compile_grammar(tight_json(READING_SCHEMA))

    @torch.inference_mode()
    def check(self, pair: Pair, answer: Answer) -> tuple[bool, list[float]]:
        """Is every token of the answer the greedy one here too, and by how much do the log-probabilities differ?"""
        import xgrammar

        content = [{"type": "text", "text": READ}, *({"type": "image", "image": n} for n in "ab")]
        prompt = self.processor.render([{"role": "user", "content": content}])
        if prompt.ids != answer.prompt:
            raise ValueError("vLLM's prompt is not the processor's")
        pixels = pair_pixels(*pair, self.network.config.pair_px)[None]
        ids = torch.tensor([[*prompt.ids, *answer.tokens]])
        logits = self.network(input_ids=ids, pixel_values=pixels).logits[0, len(prompt.ids) - 1 : -1].float()
        matcher = xgrammar.GrammarMatcher(self._grammar)
        bitmask = xgrammar.allocate_token_bitmask(1, self._vocabulary)
        for step, token in enumerate(answer.tokens):
            matcher.fill_next_token_bitmask(bitmask)
            xgrammar.apply_token_bitmask_inplace(logits[step : step + 1], bitmask)
            matcher.accept_token(token)
        said = torch.tensor(answer.tokens)
        found = logits.log_softmax(-1).gather(1, said[:, None])[:, 0]
        return bool((logits.argmax(-1) == said).all()), (found - torch.tensor(answer.logprobs)).abs().tolist()


def compare(reader: TorchReader, pairs: Sequence[Pair], answers: Sequence[Answer]) -> Agreement:
    checked = [reader.check(p, a) for p, a in zip(pairs, answers, strict=True)]
    apart = [d for _, differences in checked for d in differences]
    return Agreement(len(pairs), len(apart), sum(s for s, _ in checked), max(apart), float(np.median(apart)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of refdiff model build")
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of vLLM's language half")
    parser.add_argument("--torch", choices=["float32", "bfloat16"], default="float32", help="of the network in torch")
    given = parser.parse_args()
    pairs = rendered_pairs(given.pairs, given.seed)
    answers = vllm_readings(open_vllm(given.folder, given.dtype), pairs)
    found = compare(TorchReader(given.folder, getattr(torch, given.torch)), pairs, answers)
    print(json.dumps(vars(given) | {"folder": given.folder.name} | asdict(found)))


if __name__ == "__main__":
    main()
