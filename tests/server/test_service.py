"""The inspection service without any transport: every accepted inspection is filed, also after crashes and outages."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update

from refdiff.agent import telemetry
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import Verdict
from refdiff.agent.request import InspectionRequest
from refdiff.agent.service import InspectionService, Upload
from refdiff.agent.settings import AgentSettings
from refdiff.agent.work import queue as queue_module
from refdiff.agent.work.queue import InspectionQueue
from refdiff.memory.audit_chain import NO_REPORT, REMOVED, append
from refdiff.memory.changes import changing
from refdiff.memory.database import tables
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.jobs import Job, JobStore
from refdiff.memory.locks import hold_lock
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.memory.upkeep.leftovers import remove_abandoned
from refdiff.model.errors import (
    BusyError,
    DuplicateError,
    ElsewhereError,
    ImageError,
    InputError,
    StorageError,
    UnavailableError,
    UnknownPartError,
    UnknownProductError,
    UnknownRecordError,
)
from refdiff.model.settings import ModelSettings
from refdiff.server.cli import main as cli
from refdiff.tools.golden_samples import adopt
from refdiff.tools.golden_samples.captures import record_capture

ASK = "inspect part #{} against the nearest good sample"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")


@pytest.fixture
def service(ready: Path, no_model: None) -> Iterator[InspectionService]:
    with InspectionService.open() as opened:
        yield opened


def photo(ready: Path, name: str) -> Upload:
    return Upload(name, (ready / name).read_bytes())


def test_service_inspects_good_and_bad_photos_in_order(service: InspectionService, ready: Path) -> None:
    good = service.submit(ASK.format(1), by="ann", product="board", photo=photo(ready, "good.png"))
    bad = service.submit(
        "", by="bob", part_id="#2", product="board", photo=photo(ready, "bad.png"), scale_mm_per_px=0.1
    )
    kinds = [p.kind for p in service.follow(bad.inspection_id)]
    assert kinds[0] == "queued"
    assert kinds[-1] == "done"
    assert {"started", "tool", "filed"} <= set(kinds)
    first, second = service.wait(good.inspection_id), service.wait(bad.inspection_id)
    assert first.report
    assert second.report
    assert (first.report.verdict, second.report.verdict) == ("PASS", "FAIL")
    assert (second.report.part_id, second.report.requested_by, second.report.scale.mm_per_px) == ("2", "bob", 0.1)
    assert service.unfinished() == []
    assert service.artefact(bad.inspection_id, "html").read_bytes().startswith(b"<!doctype html>")
    assert service.picture(bad.inspection_id, "query").startswith(b"\x89PNG")
    assert service.status().waiting == 0


def test_consent_recorded_by_another_process_is_adopted(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line records a consent while the service has the bank: enrolled at the start, when idle, after a job."""
    monkeypatch.setattr(queue_module, "_IDLE_S", 0.1)

    def consent(inspection_id: str) -> None:
        with Stores.open() as stores:
            stores.dispositions.add(inspection_id, "override", "eve", "part is good", as_reference=True)
            stores.adoptions.decide(inspection_id, True, "eve", admin=True)

    def outcome(service: InspectionService, inspection_id: str) -> str:
        deadline = time.monotonic() + 30
        while (learned := service.stores.adoptions.get(inspection_id)) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        return learned.outcome if learned else "nothing became of it"

    with InspectionService.open() as service:
        sent = [
            service.submit(by="ann", part_id=p, product="board", photo=photo(ready, "bad.png")) for p in ("1", "2", "3")
        ]
        first, second, third = (service.wait(j.inspection_id).inspection_id for j in sent)
        consent(first)
        assert outcome(service, first).startswith("enrolled")
        monkeypatch.setattr(queue_module, "_IDLE_S", 600.0)
        time.sleep(0.3)  # the short wait has ended
        consent(second)
        service.wait(
            service.submit(by="ann", part_id="4", product="board", photo=photo(ready, "good.png")).inspection_id
        )
        assert outcome(service, second).startswith("refused: already enrolled")  # the same photo
    consent(third)
    with InspectionService.open() as service:
        assert outcome(service, third).startswith("refused: already enrolled")


def test_jobs_of_one_part_inspect_their_own_photos(service: InspectionService, ready: Path) -> None:
    """Two photos of one part, sent before either is inspected."""
    jobs = [
        service.submit(by="ann", part_id="9", product="board", photo=photo(ready, name))
        for name in ("bad.png", "good.png", "bad.png")
    ]
    verdicts = [service.wait(j.inspection_id).report.verdict for j in jobs]  # type: ignore[union-attr]
    assert verdicts == ["FAIL", "PASS", "FAIL"]


