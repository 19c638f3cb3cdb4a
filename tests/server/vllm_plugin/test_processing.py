"""How vLLM's processor turns a request's pictures into items (no engine, no weights)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("vllm", reason="vLLM is not in this environment (make test-vllm)")
pytestmark = pytest.mark.vllm

from vllm.config import ModelConfig  # noqa: E402
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402
from vllm.multimodal.cache import MultiModalProcessorOnlyCache  # noqa: E402
from vllm.multimodal.media import MediaWithBytes  # noqa: E402
from vllm_parity import Pair  # noqa: E402

from refdiff.model.images import RgbImage  # noqa: E402
from refdiff.model.language.configuration import DIFFERENCE_TOKENS, IMAGE_TOKENS, PAIR_TOKENS  # noqa: E402
from refdiff.model.language.processor import pair_pixels  # noqa: E402
from refdiff.server.vllm_plugin.register import register  # noqa: E402

TEXT = "reference <image> part <image>"


class Processing:
    """vLLM's own use of our processor, with its cache."""

    def __init__(self, folder: Path) -> None:
        register()
        config = ModelConfig(str(folder), limit_mm_per_prompt={"image": 8}, max_model_len=2048)
        self.processor = MULTIMODAL_REGISTRY.create_processor(config)
        self.cache = MultiModalProcessorOnlyCache(config)

    def __call__(self, *images: Any, text: str = TEXT, uuids: list[str] | None = None, cached: bool = True) -> Any:
        items = self.processor.info.parse_mm_data({"image": list(images)})
        given = {"image": uuids} if uuids else None
        return self.processor(text, items, given, cache=self.cache if cached else None)


@pytest.fixture(scope="module")
def process(folder: Path) -> Processing:
    return Processing(folder)


@pytest.fixture(scope="module")
def abc(pairs: list[Pair]) -> list[Image.Image]:
    return [Image.fromarray(p) for p in (pairs[0][0], pairs[1][1], pairs[2][0])]


def hashes(result: Any) -> list[str]:
    return result["mm_hashes"]["image"]


def test_item_hash_covers_reference_and_query(process: Processing, abc: list[Image.Image]) -> None:
    a, b, c = abc
    ab, ac, cb, ba = (hashes(process(*pair)) for pair in ((a, b), (a, c), (c, b), (b, a)))
    assert ab[0] == ac[0], "the reference alone: encoded once for many queries"
    assert ab[1] != cb[1], "one query, two references"
    assert len({*ab, *ac, *cb, *ba}) == 3 + 4, "three references, four pairs"


def test_cached_items_equal_fresh_ones(process: Processing, abc: list[Image.Image]) -> None:
    a, b, _ = abc
    fresh, cached = process(a, b, cached=False), process(a, b)
    again = process(a, b)
    assert hashes(fresh) == hashes(cached) == hashes(again)
    assert fresh["prompt_token_ids"] == cached["prompt_token_ids"] == again["prompt_token_ids"]


def test_client_supplied_uuids_do_not_change_item_hashes(process: Processing, abc: list[Image.Image]) -> None:
    a, b, c = abc
    assert hashes(process(a, b, uuids=["golden", "x"])) == hashes(process(a, b))
    assert hashes(process(c, b, uuids=["golden", "x"])) == hashes(process(c, b))


def test_every_picture_gets_its_placeholder_tokens(process: Processing, abc: list[Image.Image]) -> None:
    a, b, c = abc
    result = process(a, b, c, a, text=f"{TEXT} {TEXT}")
    lengths = [p.length for p in result["mm_placeholders"]["image"]]
    assert lengths == [IMAGE_TOKENS, IMAGE_TOKENS + DIFFERENCE_TOKENS] * 2
    config = process.processor.info.get_hf_config()
    placeholders = [i for i in result["prompt_token_ids"] if i in (config.image_token_id, config.difference_token_id)]
    assert len(placeholders) == 2 * PAIR_TOKENS


def test_vllm_pixels_equal_those_of_the_embedded_engine(process: Processing, pairs: list[Pair]) -> None:
    reference, query = pairs[3]
    buffer = io.BytesIO()
    Image.fromarray(query).save(buffer, "PNG")
    sent = MediaWithBytes(Image.fromarray(query), buffer.getvalue())
    items = process(Image.fromarray(reference), sent, cached=False)["mm_kwargs"]["image"]
    side = process.processor.info.get_hf_config().pair_px
    expected = pair_pixels(reference, query, side)
    first, second = (item["pixel_values"].data for item in items)
    assert np.array_equal(second, expected)
    assert np.array_equal(first, expected[:1])


@pytest.mark.parametrize("n", [1, 3, 9, 10])
def test_odd_or_excessive_number_of_pictures_is_refused(process: Processing, abc: list[Image.Image], n: int) -> None:
    with pytest.raises(ValueError, match=r"pairs|At most 8"):
        process(*[abc[0]] * n, text="<image>" * n)


def test_picture_without_pixels_is_refused(process: Processing, abc: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="data URL"):
        process(abc[0], None)


@pytest.mark.parametrize("text", ["<image>", "<image> <image> <image>", "no place"])
def test_placeholder_count_must_match_the_pictures(process: Processing, abc: list[Image.Image], text: str) -> None:
    a, b, _ = abc
    if text.count("<image>") > 2:  # what is too much stays a word of the prompt, never a picture
        assert len(process(a, b, text=text)["mm_placeholders"]["image"]) == 2
        return
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"[Pp]rompt|placeholder"):
        process(a, b, text=text)


def test_pictures_of_every_colour_mode_are_processed(process: Processing, pairs: list[Pair]) -> None:
    picture: RgbImage = pairs[0][0]
    for mode in ("L", "RGBA", "P", "1", "I;16"):
        image = Image.fromarray(picture).convert("L" if mode == "I;16" else mode).convert(mode)
        assert len(hashes(process(image, image))) == 2
