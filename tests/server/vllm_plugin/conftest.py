"""Tests of what runs inside vLLM, in its own environment (`make test-vllm`): there the rooms beside model/ do not import."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vllm_parity import Pair, TorchReader, open_vllm, rendered_pairs

from refdiff.model.language.build import build_model
from refdiff.model.settings import ModelSettings


@pytest.fixture(scope="session")
def folder() -> Path:
    return build_model(ModelSettings())


@pytest.fixture(scope="session")
def pairs() -> list[Pair]:
    return rendered_pairs(50)


@pytest.fixture(scope="session")
def llm(folder: Path) -> Iterator[Any]:
    """vLLM in this process with the trained weights in float32: prefix cache on, prefill in chunks that split pictures."""
    engine = open_vllm(folder, "float32")
    settings = engine.llm_engine.vllm_config
    assert settings.cache_config.enable_prefix_caching
    assert settings.scheduler_config.enable_chunked_prefill
    yield engine
    engine.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def reader(folder: Path) -> TorchReader:
    return TorchReader(folder)