def test_repeated_request_returns_the_same_job(service: InspectionService, ready: Path) -> None:
    sent = {"by": "ann", "part_id": "1", "product": "board", "origin": "slack:Ev123"}
    jobs = [service.submit(photo=photo(ready, "good.png"), **sent) for _ in range(3)]  # type: ignore[arg-type]
    assert len({j.inspection_id for j in jobs}) == 1
    service.wait(jobs[0].inspection_id)
    assert service.submit(**sent).inspection_id == jobs[0].inspection_id  # type: ignore[arg-type]
    assert service.stores.inspections.search().total == 1


def test_request_that_cannot_be_inspected_is_refused_at_once(service: InspectionService, ready: Path) -> None:
    with pytest.raises(UnknownPartError):
        service.submit(by="a", part_id="nobody")
    with pytest.raises(InputError, match="Name the part"):
        service.submit("how are you?", by="a")
    with pytest.raises(InputError, match="say which product"):
        service.submit(by="a", part_id="1", photo=photo(ready, "good.png"))
    with pytest.raises(ImageError):
        service.submit(by="a", part_id="1", product="board", photo=Upload("x.png", b"no picture"))
    with pytest.raises(UnknownProductError):
        service.submit(by="a", part_id="1", product="empty", photo=photo(ready, "good.png"))
    with pytest.raises(UnknownRecordError):
        service.submit(by="a", part_id="1", capture_id="c-000000000000")
    with pytest.raises(UnknownRecordError):
        service.inspection("insp-nobody")
    with pytest.raises(UnknownRecordError):
        list(service.follow("insp-nobody"))
    assert service.unfinished() == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/b.png", "..", "", "\x00\x1b[31m.png", "\udcff\ud800.png", "x" * 999]
)
def test_uploaded_file_name_is_sanitised_and_never_a_path(service: InspectionService, ready: Path, name: str) -> None:
    kept = service.capture("7", Upload(name, (ready / "good.png").read_bytes()), "board")
    assert 0 < len(kept.filename) <= 200
    assert "/" not in kept.filename
    assert kept.filename.isprintable()
    assert not (ready / "etc").exists()


