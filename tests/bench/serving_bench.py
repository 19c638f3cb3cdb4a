"""Inspections through vLLM and with the embedded model: seconds each, tokens a second, memory, start-up, prefix-cache hits.

python tests/bench/serving_bench.py --inspections 4 --concurrent 1 --concurrent 8
Rendered boards, 24 goldens, the trained weights. vLLM runs on this machine; so do the other halves of the inspections.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from serving_load import group_mb, home_with_parts, metrics, own_mb

from refdiff.agent.drivers.embedded import shared_engine
from refdiff.agent.inspector import Inspector
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.model.language.build import build_model
from refdiff.model.settings import ModelSettings
from refdiff.server.model_server import find_vllm, serving
from refdiff.tools.workspace import Workspace


@dataclass
class Row:
    """Of one way and number at once. seconds: wall time per inspection; p50: of one inspection. prompt, generated: tokens;
    reused: of the prompt, from a cache; tokens_per_s: generated. own_calls: inspections that the model drove to the end."""

    way: str
    at_once: int
    inspections: int
    seconds: float
    p50: float
    prompt: float
    generated: float
    reused: float
    tokens_per_s: float
    memory_mb: float
    start_s: float
    own_calls: int
    load: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(
    way: str, workspace: Workspace, settings: AgentSettings, parts: Sequence[str], at_once: int, start_s: float,
    tokens: Callable[[], tuple[float, float, float]], memory: Callable[[], float],
) -> Row:  # fmt: skip
    """Inspect all parts, `at_once` together."""
    before = tokens()
    started = time.perf_counter()
    with Inspector(workspace, settings) as inspector, ThreadPoolExecutor(at_once) as pool:

        def inspect(part: str) -> tuple[float, bool]:
            began = time.perf_counter()
            report = inspector.run(InspectionRequest.of_part(part))
            return time.perf_counter() - began, report.judge.via != "fallback"

        done = list(pool.map(inspect, parts))
    wall = time.perf_counter() - started
    prompt, generated, reused = (after - b for after, b in zip(tokens(), before, strict=True))
    return Row(
        way, at_once, len(parts), wall / len(parts), float(np.median([s for s, _ in done])), prompt, generated, reused,
        generated / wall, memory(), start_s, sum(own for _, own in done), os.getloadavg()[0],
    )  # fmt: skip


@contextmanager
def _embedded(folder: Path) -> Iterator[tuple[AgentSettings, float, Any, Any]]:
    before, started = own_mb(), time.perf_counter()
    engine = shared_engine(folder, ModelSettings().threads)
    start_s = time.perf_counter() - started
    counted = np.zeros(3)
    answers = {name: getattr(engine, name) for name in ("call", "read")}

    def counting(answer: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*args: Any) -> Any:
            said = answer(*args)
            usage = engine.last
            counted[:] += usage.prompt, usage.generated, usage.reused
            return said

        return asked

    for name, answer in answers.items():
        setattr(engine, name, counting(answer))
    try:
        yield AgentSettings(llm_base_url=None), start_s, lambda: tuple(counted), lambda: own_mb() - before
    finally:
        for name in answers:
            delattr(engine, name)


@contextmanager
def _vllm(folder: Path) -> Iterator[tuple[AgentSettings, float, Any, Any]]:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_hits_total")
    with serving(folder, find_vllm(None), "127.0.0.1", free_port()) as (server, _):

        def tokens() -> tuple[float, ...]:
            found = metrics(server.base_url)
            return tuple(found.get(name, 0.0) for name in names)

        settings = AgentSettings(llm_base_url=server.base_url, llm_timeout_s=600)
        yield settings, server.seconds, tokens, lambda: group_mb(server.pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inspections", type=int, default=4, help="for each number at once (at least that number)")
    parser.add_argument("--concurrent", type=int, action="append", help="how many at once (default 1 and 8)")
    parser.add_argument("--way", choices=["embedded", "vllm"], action="append", help="default both")
    given = parser.parse_args()
    numbers = given.concurrent or [1, 8]
    folder = build_model(ModelSettings())
    ways = {"vllm": _vllm, "embedded": _embedded}
    most = max(given.inspections, *numbers) + 1
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-serving-") as home,
        home_with_parts(Path(home), most) as (workspace, parts),
    ):
        with Inspector(workspace, AgentSettings(llm="off")) as inspector:  # calibrates
            inspector.run(InspectionRequest.of_part(parts[-1]))
        for way in given.way or ways:
            with ways[way](folder) as (settings, start_s, tokens, memory):
                run(way, workspace, settings, parts[-1:], 1, start_s, tokens, memory)  # warm
                for at_once in numbers:
                    chosen = parts[: max(given.inspections, at_once)]
                    print(
                        json.dumps(asdict(run(way, workspace, settings, chosen, at_once, start_s, tokens, memory))),
                        flush=True,
                    )


if __name__ == "__main__":
    main()
