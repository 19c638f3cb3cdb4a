"""Servers that accept and workers that inspect, as processes on one home; some are killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from refdiff.agent.service import InspectionService
from refdiff.memory.database import tables as t
from refdiff.memory.records.captures import normalise_part_id
from refdiff.memory.stores import Stores
from refdiff.model.errors import BusyError, UnavailableError, UnknownRecordError
from refdiff.server.cli import batches, main, output
from refdiff.server.cli.worker import _look_after, _Place
from refdiff.server.signals import HUNG
from refdiff.tools.golden_samples import background_fit, fit
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import current_calibration
from refdiff.tools.workspace import Workspace

from .conftest import good_photo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and shared locks")

COMMAND = [sys.executable, "-c", "from refdiff.server.cli.main import main; main()"]
LEASE_S = 3
BOTH = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]
WAIT_S = 180


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    monkeypatch.setenv("REFDIFF_LEASE_S", str(LEASE_S))


class Worker:
    """A `refdiff worker` that takes inspections."""

    def __init__(self, *options: str) -> None:
        self.process = subprocess.Popen([*COMMAND, "worker", "--json", *options], stdout=subprocess.PIPE, text=True)
        self._said: list[str] = []
        self._reads = threading.Thread(target=self._read, daemon=True)
        self._reads.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._said.append(line)
            if line == "}\n":
                return

    def _told(self, what: str) -> str:
        self._reads.join(WAIT_S)
        return str(json.loads("".join(self._said))[what])

    @property
    def name(self) -> str:
        return self._told("worker")

    @property
    def address(self) -> str:
        return self._told("address")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        self.process.wait(WAIT_S)
        return self.process.returncode


@contextlib.contextmanager
def workers(count: int, *options: str) -> Iterator[list[Worker]]:
    started = [Worker(*options) for _ in range(count)]
    try:
        assert len({w.name for w in started}) == count
        yield started
    finally:
        for worker in started:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
            worker.process.stdout.close()  # type: ignore[union-attr]


def until(said: Any, timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("database", BOTH, indirect=True)
def test_parts_of_several_clients_are_filed_once_though_a_worker_is_killed(ready: Path, database: None) -> None:
    """Two workers on SQLite, three on Postgres."""
    clients, parts = 3, 4
    count = 3 if os.environ.get("REFDIFF_DATABASE_URL") else 2
    with InspectionService.open(role="server") as service, workers(count) as started:

        def client(number: int) -> list[str]:
            accepted = []
            for i in range(parts):
                photo = Upload("p.png", good_photo(40 + parts * number + i))
                job = service.submit(
                    part_id=f"{number}-{i}", product="board", photo=photo, by=f"client {number}", line=f"line {number}"
                )
                accepted.append(job.inspection_id)
            return accepted

        with ThreadPoolExecutor(clients) as pool:
            accepted = [i for ids in pool.map(client, range(clients)) for i in ids]

        def running() -> Worker | None:
            with service.stores.db.snapshot() as conn:
                names = conn.scalars(select(t.jobs.c.worker).where(t.jobs.c.state == "running")).all()
            return next((w for w in started if w.name in names), None)

        until(running)
        victim = running() or started[0]
        assert victim.end(signal.SIGKILL) == -signal.SIGKILL
        ended = {i: service.wait(i, WAIT_S) for i in accepted}
        assert {e.state for e in ended.values()} == {"done"}
        filed = service.stores.inspections.list(limit=100)
        assert Counter(r.inspection_id for r in filed) == Counter(accepted)
        by_line: dict[str, list[str]] = {}
        for record in reversed(filed):
            by_line.setdefault(record.part_id.split("-")[0], []).append(record.part_id)
        assert by_line == {str(n): [f"{n}-{i}" for i in range(parts)] for n in range(clients)}
        checked = service.stores.audit.verify_store(photos=True)
        assert checked.problem is None
        for worker in started:
            if worker is not victim:
                assert worker.end() == 0
        assert [w for w in service.jobs.workers() if w != victim.name] == []


def test_worker_ends_its_inspection_before_it_stops(ready: Path) -> None:
    with InspectionService.open(role="server") as service, workers(1) as (worker,):
        jobs = [
            service.submit(part_id=str(i), product="board", photo=Upload("p", good_photo(60 + i)), by="ann")
            for i in range(3)
        ]
        until(lambda: service.jobs.get(jobs[0].inspection_id).state != "queued")
        assert worker.end() == 0
        left = [service.jobs.get(j.inspection_id) for j in jobs]
        assert [j.state for j in left if j.attempts] == ["done"] * sum(bool(j.attempts) for j in left)
        assert all(j.crashes == 0 for j in left)
        assert left[-1].state == "queued"
        assert "no worker takes inspections" in service.readiness().problems[0]


def test_server_that_inspects_by_itself_shares_with_nobody(ready: Path) -> None:
    with InspectionService.open(), pytest.raises(UnavailableError, match="--no-inspections"):
        InspectionService.open(role="worker")
    with (
        InspectionService.open(role="server"),
        InspectionService.open(role="server"),
        pytest.raises(UnavailableError, match="refdiff worker"),
    ):
        InspectionService.open()


def test_worker_sees_goldens_that_the_server_enrols_and_retires(ready: Path) -> None:
    with InspectionService.open(role="server") as server, InspectionService.open(role="worker") as worker:
        made = server.enroll("gear", [Upload(f"{i}", good_photo(70 + i)) for i in range(2)], by="ann")
        job = server.submit(part_id="9", product="gear", photo=Upload("p", good_photo(79)), by="ann")
        kinds = [p.kind for p in server.follow(job.inspection_id, WAIT_S)]
        assert (kinds[0], kinds[-1]) == ("queued", "done")
        assert server.inspection(job.inspection_id).report is not None
        server.set_golden_status(made.added[0].golden_id, "retired", by="ann")
        assert worker.goldens("gear", "retired") == server.goldens("gear", "retired") != []


def test_one_process_calibrates_and_the_others_wait_for_it(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refdiff.tools.inspection import calibration

    measured, measure = list[str](), calibration._measure

    def counted(workspace: Workspace, product: str, *more: Any) -> Any:
        measured.append(product)
        return measure(workspace, product, *more)

    monkeypatch.setattr(calibration, "_measure", counted)
    with Workspace.open(shared=True) as one, Workspace.open(shared=True) as other:
        one.bank.set_status(one.bank.list("board")[0].golden_id, "retired", "stale now")
        with ThreadPoolExecutor(2) as pool:
            first, second = pool.map(lambda w: current_calibration(w, "board"), (one, other))
    assert first
    assert second
    assert (first.key, measured) == (second.key, ["board"])


def test_worker_fits_what_a_server_was_asked_for_and_ends_when_it_is_told(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(fit._Fit, "found", lambda self, half, *more: (3, 2, 4))
    monkeypatch.setattr(background_fit, "_ASKED_S", 0.02)

    def state() -> str:
        return str((server.product("board")["fitting"] or {}).get("state"))

    with InspectionService.open(role="server") as server, InspectionService.open(role="worker") as worker:
        with pytest.raises(UnknownRecordError):
            server.end_fit("board", "ann")
        asked = server.fit("board", "ann")
        assert (asked["state"], asked["waits"], asked["by"]) == ("running", True, "ann")
        with pytest.raises(BusyError, match="'board'"):
            server.fit("board", "eve")
        server.end_fit("board", "ann")
        assert state() == "stopped"
        worker.fittings.for_others(0.02)
        time.sleep(0.2)
        assert worker.fittings.of("board") is None

        server.fit("board", "ann")
        until(lambda: state() != "running")
        assert state() == "not kept"
        assert worker.fittings.of("board") is not None

        busy = threading.Event()
        busy.set()
        monkeypatch.setattr(worker.fittings, "_busy", busy.is_set)
        server.fit("board", "bob")
        until(lambda: (f := worker.fittings.of("board")) is not None and f.waits)
        assert (state(), server.product("board")["fitting"]["waits"]) == ("running", False)
        server.end_fit("board", "eve")
        until(lambda: (f := worker.fittings.of("board")) is not None and f.state == "stopped")
        assert state() == "stopped"
        last = server.stores.networks.last_attempt("board")
        assert last
        assert (last.outcome, last.by) == ("declined", "eve")


@pytest.mark.parametrize("server", [False, True], ids=["alone", "beside a server"])
def test_batch_is_inspected_and_what_is_left_out_is_named(
    ready: Path, capsys: pytest.CaptureFixture[str], server: bool
) -> None:
    folder = ready / "parts"
    folder.mkdir()
    for i in range(4):
        (folder / f"p{i}.png").write_bytes(good_photo(80 + i))
    (folder / "notes.txt").write_text("no photo")
    (folder / "half.png").write_bytes(good_photo(90)[:900])
    with contextlib.ExitStack() as running:
        if server:
            running.enter_context(InspectionService.open())
        capsys.readouterr()
        assert main.run(["inspect-batch", "parts", "--product", "board", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["accepted"], document["done"], document["over"]) == (4, 4, True)
    assert sum(document["verdicts"].values()) == 4
    assert {Path(one["name"]).name for one in document["left_out"]} == {"notes.txt", "half.png"}
    with Stores.open() as stores:
        filed = stores.inspections.list()
        assert {r.part_id for r in filed} == {normalise_part_id(f"p{i}") for i in range(4)}
        assert stores.audit.verify_store().problem is None


def test_batch_of_a_file_waits_behind_people_and_stops(ready: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ready / "parts.csv").write_text(
        "part,image,product\n1,good.png,board\n2,none.png,board\n,good.png,board\n3,good.png,\n"
    )
    with InspectionService.open(role="server") as service:
        assert main.run(["inspect-batch", "parts.csv", "--product", "board", "--no-wait", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["accepted"], found["waiting"]) == (2, 2)
        assert [one["name"] for one in found["left_out"]] == ["line 3 (part 2)", "line 4"]
        asked = service.submit(part_id="7", product="board", photo=Upload("p", good_photo(99)), by="ann")
        assert service.inspection(asked.inspection_id).ahead == 0
        assert service.unfinished()[0].inspection_id == asked.inspection_id
        assert main.run(["batch", "stop", found["batch_id"], "--json"]) == 0
        stopped = json.loads(capsys.readouterr().out)
        assert (stopped["cancelled"], stopped["waiting"], stopped["over"]) == (2, 0, True)
        assert [j.inspection_id for j in service.unfinished()] == [asked.inspection_id]
    assert main.run(["batch", "list"]) == 0
    assert found["batch_id"] in capsys.readouterr().out
    (ready / "wrong.csv").write_text("name\n1\n")
    assert main.run(["inspect-batch", "wrong.csv"]) == 65
    assert "there is no `part`" in capsys.readouterr().err


@pytest.mark.parametrize("others", ["start again", "stay away", "stay away, and none hung"])
def test_batch_waits_for_a_worker_that_hung_to_be_started_again(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    """The first worker is a name in the journal, as that is all that others see of one."""
    monkeypatch.setattr(batches, "_BACK_S", 0.5 if "away" in others else 120.0)
    waiting, watch = threading.Event(), batches._watch
    monkeypatch.setattr(batches, "_watch", lambda *about: (waiting.set(), watch(*about))[1])
    noted, note = threading.Event(), output.note
    monkeypatch.setattr(output, "note", lambda said: (note(said), noted.set())[0])
    (ready / "parts").mkdir()
    for i in range(2):
        (ready / "parts" / f"p{i}.png").write_bytes(good_photo(80 + i))
    what = "calibration of product board has taken no step for 900 s (REFDIFF_HANG_S)"
    with Stores.open() as stores, contextlib.ExitStack() as running:
        stores.jobs.add("insp-1", {"part_id": "1"}, None, 10)
        stores.jobs.begin("insp-1", worker="earlier")
        stores.jobs.hang("insp-1", "earlier", {"type": "Hung", "message": "", "exit_code": 70})
        stores.jobs.leave("earlier", "inspection insp-1 has taken no step for 900 s (REFDIFF_HANG_S)")
        stores.jobs.keep("first", 60.0)

        def end() -> None:
            assert waiting.wait(WAIT_S)
            noted.clear()
            stores.jobs.begin("insp-1", worker="first")
            stores.jobs.finish("insp-1", worker="first")  # one that hung long before
            stores.jobs.leave("first", None if others == "stay away, and none hung" else what)
            if others == "start again":
                assert noted.wait(WAIT_S)
                running.enter_context(InspectionService.open(role="worker"))

        thread = threading.Thread(target=end)
        thread.start()
        code = main.run(["inspect-batch", "parts", "--product", "board"])
        thread.join(WAIT_S)
        (batch,) = stores.batches.list()
    said = " ".join(capsys.readouterr().err.split())
    assert "nobody inspects at this moment" in said
    assert (code, batch.done, f"{what}, which ended the last worker" in said, "insp-1" in said) == {
        "start again": (0, 2, True, False), "stay away": (HUNG, 0, True, False),
        "stay away, and none hung": (69, 0, False, False),
    }[others]  # fmt: skip


def test_batch_whose_waiting_is_interrupted_says_how_it_goes_on(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "stopping", lambda _: contextlib.nullcontext(lambda: True))
    monkeypatch.setattr(batches, "_watch", lambda _stores, found, *_: found)
    (ready / "parts").mkdir()
    (ready / "parts" / "p.png").write_bytes(good_photo(80))
    with Stores.open() as stores:
        stores.jobs.keep("first", 60.0)
        assert main.run(["inspect-batch", "parts", "--product", "board"]) == 130
        (batch,) = stores.batches.list()
    assert f"to cancel them: refdiff batch stop {batch.batch_id}" in " ".join(capsys.readouterr().err.split())


def test_supervisor_starts_a_worker_that_crashed_or_hung_anew_and_ends_with_one_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def started(code: str) -> Any:
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)

    ends = [
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        f"raise SystemExit({HUNG})",
        "raise SystemExit(69)",
    ]
    codes = iter(ends)
    monkeypatch.setattr("refdiff.server.cli.worker.start_worker", lambda *_: started(next(codes)))
    place = _Place()
    for _ in ends[:2]:
        place.start_at = 0.0
        assert _look_after(place, 1.0, 1) == 0
        assert place.process
        place.process.wait(30)
        assert (_look_after(place, 1.0, 1), place.process) == (0, None)
        assert place.start_at > time.monotonic()
    place.start_at = 0.0
    assert _look_after(place, 1.0, 1) == 0
    assert place.process
    place.process.wait(30)
    assert _look_after(place, 1.0, 1) == 69


def test_worker_answers_probes_and_tells_the_queue(ready: Path) -> None:
    with InspectionService.open(role="server") as service:
        for i in range(2):
            service.submit(part_id=str(i), product="board", photo=Upload("p", good_photo(80 + i)), by="ann")
        with workers(1, "--port", "0") as (worker,):
            with httpx2.Client(base_url=worker.address) as client:
                assert client.get("/healthz").json()["status"] == "ok"
                assert client.get("/readyz").json() == {"status": "ready", "problems": []}
                until(lambda: "refdiff_inspections_open 0.0" in client.get("/metrics").text)
                figures = client.get("/metrics").text
                assert "refdiff_workers 1.0" in figures
                assert 'refdiff_inspections_total{state="done"} 2.0' in figures
                assert service.readiness().problems == ()
            assert worker.end() == 0
        assert "no worker takes inspections" in service.readiness().problems[0]
        assert service.readiness(workers=False).problems == ()


def test_workers_of_one_supervisor_cannot_share_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["worker", "--workers", "2", "--port", "8001"]) == 64
    assert "port of its own" in capsys.readouterr().err
