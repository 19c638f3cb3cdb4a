"""The trained network inside vLLM, in this process: the same answers as plain torch, and none from the wrong pair."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not in this environment (make test-vllm)")
pytestmark = pytest.mark.vllm

from vllm import SamplingParams  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm_parity import (  # noqa: E402
    Pair,
    TorchReader,
    compare,
    conversation,
    vllm_readings,
)

from refdiff.model.language.configuration import IMAGE_TOKENS, NEW_ROWS  # noqa: E402
from refdiff.server.vllm_plugin.processing import PictureItems  # noqa: E402

TOLERANCE = 1e-3  # of a log-probability


@pytest.mark.timeout(900)
def test_vllm_readings_match_plain_torch(llm: Any, reader: TorchReader, pairs: list[Pair]) -> None:
    found = compare(reader, pairs, vllm_readings(llm, pairs))
    assert found.same == found.pairs == len(pairs), found
    assert found.largest < TOLERANCE, found


def test_vllm_never_reuses_a_query_encoded_with_another_reference(
    llm: Any, reader: TorchReader, pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One query after two references, from all caches. Hashed by itself, the query would bring the first reference along."""
    query = pairs[5][1]
    first, second = (pairs[5][0], query), (pairs[7][0], query)
    right = [vllm_readings(llm, [pair])[0] for pair in (first, second, first, second)]
    assert compare(reader, [first, second] * 2, right).largest < TOLERANCE

    monkeypatch.setattr(PictureItems, "get_item_for_hash", lambda items, i: [None, items.data[i].pixels])
    fresh = (pairs[9][0], pairs[11][1]), (pairs[13][0], pairs[11][1])
    naive = [vllm_readings(llm, [pair])[0] for pair in fresh]
    assert compare(reader, fresh[:1], naive[:1]).largest < TOLERANCE
    assert compare(reader, fresh[1:], naive[1:]).largest > 10 * TOLERANCE, "the naive hash goes unnoticed"


def test_reference_is_served_from_the_prefix_cache_for_many_queries(
    llm: Any, reader: TorchReader, pairs: list[Pair]
) -> None:
    reference = pairs[15][0]
    first, *others = (vllm_readings(llm, [(reference, pairs[i][1])])[0] for i in (15, 16, 17))
    before = first.prompt.index(reader.network.config.image_token_id)
    for other in others:
        assert other.cached >= before, "the question and the reference are read once"
        assert other.cached < before + 2 * IMAGE_TOKENS, "the query is another one"
    many = [(reference, pairs[i][1]) for i in (15, 16, 17)]
    assert compare(reader, many, [first, *others]).largest < TOLERANCE


def test_vllm_never_generates_placeholder_tokens(llm: Any, reader: TorchReader, pairs: list[Pair]) -> None:
    config = reader.network.config
    image, difference, rows = config.image_token_id, config.difference_token_id, config.text_config.vocab_size
    spare = range(image + 4, image + NEW_ROWS)
    assert rows == image + NEW_ROWS
    wanted = SamplingParams(
        temperature=0, max_tokens=4, logprobs=20, logit_bias=dict.fromkeys((image, difference, *spare), 100.0)
    )
    said = llm.chat([conversation(pairs[0])], wanted, use_tqdm=False)[0].outputs[0]
    assert all(t < image or t in (image + 2, image + 3) for t in said.token_ids)
    only = SamplingParams(temperature=0, max_tokens=3, allowed_token_ids=[image, difference])
    llm.chat([conversation(pairs[0])], only, use_tqdm=False)  # nothing is allowed: nonsense, but the engine lives
    assert compare(reader, pairs[:1], vllm_readings(llm, pairs[:1])).largest < TOLERANCE


@pytest.mark.parametrize(
    "broken",
    [
        lambda pair: [{"role": "user", "content": conversation(pair)[0]["content"][:2]}],  # one picture
        lambda pair: conversation(pair, "see <image> there"),
        lambda pair: conversation(pair, "x " * 5000),
    ],
    ids=["one picture", "typed placeholder", "too long"],
)
def test_malformed_prompt_leaves_the_next_vllm_reading_right(
    llm: Any, reader: TorchReader, pairs: list[Pair], broken: Any
) -> None:
    # what a server answers with 400; text may also just be text
    with contextlib.suppress(ValueError, RuntimeError, VLLMValidationError):
        llm.chat(broken(pairs[1]), SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    assert compare(reader, pairs[1:2], vllm_readings(llm, pairs[1:2])).largest < TOLERANCE


def test_vllm_plugin_imports_without_agent_dependencies() -> None:
    """What LangGraph, Qdrant and the command line need is not installed where vLLM is; FastAPI is vLLM's own business."""
    code = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"langgraph", "langchain_core", "langchain_openai", "qdrant_client", "typer"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
import refdiff.server.vllm_plugin.network
from refdiff.server.vllm_plugin.register import register
register()
rooms = {n.split(".")[1] for n in sys.modules if n.startswith("refdiff.")}
assert rooms == {"model", "server"}, rooms
assert {n for n in sys.modules if n.startswith("refdiff.server.")} <= {
    "refdiff.server.vllm_plugin", *(f"refdiff.server.vllm_plugin.{n}" for n in ("network", "processing", "register"))}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
