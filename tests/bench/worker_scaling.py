"""How many inspections a second do N workers take from one queue, file and report? The inspection only sleeps.

    python tests/bench/worker_scaling.py --workers 1 2 4 8 16 --sleep 0.5 --seconds 20
    python tests/bench/worker_scaling.py --workers 4 --sleep 0        # what the queue itself takes
    python tests/bench/worker_scaling.py --workers 3 --kills 3 --lease 10     # until a killed worker's job is taken over

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
from sqlalchemy import select

from refdiff.agent.work.queue import InspectionQueue, Progress
from refdiff.memory.database import tables as t
from refdiff.memory.journals.jobs import LEASE_S
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
    queue = InspectionQueue(stores.jobs, inspect, lease_s=float(sys.argv[2]))
    print(queue.worker, flush=True)
    sys.stdin.readline()
    queue.start()
    sys.stdin.readline()
    queue.stop(60.0)
"""


def takeovers(workers: int, sleep_s: float, lease_s: float, kills: int) -> dict[str, Any]:
    """Seconds from the end of a worker until another one has put its job back in the queue, behind all that wait."""
    taken, jobs = list[float](), t.jobs.c
    with Stores.open(MemorySettings()) as stores:
        for i in range(round(2 * workers * kills * lease_s / sleep_s)):
            stores.jobs.add(f"insp-{i}", {"part_id": str(i)}, None, 10**9)
        running = [_start(sleep_s, lease_s) for _ in range(workers)]
        names = [_name(process) for process in running]
        try:
            for process in running:
                _go(process)
            for number in range(kills):
                victim = number % workers
                mine = select(jobs.inspection_id).where(jobs.worker == names[victim])
                row = None
                while row is None:
                    with stores.db.connection() as conn:
                        row = conn.execute(mine.where(jobs.state == "running")).first()
                running[victim].kill()
                died = time.monotonic()
                while stores.jobs.get(row.inspection_id).worker == names[victim]:
                    time.sleep(0.02)
                taken.append(round(time.monotonic() - died, 2))
                running[victim].wait()
                running[victim] = _start(sleep_s, lease_s)
                names[victim] = _name(running[victim])
                _go(running[victim])
        finally:
            for process in running:
                process.kill()
                process.wait()
    return {"workers": workers, "sleep_s": sleep_s, "lease_s": lease_s, "taken_over_after_s": taken}


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
        processes = [_start(sleep_s, LEASE_S) for _ in range(workers)]
        try:
            for process in processes:
                _name(process)
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


def _start(sleep_s: float, lease_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(sleep_s), str(lease_s)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _name(process: subprocess.Popen[str]) -> str:
    """Of a worker, once it is ready."""
    assert process.stdout
    return process.stdout.readline().strip()


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
    parser.add_argument("--kills", type=int, help="kill so many workers, one after the other, and time the takeovers")
    parser.add_argument("--lease", type=float, default=LEASE_S, metavar="S", help="with --kills")
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
            if given.kills:
                print(json.dumps(takeovers(workers, given.sleep, given.lease, given.kills)), flush=True)
                continue
            jobs = given.jobs or (round(workers * given.seconds / given.sleep) if given.sleep else 1000)
            print(json.dumps(measure(workers, given.sleep, jobs)), flush=True)


if __name__ == "__main__":
    main()
