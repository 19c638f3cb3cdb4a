"""A long run of mixed load with faults on a served model: is an inspection lost, is a pair ever answered as another one?

python tests/bench/serving_soak.py --minutes 20
Canary pairs with known answers, inspections by the agent, requests that must be refused, clients that leave in the middle of
an answer, and a server that is killed and started again half-way. Ends with 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
from serving_bench import free_port
from serving_load import REFUSED, group_mb, home_with_parts, pair_urls, post, reading, shown
from vllm_parity import Pair, rendered_pairs

from refdiff.agent.inspector import Inspector
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.model.language.build import build_model
from refdiff.model.settings import ModelSettings
from refdiff.server.model_server import ModelServer, find_vllm, serving

CANARIES = 12
TOLERANCE = 0.1  # of the probability of a defect: bfloat16 in other batches, nothing more


class Soak:
    """Shared by all threads: the server that runs now, what was counted, what went wrong."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.until = time.monotonic() + seconds
        self.counted: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.largest = 0.0
        self._mutex = threading.Lock()
        self._stack = ExitStack()
        self.server: ModelServer | None = None
        self.up_since: float | None = None

    def start(self) -> None:
        self.server, _ = self._stack.enter_context(serving(self.folder, find_vllm(None), "127.0.0.1", self.port))
        self.up_since = time.monotonic()

    def stop(self, *, hard: bool = False) -> None:
        self.up_since = None
        if hard and self.server:
            os.killpg(self.server.pid, signal.SIGKILL)
        self._stack.close()
        self.server = None

    def count(self, what: str, wrong: str | None = None) -> None:
        with self._mutex:
            self.counted[what] += 1
            if wrong:
                self.wrong.append(wrong)

    def canary(self, pairs: list[Pair], known: list[float]) -> None:
        rng = random.Random(threading.get_ident())
        while time.monotonic() < self.until:
            i, began = rng.randrange(len(pairs)), time.monotonic()
            try:
                _, found = reading(self.url, pairs[i])
            except httpx2.HTTPError:
                self._away("canaries without an answer", began)
                continue
            apart = abs(found - known[i])
            self.largest = max(self.largest, apart)
            self.count("canaries", f"canary {i}: {found:.3f}, known {known[i]:.3f}" if apart > TOLERANCE else None)

    def refused(self, pairs: list[Pair]) -> None:
        for i in itertools.count():
            if time.monotonic() >= self.until:
                return
            name = list(REFUSED)[i % len(REFUSED)]
            messages, fields = REFUSED[name](*pair_urls(pairs[i % len(pairs)]))
            began = time.monotonic()
            try:
                status = post(self.url, *messages, **fields).status_code
            except httpx2.HTTPError:
                self._away("bad requests without an answer", began)
                continue
            self.count("bad requests", None if 400 <= status < 500 else f"{name}: HTTP {status}")
            time.sleep(1)

    def leaving(self, pairs: list[Pair]) -> None:
        while time.monotonic() < self.until:
            message, began = shown(*pair_urls(random.choice(pairs))), time.monotonic()
            try:
                post(self.url, message, timeout=0.8, ignore_eos=True, max_tokens=2000)
            except httpx2.TimeoutException:
                self.count("clients that left")
            except httpx2.HTTPError:
                self._away("leaving clients without a server", began)
            time.sleep(3)

    def inspect(self, inspector: Inspector, parts: list[str]) -> None:
        filed = inspector.workspace.stores.inspections
        for i in itertools.count():
            if time.monotonic() >= self.until:
                return
            part = parts[i % len(parts)]
            try:
                report = inspector.run(InspectionRequest.of_part(part))
                there = filed.get(report.inspection_id).report["verdict"] == report.verdict
                way = "by script" if report.judge.via == "fallback" else "by the model"
                self.count(f"inspections {way}", None if there else f"{report.inspection_id} was not filed")
            except Exception as e:  # whatever it is, an inspection was lost
                self.count("inspections lost", f"part {part}: {type(e).__name__}: {e}")

    def _away(self, what: str, began: float) -> None:
        """No answer to a request of that time: right if the server was away then or is now, wrong else."""
        up = self.up_since
        self.count(what, f"{what} while the server ran" if up is not None and up < began else None)
        time.sleep(1)

    def memory(self) -> float:
        return group_mb(self.server.pid) if self.server else 0.0


def run(minutes: float, restart: bool = True) -> dict[str, Any]:
    """Soak for so long; what was counted and what was wrong."""
    soak = Soak(build_model(ModelSettings()), minutes * 60)
    pairs = rendered_pairs(CANARIES, seed=100)
    with (
        tempfile.TemporaryDirectory(prefix="refdiff-soak-") as home,
        home_with_parts(Path(home), 8) as (workspace, parts),
    ):
        with Inspector(workspace, AgentSettings(llm="off")) as inspector:  # calibrates
            inspector.run(InspectionRequest.of_part(parts[0]))
        soak.start()
        try:
            known = [reading(soak.url, pair)[1] for pair in pairs]
            memory = [soak.memory()]
            soak.until = time.monotonic() + minutes * 60
            half = time.monotonic() + minutes * 30
            settings = AgentSettings(llm_base_url=soak.url, llm_timeout_s=120, llm_retries=1)
            with Inspector(workspace, settings) as inspector:
                work: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
                    (soak.canary, (pairs, known)), (soak.canary, (pairs, known)), (soak.refused, (pairs,)),
                    (soak.leaving, (pairs,)), (soak.inspect, (inspector, parts)),
                ]  # fmt: skip
                threads = [threading.Thread(target=target, args=given, daemon=True) for target, given in work]
                for thread in threads:
                    thread.start()
                while any(t.is_alive() for t in threads):
                    time.sleep(1)
                    if restart and time.monotonic() > half:
                        restart = False
                        memory.append(soak.memory())
                        soak.stop(hard=True)
                        soak.start()
                        soak.count("restarts after a kill")
                left = inspector.pending()
            memory.append(soak.memory())
        finally:
            soak.stop()
        n_filed = len(workspace.stores.inspections.list(limit=1000)) - 1
    n_run = sum(n for what, n in soak.counted.items() if what.startswith("inspections"))
    wrong = soak.wrong + [f"{i} was left unfinished" for i in left]
    if n_filed != n_run:
        wrong.append(f"{n_run} inspections were run, {n_filed} filed")
    return {
        "minutes": minutes, "counted": dict(soak.counted), "filed": n_filed, "largest_canary_difference": soak.largest,
        "memory_mb": [round(m) for m in memory], "wrong": wrong,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--no-restart", action="store_true", help="leave the server alone")
    given = parser.parse_args()
    found = run(given.minutes, not given.no_restart)
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
