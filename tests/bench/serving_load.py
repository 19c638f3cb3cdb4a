"""Requests to a served RefDiff model, good and bad, and a home with parts to inspect: for measurements and long runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from vllm_parity import Pair

from refdiff.memory.settings import MemorySettings
from refdiff.model.images import data_url, encode_png
from refdiff.model.language.reading import READ, READING_SCHEMA
from refdiff.model.settings import ModelSettings
from refdiff.model.synthesis.render import DefectSpec, render
from refdiff.tools.golden_samples.enroll import enroll
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

Body = dict[str, Any]
PRODUCT, ASK = "board", "inspect part #{part} against the nearest good sample"
_DESIGN, _SIZE = 5, (160, 160)


def shown(*urls: str, text: str = READ) -> Body:
    """A user message with pictures."""
    blocks = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *blocks]}


def pair_urls(pair: Pair) -> tuple[str, str]:
    reference, query = pair
    return data_url(encode_png(reference)), data_url(encode_png(query))


def post(url: str, *messages: Body, timeout: float = 200, **fields: Any) -> httpx2.Response:
    """Ask the endpoint (base URL with /v1). Raises httpx2.HTTPError."""
    body = {"model": "refdiff", "temperature": 0, "max_tokens": 64, "messages": list(messages)} | fields
    return httpx2.post(f"{url}/chat/completions", json=body, timeout=timeout, trust_env=False)


def reading(url: str, pair: Pair) -> tuple[Body, float]:
    """The reading of a pair, and how likely the model takes a defect to be. Raises httpx2.HTTPError, ValueError."""
    wanted = {"type": "json_schema", "json_schema": {"name": "reading", "strict": True, "schema": READING_SCHEMA}}
    answer = post(url, shown(*pair_urls(pair)), response_format=wanted, logprobs=True).raise_for_status()
    choice = answer.json()["choices"][0]
    said: Body = json.loads(choice["message"]["content"])
    sure = next(
        math.exp(t["logprob"]) for t in choice["logprobs"]["content"] if t["token"].strip() in ("true", "false")
    )
    return said, sure if said["defect"] else 1 - sure


def _schema(schema: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def _tool(parameters: Any) -> Body:
    return {"tools": [{"type": "function", "function": {"name": "x", "parameters": parameters}}]}


def _halved(url: str) -> str:
    head, comma, data = url.partition(",")
    return head + comma + data[: len(data) // 8 * 4]


# what a server must refuse with 4xx: name -> (reference URL, query URL) -> messages, further fields
REFUSED: dict[str, Callable[[str, str], tuple[list[Body], Body]]] = {
    "one picture": lambda a, b: ([shown(a)], {}),
    "three pictures": lambda a, b: ([shown(a, b, a)], {}),
    "pictures in two messages": lambda a, b: ([shown(a), shown(b)], {}),
    "a ninth picture": lambda a, b: ([*[shown(a, b)] * 4, shown(a)], {}),
    "five pairs": lambda a, b: ([shown(a, b)] * 5, {}),
    "a broken picture": lambda a, b: ([shown(data_url(b"\x89PNG\r\n\x1a\n" + b"\0" * 99), b)], {}),
    "half a picture": lambda a, b: ([shown(_halved(a), b)], {}),
    "no picture": lambda a, b: ([shown("data:image/png;base64,", b)], {}),
    "an address": lambda a, b: ([shown("http://127.0.0.1:1/a.png", b)], {}),
    "a file": lambda a, b: ([shown("file:///etc/hostname", b)], {}),
    "a bad schema": lambda a, b: ([shown(a, b)], _schema({"type": "nonsense"})),
    "a bad tool": lambda a, b: ([shown(a, b)], _tool({"type": "nonsense"})),
    "an over-long history": lambda a, b: ([shown(a, b), *[{"role": "user", "content": "word " * 1000}] * 12], {}),
    "a role of its own": lambda a, b: ([{"role": "root", "content": "obey"}], {}),
    "a hundred answers": lambda a, b: ([shown(a, b)], {"n": 100}),
    "another template": lambda a, b: ([shown(a, b)], {"chat_template": "{{ 1 }}"}),
}


def metrics(url: str) -> dict[str, float]:
    """vLLM's counters and gauges by name, summed over their labels. Raises httpx2.HTTPError."""
    text = httpx2.get(url.removesuffix("/v1") + "/metrics", timeout=30, trust_env=False).raise_for_status().text
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("vllm:"):
            name, _, value = line.rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def group_mb(leader: int) -> float:
    """Memory (proportional set size, MB) of all processes of a group; Linux only. 0 if there is none."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == leader:
                total += own_mb(int(folder.name))
        except (OSError, ValueError):
            continue
    return total


def own_mb(pid: int | str = "self") -> float:
    """Memory (proportional set size, MB) of a process; Linux only."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


@contextmanager
def home_with_parts(
    home: Path, parts: int, goldens: int = 24, size: tuple[int, int] = _SIZE
) -> Iterator[tuple[Workspace, list[str]]]:
    """Services over a home of rendered boards: goldens enrolled, parts captured, every second with a defect."""
    photos = home / "photos"
    photos.mkdir(parents=True)
    for i in range(goldens):
        image = render("circuit", _DESIGN, i, size=size, noise_seed=i).image
        (photos / f"{i:03}.png").write_bytes(encode_png(image))
    memory = MemorySettings(home=home / "home", qdrant_url=None)
    with Workspace.open(memory, ModelSettings(), ToolsSettings(references=1)) as workspace:
        enroll(workspace, PRODUCT, [photos])
        names = []
        for i in range(parts):
            broken = [DefectSpec("missing_component", contrast=1.0, seed=i)] if i % 2 == 0 else []
            image = render("circuit", _DESIGN, 50 + i, size=size, defects=broken, noise_seed=i).image
            names.append(str(4412 + i))
            workspace.stores.captures.add(
                part_id=names[-1], product=PRODUCT, sha256=workspace.stores.images.put(encode_png(image)),
                scale_mm_per_px=0.1, filename=f"{names[-1]}.png",
            )  # fmt: skip
        yield workspace, names
