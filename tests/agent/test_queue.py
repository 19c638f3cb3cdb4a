"""Processes that take jobs from one journal, with an inspection that only sleeps and files: many fit into a second."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select

from refdiff.agent.work.queue import InspectionQueue, Progress
from refdiff.memory.database import tables as t
from refdiff.memory.journals.jobs import BATCH
from refdiff.memory.stores import Stores
from refdiff.model.errors import UnavailableError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")

WORKER = """
import signal, threading, time
from refdiff.agent.work.queue import InspectionQueue
from refdiff.memory.stores import Stores
done = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: done.set())
with Stores.open() as stores:
    def inspect(job):
        time.sleep(0.05)
        part = job.request["part_id"]
        report = {"part_id": part, "verdict": "PASS", "requested_by": "t"}
        stores.inspections.file(job.inspection_id, part, "board", "PASS", job.created_at, report)
        return "PASS"
    queue = InspectionQueue(stores.jobs, inspect, lease_s=2.0)
    queue.start()
    print(queue.worker, flush=True)
    done.wait()
    queue.stop(60.0)
"""
CLIENTS, PARTS, WAIT_S = 3, 8, 120


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def stores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stores]:
    if request.param == "postgres":
        monkeypatch.setenv("REFDIFF_DATABASE_URL", request.getfixturevalue("postgres"))
    with Stores.open() as opened:
        yield opened


@contextlib.contextmanager
def workers(count: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """By the names that they have in the journal."""
    started = [
        subprocess.Popen([sys.executable, "-c", WORKER], stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    try:
        yield {p.stdout.readline().strip(): p for p in started if p.stdout}
    finally:
        for process in started:
            process.kill()
            process.communicate()


def until(stores: Stores, said: str) -> list[str]:
    """The workers that run a job, once there are some; or [] once no job is open."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        with stores.db.connection() as conn:
            running = list(conn.scalars(select(t.jobs.c.worker).where(t.jobs.c.state == "running")))
        if said == "running" and running:
            return running
        if said == "all done" and not stores.jobs.count_open():
            return []
        time.sleep(0.01)
    raise AssertionError(f"not {said} within {WAIT_S} s")


def test_every_part_is_filed_once_and_in_the_order_of_its_line_though_a_worker_is_killed(stores: Stores) -> None:
    """Two workers on SQLite, three on Postgres."""

    def client(number: int) -> list[str]:
        ids = [f"insp-{number}-{i}" for i in range(PARTS)]
        for i, inspection_id in enumerate(ids):
            stores.jobs.add(inspection_id, {"part_id": f"{number}-{i}"}, None, 1000, line=f"line {number}")
        return ids

    with workers(2 if os.environ.get("REFDIFF_DATABASE_URL") is None else 3) as started:
        with ThreadPoolExecutor(CLIENTS) as pool:
            accepted = [i for ids in pool.map(client, range(CLIENTS)) for i in ids]
        victim = until(stores, "running")[0]
        started[victim].send_signal(signal.SIGKILL)
        until(stores, "all done")
        for name, process in started.items():
            if name != victim:
                process.send_signal(signal.SIGTERM)
                assert process.wait(WAIT_S) == 0
    filed = stores.inspections.list(limit=1000)
    with stores.db.connection() as conn:
        in_order = list(conn.scalars(select(t.inspections.c.inspection_id).order_by(t.inspections.c.seq)))
    assert Counter(r.inspection_id for r in filed) == Counter(accepted)
    for number in range(CLIENTS):
        mine = [i for i in in_order if i.startswith(f"insp-{number}-")]
        assert mine == [f"insp-{number}-{i}" for i in range(PARTS)]
    assert {j.state for j in stores.jobs.list(("queued", "running", "done", "failed"))} == {"done"}
    checked = stores.audit.verify_store()
    assert (checked.records, checked.problem) == (len(accepted), None)


def test_worker_that_is_told_to_end_ends_its_job_and_leaves_the_rest(stores: Stores) -> None:
    for i in range(40):
        stores.jobs.add(f"insp-{i}", {"part_id": str(i)}, None, 1000, priority=BATCH)
    with workers(1) as started:
        until(stores, "running")
        (process,) = started.values()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0
    jobs = stores.jobs.list(("queued", "running", "done", "failed"))
    assert {j.state for j in jobs if j.attempts} == {"done"}
    assert any(j.state == "queued" for j in jobs)
    assert {j.crashes for j in jobs} == {0}
    assert stores.jobs.workers() == []


def test_end_of_a_job_of_another_process_is_heard(stores: Stores) -> None:
    job, _ = stores.jobs.add("insp-1", {"part_id": "1"}, None, 10)
    heard: list[Progress] = []
    ended = threading.Event()

    def listen(progress: Progress) -> None:
        heard.append(progress)
        if progress.last:
            ended.set()

    queue = InspectionQueue(stores.jobs, lambda _: "", takes_jobs=False, outcome=lambda _: "PASS")
    queue.start()
    try:
        queue.show(job)
        queue.subscribe("insp-1", listen)
        with workers(1):
            assert ended.wait(WAIT_S)
    finally:
        queue.stop()
    assert [p.kind for p in heard if p.kind != "started"] == ["queued", "done"]
    assert (heard[-1].message, stores.jobs.get("insp-1").worker) == ("PASS", None)


@pytest.mark.parametrize("stops", [False, True])
def test_job_that_was_begun_without_an_answer_is_run_next_and_no_stop_counts_as_its_crash(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """A database that fails over may commit, and break the connection before it says so."""
    begin = stores.jobs.begin

    def lost(*which: Any) -> None:
        assert begin(*which)
        raise UnavailableError("the connection was closed")

    for i in ("insp-1", "insp-2"):
        stores.jobs.add(i, {"part_id": i}, None, 10, line="a")
    ran: list[str] = []
    queue = InspectionQueue(stores.jobs, lambda job: ran.append(job.inspection_id) or "PASS")  # type: ignore[func-returns-value]
    with monkeypatch.context() as m:
        m.setattr(stores.jobs, "begin", lost)
        assert not queue._take()
    assert (stores.jobs.get("insp-1").state, queue.outage) == ("running", "the connection was closed")
    stores.jobs.keep(queue.worker)
    if stops:
        queue.stop()
        assert (stores.jobs.get("insp-1").state, stores.jobs.crashed()) == ("queued", [])
        return
    assert queue._take()
    assert queue._take()
    assert (ran, queue.outage) == (["insp-1", "insp-2"], None)


def test_journal_that_fails_is_asked_again_within_seconds_and_not_by_all_at_once(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise UnavailableError("the database does not answer")

    monkeypatch.setattr(stores.jobs, "begin", away)
    queue, asked, real = InspectionQueue(stores.jobs, lambda _: ""), list[tuple[float, float]](), random.uniform
    monkeypatch.setattr(random, "uniform", lambda low, high: (asked.append((low, high)), real(low, high))[1])
    before = time.monotonic()
    queue._take()
    assert asked == [(1.0, 4.0)]
    assert queue._next_look >= before + 1.0