def test_request_beyond_the_queue_limit_is_refused(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, begun = threading.Event(), threading.Event()
    run = Inspector.run

    def slow(self: Inspector, request: object) -> object:
        begun.set()
        hold.wait(30)
        return run(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Inspector, "run", slow)
    with InspectionService.open(agent=AgentSettings(queue_limit=2)) as service:
        jobs = [service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png")) for _ in range(2)]
        assert begun.wait(10)
        with pytest.raises(BusyError) as refused:
            service.submit(by="a", part_id="1")
        assert refused.value.retry_after_s > 0
        assert service.inspection(jobs[1].inspection_id).ahead == 1
        hold.set()
        assert service.wait(jobs[1].inspection_id).state == "done"
        assert service.submit(by="a", part_id="1").open


def test_concurrent_dispositions_keep_only_the_first(service: InspectionService, ready: Path) -> None:
    job = service.submit(by="ann", part_id="2", product="board", photo=photo(ready, "bad.png"))
    with pytest.raises(UnknownRecordError):
        service.people.dispose("insp-nobody", "accept", "ann", "x")
    service.wait(job.inspection_id)
    winners, losers = [], []

    def decide(who: str) -> None:
        try:
            winners.append(service.people.dispose(job.inspection_id, "override", who, "dust"))
        except DuplicateError as e:
            losers.append(str(e))

    people = [threading.Thread(target=decide, args=(f"person {i}",)) for i in range(6)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(winners) == 1
    assert len(losers) == 5
    assert all(winners[0].by in text and winners[0].created_at in text for text in losers)
    assert service.inspection(job.inspection_id).disposition == winners[0]


def test_question_is_answered_from_the_report(service: InspectionService, ready: Path) -> None:
    job = service.submit(by="a", part_id="2", product="board", photo=photo(ready, "bad.png"))
    service.wait(job.inspection_id)
    assert "verdict FAIL: " in service.ask(job.inspection_id, "why?")
    assert "verdict FAIL" in service.ask(job.inspection_id, "anything that I should know?")
    assert "Name the part" in service.chat("hello")
    with pytest.raises(InputError):
        service.ask(job.inspection_id, " ")


def test_inspection_is_retried_after_a_storage_error(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, failures = Inspector.run, [StorageError("the disk is full"), StorageError("the disk is full")]

    def failing(self: Inspector, request: object) -> object:
        if failures:
            raise failures.pop()
        return run(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(Inspector, "run", failing)
    monkeypatch.setattr("refdiff.agent.work.queue.BACKOFF", Backoff(0.01, 0.01))
    job = service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png"))
    assert [p.kind for p in service.follow(job.inspection_id)].count("retry") == 2
    assert service.inspection(job.inspection_id).state == "done"


def test_long_outage_fails_no_job_and_does_not_block_others(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out, tried = Inspector.run, threading.Event(), 0
    out.set()

    def failing(self: Inspector, request: InspectionRequest) -> object:
        nonlocal tried
        if request.part_id == "1" and out.is_set():
            tried += 1
            raise UnavailableError("the database does not answer")
        return run(self, request)

    monkeypatch.setattr(Inspector, "run", failing)
    monkeypatch.setattr("refdiff.agent.work.queue.BACKOFF", Backoff(0.01, 0.02))
    monkeypatch.setattr("refdiff.agent.work.queue._HISTORY", 8)
    stuck, other = (
        service.submit(by="a", part_id=part, product="board", photo=photo(ready, "good.png")) for part in "12"
    )
    assert service.wait(other.inspection_id, 60).state == "done"
    assert service.inspection(stuck.inspection_id).state in ("queued", "running")
    progress = service.follow(stuck.inspection_id, 60)
    while tried < 12:
        assert next(progress).state in ("queued", "running")
    out.clear()
    assert service.wait(stuck.inspection_id, 60).state == "done"
    heard = list(service.follow(stuck.inspection_id, 60))
    assert len(heard) < 12  # what is kept of it does not grow with the outage
    assert (heard[0].kind, heard[-1].kind) == ("queued", "done")
    assert [p.number for p in heard] == sorted({p.number for p in heard})


def test_service_stops_and_outages_do_not_count_as_crashes(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = threading.Event()
    with monkeypatch.context() as m:
        m.setattr("refdiff.agent.work.queue._STOP_WAIT_S", 0.05)
        for _ in range(4):  # each is stopped in the middle of the inspection
            begun = threading.Event()
            m.setattr(Inspector, "run", lambda *_, b=begun: (b.set(), hold.wait(60)))
            with InspectionService.open() as service:
                if not service.unfinished():
                    service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png"))
                assert begun.wait(30)
                [job] = service.unfinished()
    with InspectionService.open() as service:
        assert service.wait(job.inspection_id, 60).state == "done"
    hold.set()


def test_stopping_service_releases_waiting_callers_and_starts_nothing(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, end = threading.Event(), threading.Event()

    def slow(*_: object) -> str:
        begun.set()
        end.wait(30)
        return "too late"

    monkeypatch.setattr(queue_module, "_STOP_WAIT_S", 0.2)
    monkeypatch.setattr(Inspector, "answer", slow)
    with ThreadPoolExecutor(2) as people:
        asked = [people.submit(service.chat, "hello")]
        assert begun.wait(30)
        asked.append(people.submit(service.chat, "and me?"))
        service.drain()
        for answer in asked:
            with pytest.raises(UnavailableError, match="the server is stopping"):
                answer.result(10)
        job = service.submit(by="ann", part_id="1", product="board", photo=photo(ready, "good.png"))
        end.set()
    assert service.wait(job.inspection_id, 1).state == "queued"  # owed, by the next start


def test_every_queued_job_is_recovered_at_the_start(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even when the queue is longer than one page."""
    home = MemorySettings().home
    Stores.open().close()
    request = json.dumps({"part_id": "1", "product": "board", "requested_by": "t"})
    with sqlite3.connect(home / "refdiff.sqlite") as conn:
        conn.executemany(
            "INSERT INTO jobs (inspection_id, request, state, created_at, updated_at) VALUES (?, ?, 'queued', ?, ?)",
            [(f"insp-{i}", request, "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00+00:00") for i in range(1002)],
        )
    conn.close()
    monkeypatch.setattr(InspectionQueue, "start", lambda _: None)
    with InspectionService.open() as service:
        assert [job.inspection_id for job in service.jobs.list(limit=-1)] == [f"insp-{i}" for i in range(1002)]
        first = service.jobs.begin(worker="w")
        assert first
        assert first.inspection_id == "insp-0"


def test_failed_job_whose_inspection_is_filed_later_is_done(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(Inspector, "run", lambda *_: 1 / 0)
        job = service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png"))
        assert service.wait(job.inspection_id, 60).state == "failed"
    service.run_exclusive(lambda: service._inspector.run(InspectionRequest.of_job(job.request)))
    found = service.inspection(job.inspection_id)
    assert (found.state, found.error) == ("done", None)
    assert found.report
    assert service.unfinished(failed=True) == []


def test_bug_fails_its_inspection_and_not_the_next(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as m:
        m.setattr(Inspector, "run", lambda *_: 1 / 0)
        job = service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png"))
        failed = service.wait(job.inspection_id)
    assert failed.state == "failed"
    assert failed.error
    assert "ZeroDivisionError" in failed.error["message"]
    assert service.wait(service.submit(by="a", part_id="1").inspection_id).state == "done"
    assert [j.inspection_id for j in service.unfinished(failed=True)] == [job.inspection_id]


def test_second_service_on_a_home_is_refused(service: InspectionService) -> None:
    with pytest.raises(UnavailableError, match="another refdiff server"):
        InspectionService.open()


def test_service_manages_goldens_and_products(service: InspectionService, ready: Path) -> None:
    made = service.enroll("gear", [photo(ready, "good.png"), Upload("bad.txt", b"text")], by="ann", part_group="g1")
    assert (len(made.added), len(made.refused), made.n_in_bank) == (1, 1, 1)
    assert made.added[0].filename == "good.png"
    assert service.products() == ["board", "gear"]
    golden = service.set_golden_status(made.added[0].golden_id, "retired", by="ann")
    assert (golden.status, golden.note) == ("retired", "retired by ann")
    assert service.goldens("gear", "active") == []
    board = service.product("board")
    assert (board["goldens"]["active"], board["calibration"]["stale"]) == (22, False)
    assert service.set_spec("gear", {"scale_mm_per_px": 0.5}, "ann")["scale_mm_per_px"] == 0.5
    with pytest.raises(UnknownProductError):
        service.product("nothing")


KILLED = """
import os, signal, sys
from pathlib import Path
from refdiff.agent import nodes
from refdiff.agent.service import InspectionService, Upload
real = nodes.file_report
def deadly(*a, **k):
    if sys.argv[1] == "after":
        real(*a, **k)
    os.kill(os.getpid(), signal.SIGKILL)
nodes.file_report = deadly
with InspectionService.open() as service:
    for i in range(4):
        photo = Upload("p", Path(f"photos/0{i}.png").read_bytes())
        job = service.submit(by="t", part_id=str(i), product="board", photo=photo)
        print(job.inspection_id, flush=True)
    service.wait(job.inspection_id)
"""


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long), "after"])
def test_service_killed_while_filing_files_each_accepted_inspection_once(
    ready: Path, no_model: None, database: None, when: str
) -> None:
    command = [sys.executable, "-c", KILLED, when]
    child = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    accepted = child.stdout.split()
    assert child.returncode == -9, child.stderr[-2000:]
    with Stores.open() as stores:
        assert [j.inspection_id for j in stores.jobs.list()] == accepted
    with InspectionService.open() as service:
        for inspection_id in accepted:
            assert service.wait(inspection_id, 60).report is not None
        assert sorted(i.inspection_id for i in service.stores.inspections.search().items) == sorted(accepted)
        assert service.unfinished() == []


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_job_over_a_golden_without_its_photo_fails_at_once_and_names_the_way_out(
    ready: Path, no_model: None, damage: str
) -> None:
    """Damage is no outage: a job that waited for it to end would wait for ever."""
    with InspectionService.open() as service:
        goldens = {g.golden_id: g for g in service.goldens()}
        for golden in goldens.values():
            path = service.stores.images.path(golden.sha256)
            data = path.read_bytes()
            path.unlink()
            if damage == "damaged":
                path.write_bytes(data[: len(data) // 2])
        job = service.submit(by="t", part_id="1", product="board", photo=photo(ready, "good.png"))
        found = service.wait(job.inspection_id, 60)
    assert (found.state, found.error and found.error["exit_code"]) == ("failed", 65)
    message = str(found.error and found.error["message"])
    (named,) = [g for g in goldens.values() if g.golden_id in message.partition(":")[0]]
    for words in (named.filename, f"is {damage}", "enrol the same photo again", f"goldens retire {named.golden_id}"):
        assert words in message


@contextlib.contextmanager
def journal(home: Path, *inspection_ids: str) -> Iterator[JobStore]:
    with Stores.open(MemorySettings(home=home)) as stores:
        for inspection_id in inspection_ids:
            request = InspectionRequest("x", "1", "board", "t", inspection_id)
            stores.jobs.add(inspection_id, asdict(request), None, 9)
        yield stores.jobs


def crash(jobs: JobStore, inspection_id: str, alone: bool = True) -> None:
    jobs.begin(inspection_id, alone)
    jobs.take_over(everybody=True)


def test_job_that_crashes_the_process_while_nothing_else_runs_is_given_up_and_can_be_retried(
    ready: Path, no_model: None
) -> None:
    with InspectionService.open() as service:
        service.capture("1", photo(ready, "good.png"), "board")
    with journal(MemorySettings().home, "insp-deadly") as jobs:
        for _ in range(3):
            crash(jobs, "insp-deadly")
        jobs.begin("insp-deadly", alone=True)
    with InspectionService.open() as service:
        found = service.inspection("insp-deadly")
        assert found.state == "failed"
        assert found.error
        assert "refdiff inspections resume insp-deadly" in found.error["message"]
        assert service.retry("insp-deadly", "ann").state in ("queued", "running", "done")
        assert service.wait("insp-deadly", 60).report is not None
        with pytest.raises(InputError, match="is filed"):
            service.retry("insp-deadly", "ann")


def test_job_at_work_in_crashes_of_something_else_is_not_given_up(ready: Path, no_model: None) -> None:
    with InspectionService.open() as service:
        service.capture("1", photo(ready, "good.png"), "board")
    with journal(MemorySettings().home, "insp-unlucky") as jobs:
        for _ in range(queue_module.MAX_CRASHES - 2):
            crash(jobs, "insp-unlucky", alone=False)
        jobs.begin("insp-unlucky", alone=True)  # killed once more, after an upload came in
        jobs.not_alone("insp-unlucky")
    with InspectionService.open() as service:
        assert service.wait("insp-unlucky", 60).report is not None


def test_job_that_crashed_the_process_is_tried_after_the_others(ready: Path, no_model: None) -> None:
    with journal(MemorySettings().home, "insp-a", "insp-b", "insp-c") as jobs:
        crash(jobs, "insp-a")
        assert [j.inspection_id for j in jobs.list()] == ["insp-b", "insp-c", "insp-a"]


def test_work_beside_a_suspect_job_takes_the_blame_from_it(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, end, threads = threading.Event(), threading.Event(), []

    def slow(*_: object) -> Any:
        threads.append(threading.current_thread())
        begun.set()
        end.wait(30)
        return SimpleNamespace(verdict=Verdict.PASS)

    monkeypatch.setattr(Inspector, "run", slow)
    monkeypatch.setattr(queue_module, "_STOP_WAIT_S", 0.05)
    with journal(MemorySettings().home, "insp-a") as jobs:
        crash(jobs, "insp-a")
    with InspectionService.open() as service:
        assert begun.wait(30)
        assert _alone(service.stores)
        service.capture("2", photo(ready, "good.png"), "board")
        assert not _alone(service.stores)
    caplog.clear()
    end.set()
    threads[0].join(10)
    assert not caplog.records, "an inspection that ends after the server has closed leaves no false alarm"


def test_work_that_begins_together_with_a_suspect_job_is_not_blamed_on_it(tmp_path: Path) -> None:
    beginning, begun, end = threading.Event(), threading.Event(), threading.Event()

    class Slow(JobStore):
        def begin(self, *which: Any, **how: Any) -> Job | None:
            beginning.set()
            time.sleep(0.2)  # the other thread has its turn before this is written
            return super().begin(*which, **how)

    def inspect(job: Job) -> str:
        begun.set()
        end.wait(30)
        return "PASS"

    with journal(tmp_path, "insp-a") as jobs:
        crash(jobs, "insp-a")
    with Stores.open(MemorySettings(home=tmp_path)) as stores:
        jobs = Slow(stores.db)
        queue = InspectionQueue(jobs, inspect)
        queue.start()
        queue.enqueue(jobs.get("insp-a"))
        assert beginning.wait(30)
        with queue.beside():
            assert begun.wait(30)
            assert not _alone(stores)
            end.set()
        queue.stop()


def _alone(stores: Stores) -> bool:
    with stores.db.snapshot() as conn:
        return conn.execute(select(tables.jobs.c.alone)).scalar_one()


LACKING = [
    OSError(errno.ENOSPC, "No space left on device", "locks/insp-1.lock"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EROFS, "Read-only file system"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    sqlite3.OperationalError("unable to open database file"),
]


@pytest.mark.parametrize("error", LACKING, ids=lambda e: f"{type(e).__name__}-{e.args[:1]}")
def test_inspection_waits_while_the_machine_lacks_something(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("refdiff.agent.work.queue.BACKOFF", Backoff(0.01, 0.01))
    tries: list[str] = []

    def inspect(job: object) -> str:
        tries.append("")
        if len(tries) < 5:
            raise error
        return "PASS"

    with journal(tmp_path, "insp-1") as jobs:
        queue = InspectionQueue(jobs, inspect)
        queue.enqueue(jobs.get("insp-1"))
        heard: list[str] = []
        done = threading.Event()
        queue.subscribe("insp-1", lambda p: (heard.append(p.kind), done.set() if p.last else None))  # type: ignore[arg-type]
        queue.start()
        assert done.wait(10)
        queue.stop()
    assert heard == ["queued", *["started", "retry"] * 4, "started", "done"]
    assert sum("insp-1" in r.getMessage() for r in caplog.records) == 1, "the log is not flooded"


def test_error_that_is_no_outage_still_fails_the_job(tmp_path: Path) -> None:
    def inspect(job: object) -> str:
        raise OSError("cannot identify image file")  # Pillow's; it has no error number

    with journal(tmp_path, "insp-1") as jobs:
        queue = InspectionQueue(jobs, inspect)
        queue.enqueue(jobs.get("insp-1"))
        queue.start()
        deadline = time.monotonic() + 10
        while jobs.get("insp-1").open and time.monotonic() < deadline:
            time.sleep(0.01)
        queue.stop()
        assert jobs.get("insp-1").state == "failed"


def test_waiting_inspection_can_be_cancelled_and_a_running_or_filed_one_not(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold, begun = threading.Event(), threading.Event()
    run = Inspector.run
    monkeypatch.setattr(Inspector, "run", lambda self, r: (begun.set(), hold.wait(30)) and run(self, r))
    with InspectionService.open() as service:
        first, second, third = (
            service.submit(by="a", part_id=p, product="board", photo=photo(ready, "good.png")).inspection_id
            for p in "123"
        )
        assert begun.wait(30)
        gone = service.cancel(second, "ann")
        assert gone.state == "failed"
        assert gone.error == {"type": "Cancelled", "message": "cancelled by ann", "exit_code": 65}
        assert service.cancel(second, "bob") == gone
        with pytest.raises(InputError, match="is running"):
            service.cancel(first, "ann")
        with pytest.raises(UnknownRecordError):
            service.cancel("insp-nobody", "ann")
        with Stores.open() as elsewhere:  # the command line, beside the server
            elsewhere.jobs.cancel(third, "eve")
        hold.set()
        assert [p.state for p in service.follow(third, 30)][-1] == "failed"
        with pytest.raises(InputError, match="has ended"):
            service.cancel(service.wait(first).inspection_id, "ann")
        assert service.stores.inspections.search().total == 1
        service.retry(second, "ann")
        assert service.wait(second, 60).report is not None


def test_repeated_key_with_another_request_is_refused_and_forgotten_in_time(
    service: InspectionService, ready: Path
) -> None:
    def sent(part: str, digest: str | None, lasts: timedelta | None = None) -> str:
        job = service.submit(
            by="ann", part_id=part, product="board", photo=photo(ready, "good.png"), origin="k", digest=digest,
            origin_lasts=lasts,
        )  # fmt: skip
        return job.inspection_id

    first = sent("1", "d1")
    assert sent("1", "d1") == first
    with pytest.raises(InputError, match=rf"{first}, part 1,.*key of its own"):
        sent("2", "d2")
    assert sent("2", "d2", timedelta(0)) != first, "after its time the key is free"


def test_requests_that_find_a_key_expired_at_once_get_one_inspection(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sent() -> str:
        job = service.submit(
            by="ann", part_id="1", product="board", photo=photo(ready, "good.png"), origin="k", digest="d",
            origin_lasts=timedelta(0),
        )  # fmt: skip
        return job.inspection_id

    forget, twin = service.jobs.forget_origin, list[str]()

    def meanwhile(*key: str) -> None:
        monkeypatch.setattr(service.jobs, "forget_origin", forget)
        twin.append(sent())
        forget(*key)

    first = sent()
    monkeypatch.setattr(service.jobs, "forget_origin", meanwhile)
    assert [sent()] == twin != [first]


def test_job_that_another_process_has_filed_meanwhile_is_not_given_up(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inspection_id = service.submit(by="a", part_id="1", product="board", photo=photo(ready, "good.png")).inspection_id
    assert service.wait(inspection_id, 60).state == "done"
    crashed = replace(service.jobs.get(inspection_id), state="queued", crashes=queue_module.MAX_CRASHES)
    monkeypatch.setattr(service, "_filed", lambda _: False)  # as it was at that look
    service._give_up_deadly([crashed])
    assert service.jobs.get(inspection_id).state == "done"
    assert "given up" not in caplog.text


@pytest.mark.parametrize(("error", "again"), [(ZeroDivisionError(), True), (ImageError("damaged"), False)])
def test_repeated_key_tries_a_failed_inspection_again_unless_the_request_was_at_fault(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, again: bool
) -> None:
    def fail(*_: object) -> None:
        raise error

    asked: dict[str, Any] = {"by": "a", "part_id": "1", "product": "board", "origin": "key"}
    with monkeypatch.context() as m:
        m.setattr(Inspector, "run", fail)
        job = service.submit(**asked, photo=photo(ready, "good.png"))
        assert service.wait(job.inspection_id, 60).state == "failed"
    assert service.submit(**asked).inspection_id == job.inspection_id
    assert service.wait(job.inspection_id, 60).state == ("done" if again else "failed")


def test_consent_while_an_enrolment_runs_is_recorded_at_once_and_adopted_later(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many people as there are threads may not wait for an enrolment that takes minutes."""
    job = service.submit(by="ann", part_id="2", product="board", photo=photo(ready, "bad.png"))
    service.wait(job.inspection_id)
    with service._enrolment("enrolment"):
        began = time.monotonic()
        with pytest.raises(UnknownRecordError):
            service.people.dispose("insp-nobody", "override", "eve", "good", "good", as_reference=True)
        service.people.dispose(job.inspection_id, "override", "eve", "good", "good", as_reference=True, admin=True)
        assert time.monotonic() - began < 2
        assert service.stores.adoptions.consented() == [job.inspection_id]
    service._adopt()
    assert service.stores.adoptions.consented() == []


def test_photo_that_cannot_be_enrolled_holds_up_no_other(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stores, ids = service.stores, []
    for part in ("removed", "refused", "fine"):
        data = (ready / "bad.png").read_bytes() + part.encode()  # another photo, which looks the same
        job = service.submit(by="ann", part_id=part, product="board", photo=Upload(f"{part}.png", data))
        service.wait(job.inspection_id)
        ids.append(job.inspection_id)
    removed, refused, fine = ids
    enroll = adopt.enroll

    def enrolls(workspace: Any, product: str, photos: list[Upload], **how: Any) -> Any:
        if photos[0].name == "refused.png":
            raise InputError("no such kind")
        return enroll(workspace, product, photos, **how)

    monkeypatch.setattr(adopt, "enroll", enrolls)
    with service._enrolling:  # the service enrols none by itself
        for inspection_id in ids:
            stores.dispositions.add(inspection_id, "override", "eve", "good", "good", as_reference=True)
            stores.adoptions.decide(inspection_id, True, "bob", admin=True)
        with changing(stores.db) as conn:  # consent that an earlier version took after it was pruned
            append(conn, REMOVED, removed, "boss", {})
            conn.execute(
                update(tables.inspections).where(tables.inspections.c.inspection_id == removed).values(report=NO_REPORT)
            )
        made = adopt.adopt_all(service.workspace)
    assert [(m.inspection_id, m.outcome[:8]) for m in made] == [(removed, "refused:"), (fine, "enrolled")]
    assert "was removed on" in made[0].outcome
    assert f"1 approved photos could not be enrolled and are left out: {refused}: no such kind" in caplog.text
    assert stores.adoptions.consented() == [refused]  # and is tried again


def test_more_enrolments_than_may_wait_are_refused(service: InspectionService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_enrol_places", threading.BoundedSemaphore(1))
    with service._enrolment("enrolment"), pytest.raises(BusyError, match="try again later"):
        service.calibrate("board", by="ann")


def test_full_disk_refuses_new_photos_and_still_inspects(
    service: InspectionService, ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.capture("1", photo(ready, "good.png"), "board")
    assert service.readiness().problems == ()
    monkeypatch.setattr(service.stores.settings, "min_free_bytes", 10**18)
    for refused in (
        lambda: service.capture("2", photo(ready, "good.png"), "board"),
        lambda: service.submit(by="a", part_id="2", product="board", photo=photo(ready, "good.png")),
        lambda: service.enroll("board", [photo(ready, "bad.png")], by="a"),
    ):
        with pytest.raises(StorageError, match="REFDIFF_MIN_FREE_BYTES"):
            refused()
    assert service.wait(service.submit(by="a", part_id="1").inspection_id, 60).report is not None
    assert "disk is nearly full" in service.readiness().problems[0]


def test_leftovers_of_killed_processes_are_removed_and_those_at_work_kept(tmp_path: Path) -> None:
    names = {
        "images/ab/.tmp-0123": (7200, False), "inspections/insp-1/.tmp-4567": (7200, False), ".tmp-89": (7200, False),
        "images/ab/.tmp-new": (0, True), "images/ab/abcd": (7200, True), "locks/insp-1.lock": (7200, False),
        "locks/insp-2.lock": (7200, True), "locks/insp-3.lock": (0, True),
    }  # fmt: skip
    for name, (age_s, _) in names.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    with hold_lock(tmp_path / "locks/insp-2.lock", UnavailableError("held")):
        os.utime(tmp_path / "locks/insp-2.lock", (0, 0))
        assert remove_abandoned(tmp_path) == 4
    assert {n for n in names if (tmp_path / n).exists()} == {n for n, (_, kept) in names.items() if kept}


def test_unfinished_command_line_inspection_is_finished_by_the_service(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch, make_pending: Callable[[Path], str]
) -> None:
    inspection_id = make_pending(ready)
    with InspectionService.open() as service:
        assert service.wait(inspection_id, 60).report is not None


@pytest.fixture
def make_pending() -> Callable[[Path], str]:
    def make(ready: Path) -> str:
        script = (
            "import os, signal\nfrom refdiff.agent import nodes\n"
            "nodes.file_report = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from refdiff.server.cli import main as cli\n"
            "cli.run(['inspect', '--part', '5', '--product', 'board', '--image', 'bad.png'])"
        )
        child = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120, check=False)
        assert child.returncode == -9, child.stderr
        from refdiff.tools.workspace import Workspace

        with Workspace.open() as workspace, Inspector(workspace) as inspector:
            [pending] = inspector.pending()
        return pending

    return make


def test_resume_command_finishes_the_others_where_one_fails_again(
    ready: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stores.open() as stores:
        record_capture(stores, "1", "board", photo(ready, "good.png"), settings=ModelSettings())
    with journal(MemorySettings().home, "insp-2") as jobs:
        broken = InspectionRequest("x", "nobody", "board", "t", "insp-1")
        jobs.add("insp-1", asdict(broken), None, 9)
        traced = InspectionRequest("x", "1", "board", "t", "insp-3")
        jobs.add("insp-3", asdict(traced) | {telemetry.CARRIED: f"00-{'a' * 32}-{'b' * 16}-01"}, None, 9)
        for inspection_id in ("insp-1", "insp-2", "insp-3"):
            jobs.finish(inspection_id, {"type": "ValueError", "message": "a bug", "exit_code": 70})
        assert cli.run(["inspections", "resume"]) == 65
        said = capsys.readouterr()
        assert "insp-2: part 1, PASS" in said.out
        assert "insp-3: part 1, PASS" in said.out
        assert "insp-1: no capture of part nobody" in said.err
        assert [jobs.get(i).state for i in ("insp-1", "insp-2", "insp-3")] == ["failed", "done", "done"]


def test_resume_command_leaves_an_inspection_to_the_worker_that_took_it_meanwhile(
    ready: Path, no_model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with journal(MemorySettings().home, "insp-1") as jobs:
        jobs.finish("insp-1", {"type": "ValueError", "message": "a bug", "exit_code": 70})

        def elsewhere(*_: object) -> None:
            assert jobs.begin("insp-1", worker="w")
            raise ElsewhereError("it runs in another process")

        monkeypatch.setattr(Inspector, "run", elsewhere)
        assert cli.run(["inspections", "resume"]) != 0
        assert (jobs.get("insp-1").state, jobs.get("insp-1").worker) == ("running", "w")


def test_cancel_and_resume_commands_end_and_revive_a_waiting_job(
    ready: Path, no_model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stores.open() as stores:
        record_capture(stores, "1", "board", photo(ready, "good.png"), settings=ModelSettings())
    with journal(MemorySettings().home, "insp-1"):
        pass
    assert cli.run(["inspections", "cancel", "insp-1"]) == 0
    assert "refdiff inspections resume insp-1" in capsys.readouterr().out
    with journal(MemorySettings().home) as jobs:
        assert jobs.get("insp-1").state == "failed"
        assert cli.run(["inspections", "resume"]) == 0  # a cancelled one only by name
        assert "no interrupted inspections" in capsys.readouterr().out
        assert cli.run(["inspections", "resume", "insp-1"]) == 0
        assert "part 1, PASS" in capsys.readouterr().out
        assert jobs.get("insp-1").state == "done"
    assert cli.run(["inspections", "cancel", "insp-1"]) == 65
    assert cli.run(["inspections", "cancel", "insp-nobody"]) == 65
