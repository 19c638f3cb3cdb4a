"""How many inspections a second do N workers take from one queue, file and report? The inspection only sleeps.

    python tests/bench/worker_scaling.py --workers 1 2 4 8 16 --sleep 0.5 --seconds 20
    python tests/bench/worker_scaling.py --workers 4 --sleep 0        # what the queue itself takes

So it measures the queue, the leases and the filing with its audit record, not the arithmetic. The records are in a
Postgres server of its own that commits to the disk, or with --sqlite in a file. Workers are processes. This process is the
server: eight clients put jobs on the queue before the workers begin, and listen until each is filed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from own_postgres import Postgres

from refdiff.agent.work.queue import InspectionQueue, Progress
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores

CLIENTS = 8
WORKER = """
import sys, time
from refdiff.agent.work.queue import InspectionQueue
from refdiff.memory.stores import Stores
with Stores.open() as stores:
    def inspect(job):
        time.sleep(float(sys.argv[1]))
        part = job.request["part_id"]
        report = {"part_id": part, "verdict": "PASS", "requested_by": "bench"}
        stores.inspections.file(job.inspection_id, part, "board", "PASS", job.created_at, report)
        return "PASS"
    queue = InspectionQueue(stores.jobs, inspect)
    print("ready", flush=True)
    sys.stdin.readline()
    queue.start()
    sys.stdin.readline()
    queue.stop(60.0)
"""


def measure(workers: int, sleep_s: float, jobs: int) -> dict[str, Any]:
    """In the home and database of the environment, which are empty."""
    with ExitStack() as opened:
        stores = opened.enter_context(Stores.open(MemorySettings()))
        server = InspectionQueue(stores.jobs, lambda job: "", takes_jobs=False)
        server.start()
        opened.callback(server.stop)
        told: dict[str, float] = {}  # when the server heard of the end
        all_told = threading.Event()

        def hear(progress: Progress) -> None:
            if progress.last:
                told[progress.inspection_id] = time.monotonic()
                if len(told) == jobs:
                    all_told.set()

        def client(number: int) -> None:
            for i in range(number, jobs, CLIENTS):
                job, _ = stores.jobs.add(f"insp-{i}", {"part_id": str(i)}, None, 10**9)
                server.enqueue(job)
                server.subscribe(job.inspection_id, hear)

        began = time.monotonic()
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(client, range(CLIENTS)))
        accepting_s = time.monotonic() - began
        processes = [
            subprocess.Popen([sys.executable, "-c", WORKER, str(sleep_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             text=True)
            for _ in range(workers)
        ]  # fmt: skip
        try:
            for process in processes:
                assert process.stdout
                assert process.stdout.readline() == "ready\n"
            began = time.monotonic()
            for process in processes:
                _go(process)
            while stores.jobs.count_open():
                time.sleep(0.02)
            filed_s = time.monotonic() - began
            all_told.wait(30)
            told_s = max(told.values()) - began
        finally:
            for process in processes:
                _go(process)
                process.wait(60)
        filed = Counter(r.inspection_id for r in stores.inspections.list(limit=jobs + 1))
        checked = stores.audit.verify_store()
        attempts = [j.attempts for j in stores.jobs.list(("done",), limit=-1)]
    best = workers / sleep_s if sleep_s else None
    return {
        "workers": workers, "sleep_s": sleep_s, "jobs": jobs, "accepted_per_s": round(jobs / accepting_s, 1),
        "seconds": round(filed_s, 2), "filed_per_s": round(jobs / filed_s, 2),
        "of_best": best and round(jobs / filed_s / best, 3), "last_told_after_s": round(told_s - filed_s, 2),
        "filed_once": filed == Counter(f"insp-{i}" for i in range(jobs)), "most_attempts": max(attempts),
        "mean_attempts": round(statistics.mean(attempts), 3), "chain": checked.problem or "holds",
    }  # fmt: skip


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--sleep", type=float, default=0.5, metavar="S", help="what an inspection takes")
    parser.add_argument("--seconds", type=float, default=20, metavar="S", help="about how long each number of workers")
    parser.add_argument("--jobs", type=int, help="instead of --seconds, as without --sleep")
    parser.add_argument("--sqlite", action="store_true", help="the records in a file")
    given = parser.parse_args()
    with ExitStack() as opened:
        if not given.sqlite:
            postgres = Postgres(Path(opened.enter_context(tempfile.TemporaryDirectory())), durable=True)
            postgres.start()
            opened.callback(postgres.stop)
        for workers in given.workers:
            os.environ["REFDIFF_HOME"] = opened.enter_context(tempfile.TemporaryDirectory())
            if not given.sqlite:
                os.environ["REFDIFF_DATABASE_URL"] = postgres.new_database()
            jobs = given.jobs or (round(workers * given.seconds / given.sleep) if given.sleep else 1000)
            print(json.dumps(measure(workers, given.sleep, jobs)), flush=True)


if __name__ == "__main__":
    main()
