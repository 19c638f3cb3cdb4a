"""The recipe of the language model, run on a tiny base: examples, losses, resuming, and weights that build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from refdiff.model.errors import InputError
from refdiff.model.language import build
from refdiff.model.language.base_weights import LanguageBase
from refdiff.model.language.folder import own_difference
from refdiff.model.language.processor import Processor
from refdiff.model.language.reading import reading_text
from refdiff.model.synthesis.render import render
from refdiff.model.training.language import train as training
from refdiff.model.training.language.data import board_zoom
from refdiff.model.training.language.examples import Example, encode_reading, encode_talk, split_by_photo
from refdiff.model.training.language.recipe import LanguageRecipe
from refdiff.model.training.language.train import train_language
from refdiff.model.training.pairs import Photo, Source
from refdiff.model.weights_file import read_weights

RECIPE = LanguageRecipe(pairs=32, projector_epochs=0.2, pair_epochs=0.2, talk_epochs=1, rank=2, workers=1, tokens=512)


@pytest.fixture(scope="module")
def base(model_folder: Path) -> LanguageBase:
    """The real tokenizer, a Llama of two layers."""
    tokenizer = json.loads((model_folder / "tokenizer.json").read_text())
    n = 49152
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] < n]
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": n, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 2, "max_position_embeddings": 2048,
    }  # fmt: skip
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    net = LlamaForCausalLM(LlamaConfig(**text))  # type: ignore[no-untyped-call]
    tensors = {k: v for k, v in net.state_dict().items() if k != "lm_head.weight"}
    return LanguageBase(text, tensors, tokenizer)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recordings")
    (out / "images").mkdir()
    for name, instance in (("a", 1), ("b", 2)):
        Image.fromarray(render("label", 3, instance, size=(96, 96)).image).save(out / "images" / f"{name}.png")
    (out / "label.jsonl").write_text("".join(json.dumps(x) + "\n" for x in _lines()))
    (out / "tools.json").write_text("[]")
    return out


def _lines() -> list[dict[str, Any]]:
    def call(name: str, train: bool = True) -> dict[str, Any]:
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "name": name, "arguments": {}}],
            "train": train,
        }

    pair = [{"type": "text", "text": "Pair"}, {"type": "image", "image": "a"}, {"type": "image", "image": "b"}]
    common = {"product": "label", "template": "t", "test": False}
    talk = [{"role": "user", "content": "inspect"}, call("wrong", train=False), {"role": "tool", "content": "no"},
            {"role": "user", "content": pair}, call("right")]  # fmt: skip
    return [
        common | {"kind": "inspection", "asked": "plain", "messages": talk},
        common | {"kind": "reading", "pair": ["a", "b"], "reading": {"defect": False, "type": "none"}},
        common | {"kind": "question", "known": True,
                  "messages": [{"role": "user", "content": "Question: ok?"},
                               {"role": "assistant", "content": "PASS.", "train": True}]},
        common | {"kind": "inspection", "asked": "plain", "messages": talk} | {"test": True},
    ]  # fmt: skip


@pytest.fixture
def run(base: LanguageBase, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(training, "fetch_wheel", lambda cache: cache)
    monkeypatch.setattr(training, "read_base", lambda wheel: base)

    def train(recipe: LanguageRecipe = RECIPE, **kwargs: Any) -> Path:
        return train_language(recipe, [], recordings, tmp_path / "run", **kwargs)

    return train


def test_loss_covers_the_assistant_tokens_only(model_folder: Path) -> None:
    processor = Processor(model_folder)
    example = encode_talk(_lines()[0], processor, [], [0])
    said = [processor.tokenizer.decode([i]) for i, w in zip(example.ids, example.weights, strict=True) if w]
    assert "".join(said) == '<tool_call>\n{"name": "right", "arguments": {}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("defect", "kind", "logit"), [(True, "pin-hole", 3.0), (False, "none", -1.0), (True, "none", -9.0)]
)
def test_reading_loss_weighs_defect_and_type_most(model_folder: Path, defect: bool, kind: str, logit: float) -> None:
    processor = Processor(model_folder)
    example = encode_reading({"defect": defect, "type": kind}, logit, processor, 0)
    heavy = "".join(
        processor.tokenizer.decode([i]) for i, w in zip(example.ids, example.weights, strict=True) if w >= 1
    )
    assert heavy.replace(" ", "").strip('",').startswith(json.dumps(defect))
    assert kind in heavy
    assert "confidence" not in heavy


@pytest.mark.parametrize(("sure", "said"), [(0.5, 50), (0.93, 95), (0.999, 99), (0.0, 1)])
def test_reading_confidence_is_written_in_steps(sure: float, said: int) -> None:
    assert json.loads(reading_text(True, "scratch", sure))["confidence"] == said


@pytest.mark.long
def test_killed_language_training_resumes_and_its_weights_build(run: Any, base: LanguageBase, tmp_path: Path) -> None:
    steps: list[int] = []

    class Killed(Exception):
        pass

    def stop(what: str, done: int, total: int, note: str = "") -> None:
        if what == "training":
            steps.append(done)
            if done == 2 and len(steps) == 2:
                raise Killed

    training._CHECKPOINT_S, before = -1.0, training._CHECKPOINT_S  # a checkpoint after every step
    try:
        with pytest.raises(Killed):
            run(progress=stop)
        weights = run(progress=stop)
    finally:
        training._CHECKPOINT_S = before
    assert steps[:2] == [1, 2]
    assert steps[2] == 2  # step 2 was not saved yet when it was killed
    assert steps[2:] == list(range(2, steps[-1] + 1))
    trained, card, _ = build.read_trained(weights)
    assert card["tokens"] > 0
    assert card["recipe"]["seed"] == 0
    assert (weights.parent / "LANGUAGE_CARD.md").is_file()
    assert (weights.parent / "language_curves.png").is_file()
    difference = own_difference(weights)
    assert read_weights(difference, "difference")[2] == trained.difference_sha256
    model = build.assemble(base, trained, difference)
    name, (a, b) = next(iter(trained.lora.items()))
    merged = model.language_model.state_dict()[f"{name}.weight"]
    assert torch.allclose(merged, base.tensors[f"{name}.weight"] + trained.scale * (b @ a), atol=1e-6)


@pytest.mark.long
def test_run_folder_of_another_recipe_is_refused(run: Any) -> None:
    run(LanguageRecipe(**(vars(RECIPE) | {"projector_epochs": 0.01, "pair_epochs": 0.01, "talk_epochs": 0.01})))
    with pytest.raises(InputError, match="another recipe"):
        run()


@pytest.mark.long
def test_language_training_starts_from_earlier_weights(run: Any, recordings: Path, tmp_path: Path) -> None:
    short = LanguageRecipe(**(vars(RECIPE) | {"projector_epochs": 0.01, "pair_epochs": 0.01, "talk_epochs": 0.01}))
    first = run(short)
    for other in ("then", "wrong"):  # what was encoded is used again
        for folder in ("pairs", "recorded"):
            shutil.copytree(first.parent / folder, tmp_path / other / folder)
    then = LanguageRecipe(**(vars(short) | {"start": str(first), "lora_lr": 0.0, "projector_lr": 0.0}))
    second = train_language(then, [], recordings, tmp_path / "then")
    a, b = build.read_trained(first), build.read_trained(second)
    assert b[1]["started_from"] == {"sha256": a[2], "tokens": a[1]["tokens"]}
    assert "start" not in b[1]["recipe"]  # a path of whoever trained it
    for name, value in a[0].projector.items():  # at no learning rate they are what they were
        assert torch.allclose(b[0].projector[name].float(), value.float(), atol=2e-3), name
    with pytest.raises(InputError, match="another rank"):
        train_language(LanguageRecipe(**(vars(then) | {"rank": then.rank + 1})), [], recordings, tmp_path / "wrong")


@pytest.mark.long
def test_run_folder_with_changed_recordings_is_refused(run: Any, recordings: Path, tmp_path: Path) -> None:
    short = LanguageRecipe(**(vars(RECIPE) | {"projector_epochs": 0.01, "pair_epochs": 0.01, "talk_epochs": 0.01}))
    run(short)
    more = recordings / "more.jsonl"
    more.write_text(json.dumps(_lines()[2]) + "\n")
    try:
        with pytest.raises(InputError, match="other recordings"):
            run(short)
    finally:
        more.unlink()


def test_split_keeps_each_photo_on_one_side() -> None:
    examples = [Example((1,), (1.0,), (), "question", f"photo {i % 30}") for i in range(120)]
    held, kept = ({e.key for e in split_by_photo(examples, held=h)} for h in (True, False))
    assert held
    assert not held & kept
    assert held | kept == {e.key for e in examples}


def test_language_training_without_recordings_is_refused(run: Any, recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="refdiff train record"):
        train_language(RECIPE, [], tmp_path / "nothing", tmp_path / "run2", tools=[])


def test_board_zoom_pairs_show_the_labelled_box(tmp_path: Path) -> None:
    board = np.full((640, 640, 3), 255, np.uint8)
    Image.fromarray(board).save(tmp_path / "temp.png")
    board[300:312, 200:212] = 0
    Image.fromarray(board).save(tmp_path / "test.png")
    photo = Photo(tmp_path / "test.png", True, partner=tmp_path / "temp.png", boxes=((198, 298, 214, 314, "spur"),))
    source = Source("boards", (), (photo,), "drawn here", pixels_count=True)
    seen = set()
    for i in range(40):
        pair = board_zoom(source, np.random.default_rng(i))
        assert pair.query.shape == pair.reference.shape
        assert min(pair.query.shape[:2]) >= 48
        assert (pair.query != pair.reference).any() == pair.defect
        assert pair.type == ("spur" if pair.defect else "none")
        seen.add(pair.defect)
    assert seen == {True, False}
