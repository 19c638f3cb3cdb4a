"""The embedded engine: the RefDiff language model in this process, on a CPU, with answers that cannot be malformed.

transformers runs the network in the number format of this CPU; llguidance holds every answer to its JSON schema. Text that
the schema forces is appended without asking the network (jump-forward), and the keys and values of the longest prefix that a
conversation shares with the one before are kept. Calls often repeat words of earlier ones: these are offered to the network
all at once, and kept as far as it would have said them one by one (Saxena, "Prompt lookup decoding", 2023). No LangChain
here, no tools: messages and schemas in, text out.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from refdiff.model.errors import LLMError, StorageError
from refdiff.model.images import RgbImage
from refdiff.model.language.configuration import MAX_CONTEXT, PAIR_TOKENS
from refdiff.model.language.half_weights import halve_weights
from refdiff.model.language.network import RefDiffForConditionalGeneration
from refdiff.model.language.processor import Processor, Prompt, pair_pixels
from refdiff.model.language.reading import READ, READING_SCHEMA
from refdiff.model.number_format import number_format

Pictures = Callable[[str], RgbImage]  # name -> (H, W, 3) uint8
Key = int | tuple[str, str, int]  # a token, or a visual token: reference, query, which

MAX_NEW = 700
_EARLIER = 32  # calls whose words are offered again
_AHEAD = 8  # tokens offered at once: about what costs the network as much as two, one by one
_ALIKE = 3  # last tokens that must be the same
_TIGHT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass
class Usage:
    """What one answer took. Counts are tokens."""

    prompt: int = 0
    reused: int = 0  # of the prompt, from the cache
    generated: int = 0
    forced: int = 0  # of the generated, by the grammar
    guessed: int = 0  # of the generated, as in an earlier answer
    seconds: float = 0.0
    # probability of every token that was the model's own choice, in order
    chosen: list[float] = field(default_factory=list)


@dataclass
class _Cache:
    """Keys and values of the conversation that was read last."""

    keys: list[Key] = field(default_factory=list)
    values: DynamicCache = field(default_factory=DynamicCache)


@contextmanager
def _emptied_if_it_fails(cache: _Cache) -> Iterator[None]:
    """Whatever fails leaves an empty cache, never one that is wrong."""
    try:
        yield
    except BaseException:
        cache.keys, cache.values = [], DynamicCache()
        raise


class Engine:
    """One model, one answer at a time. `last`: the usage of the last answer."""

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        """Raises StorageError where the folder cannot be read."""
        import llguidance.hf

        if threads:
            torch.set_num_threads(threads)
        self.processor = Processor(folder)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self.network: RefDiffForConditionalGeneration = RefDiffForConditionalGeneration.from_pretrained(
                folder, dtype=number_format(), local_files_only=True, use_safetensors=True
            )
            self.network.train(False)
            halve_weights(self.network.language_model)
        except (OSError, ValueError, RuntimeError, SafetensorError) as e:
            raise StorageError(f"{folder}: the model cannot be read ({e}); run: refdiff model build --again") from e
        self.config = self.network.config
        self._guide = llguidance.hf.from_tokenizer(self.processor.tokenizer, n_vocab=self.config.text_config.vocab_size)
        self._conversation = _Cache()
        self._calls: deque[list[int]] = deque(maxlen=_EARLIER)  # tokens of the last calls
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._mutex = threading.Lock()
        self.last = Usage()

    # ---- answers ----

    def call(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        pictures: Pictures,
        possible: Sequence[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """The next tool call: {"name": ..., "arguments": {...}}, valid by the tools' schemas. messages and tools: OpenAI's.

        possible: what may be called now, out of `tools`, which stay the same so the cached prompt can be reused.
        Raises LLMError (conversation too long, answer did not end), InputError (odd pictures).
        """
        functions = [t["function"] for t in possible or tools]
        choices = [
            {
                "type": "object",
                "properties": {"name": {"const": f["name"]}, "arguments": f["parameters"]},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for f in functions
        ]
        with self._mutex:
            prompt = self.processor.render(messages, tools)
            opening = [self.processor.call_id, *self._ids("\n")]
            grammar = self._grammar({"anyOf": choices})
            text = self._constrained(prompt, grammar, pictures, self._conversation, opening, self._calls)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def read(self, reference: RgbImage, query: RgbImage) -> dict[str, Any]:
        """The reading of a pair by the fixed prompt: {"defect": bool, "type": str, "confidence": float}. Raises LLMError.

        confidence: how likely its yes or no was to the model, %. The number it writes is not used: it was never good at it.
        """
        content = [{"type": "text", "text": READ}, *({"type": "image", "image": n} for n in ("reference", "query"))]
        both = {"reference": reference, "query": query}
        with self._mutex:
            self._seen.pop(("reference", "query"), None)
            prompt = self.processor.render([{"role": "user", "content": content}])
            text = self._constrained(prompt, self._grammar(READING_SCHEMA), both.__getitem__, _Cache(), [])
            self._seen.pop(("reference", "query"), None)
            sure = self.last.chosen[0]  # the first choice that the grammar leaves is true or false
        answer: dict[str, Any] = json.loads(text)
        return answer | {"confidence": 100 * sure}

    def answer(self, messages: Sequence[dict[str, Any]], max_new: int = 160) -> str:
        """A short answer in prose, greedily. Raises LLMError."""
        with self._mutex:
            prompt = self.processor.render(messages)
            started, cache = time.perf_counter(), _Cache()
            logits = self._advance(self._keys(prompt), prompt, lambda _: _nothing(), cache)
            said: list[int] = []
            while len(said) < max_new:
                token = int(logits.argmax())
                if token == self.processor.end_id or token == self.config.eos_token_id:
                    break
                said.append(token)
                logits = self._step([token], cache)
            self.last.generated, self.last.seconds = len(said), time.perf_counter() - started
        return str(self.processor.tokenizer.decode(said, skip_special_tokens=True)).strip()

    def choose(self, messages: Sequence[dict[str, Any]], options: Sequence[str]) -> tuple[str, float]:
        """The option (printable text on one line) that the model answers with, greedily, and its probability among the
        options, 0..1. Raises LLMError."""
        import llguidance

        lark = "start: " + " | ".join(json.dumps(o, ensure_ascii=False) for o in options)
        with self._mutex:
            prompt = self.processor.render(messages)
            grammar = llguidance.LLMatcher.grammar_from_lark(lark)
            said = self._constrained(prompt, grammar, lambda _: _nothing(), _Cache(), [])
            return said, math.prod(self.last.chosen)

    # ---- inside ----

    def _ids(self, text: str) -> list[int]:
        return [int(i) for i in self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _grammar(self, schema: dict[str, Any]) -> str:
        import llguidance

        return str(llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_TIGHT))

    @torch.inference_mode()
    def _constrained(
        self,
        prompt: Prompt,
        grammar: str,
        pictures: Pictures,
        cache: _Cache,
        opening: list[int],
        earlier: deque[list[int]] | None = None,
    ) -> str:
        """Greedy text that fits the grammar. earlier: answers like it; this one is added."""
        import llguidance

        with _emptied_if_it_fails(cache):
            started = time.perf_counter()
            matcher = llguidance.LLMatcher(self._guide, grammar)
            said: list[int] = []
            self.last = Usage(prompt=len(prompt.ids))

            def forced() -> list[int]:
                """What the grammar says now, if it leaves no choice."""
                tokens: list[int] = [] if matcher.is_stopped() else matcher.compute_ff_tokens()
                if tokens:
                    matcher.consume_tokens(tokens)
                    said.extend(tokens)
                    self.last.forced += len(tokens)
                return tokens

            def choice(logits: Tensor) -> list[Key]:
                """The token that is likeliest, and what the grammar says then; nothing where the answer ends."""
                if matcher.is_error():
                    raise LLMError(f"the grammar of the answer failed: {matcher.get_error()}")
                if len(said) >= MAX_NEW:
                    raise LLMError(f"the embedded model did not end its answer within {MAX_NEW} tokens")
                allowed = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)[: len(logits)]
                likely = torch.softmax(logits.masked_fill(allowed == 0, -torch.inf), 0)
                token = int(likely.argmax())
                self.last.chosen.append(float(likely[token]))
                if token == self._guide.eos_token:
                    return []
                if not matcher.consume_token(token):
                    raise LLMError(f"the grammar of the answer failed: {matcher.get_error()}")
                said.append(token)
                return [token, *forced()]

            pending: list[Key] = [*self._keys(prompt), *opening, *forced()]
            begun = False
            while pending and not matcher.is_stopped():
                guess = _continued(said, earlier or ())
                if begun:
                    logits = self._step([k for k in pending if isinstance(k, int)] + guess, cache, 1 + len(guess))
                else:
                    logits, begun = self._advance([*pending, *guess], prompt, pictures, cache, 1 + len(guess)), True
                right = 0
                while True:
                    words = choice(logits[right])
                    same = _common(words, guess[right:])
                    right += same
                    self.last.guessed += same
                    pending = [*words[same:]]
                    if pending or not words or matcher.is_stopped():
                        break
                if wrong := len(guess) - right:
                    cache.values.crop(-wrong)
                    del cache.keys[-wrong:]
            if earlier is not None:
                earlier.append(said)
            self.last.generated, self.last.seconds = len(said), time.perf_counter() - started
            return str(self.processor.tokenizer.decode(said, skip_special_tokens=False))

    def _keys(self, prompt: Prompt) -> list[Key]:
        """The prompt as what the network will have seen: visual tokens by their pictures."""
        keys: list[Key] = []
        at = 0
        for token in prompt.ids:
            if token in (self.config.image_token_id, self.config.difference_token_id):
                pair = prompt.pictures[at // PAIR_TOKENS]
                keys.append((*pair, at % PAIR_TOKENS))
                at += 1
            else:
                keys.append(token)
        return keys

    @torch.inference_mode()
    def _advance(self, keys: list[Key], prompt: Prompt, pictures: Pictures, cache: _Cache, last: int = 1) -> Tensor:
        """Read the conversation, reusing what the cache shares with it: logits (last, V) of what follows its last keys."""
        if len(keys) > MAX_CONTEXT:
            raise LLMError(f"the conversation has {len(keys)} tokens, the embedded model reads {MAX_CONTEXT}")
        shared = 0
        for a, b in zip(cache.keys, keys, strict=False):
            if a != b:
                break
            shared += 1
        shared = min(shared, len(keys) - last)
        if (held := cache.values.get_seq_length()) > shared:
            cache.values.crop(shared - held)  # negative: how many to drop
        self.last.reused = shared
        for pair in dict.fromkeys(prompt.pictures):
            if pair not in self._seen and any(isinstance(k, tuple) and k[:2] == pair for k in keys[shared:]):
                pixels = pair_pixels(pictures(pair[0]), pictures(pair[1]), self.config.pair_px)
                self._seen[pair] = self.network.look(pixels[None])[0]
        words = torch.tensor([[k if isinstance(k, int) else 0 for k in keys[shared:]]])
        x = self.network.get_input_embeddings()(words)
        for i, k in enumerate(keys[shared:]):
            if isinstance(k, tuple):
                x[0, i] = self._seen[k[:2]][k[2]].to(x.dtype)
        while len(self._seen) > 16:
            self._seen.pop(next(iter(self._seen)))
        cache.keys = list(keys)
        return self._forward(x, cache, last)

    @torch.inference_mode()
    def _step(self, ids: list[int], cache: _Cache, last: int = 1) -> Tensor:
        cache.keys += ids
        return self._forward(self.network.get_input_embeddings()(torch.tensor([ids])), cache, last)

    def _forward(self, x: Tensor, cache: _Cache, last: int) -> Tensor:
        out = self.network(inputs_embeds=x, past_key_values=cache.values, use_cache=True, logits_to_keep=last)
        logits: Tensor = out.logits[0].float()
        return logits


def _continued(said: Sequence[int], earlier: Iterable[Sequence[int]]) -> list[int]:
    """What followed in the latest of the earlier answers that says the same last tokens; [] if none does."""
    if len(said) < _ALIKE:
        return []
    tail = list(said[-_ALIKE:])
    for answer in reversed(list(earlier)):
        for i in range(len(answer) - _ALIKE):
            if list(answer[i : i + _ALIKE]) == tail:
                return list(answer[i + _ALIKE : i + _ALIKE + _AHEAD])
    return []


def _common(a: Sequence[Key], b: Sequence[Key]) -> int:
    """How many first elements are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _nothing() -> RgbImage:
    raise LLMError("a text-only answer was asked for a conversation with pictures")
