"""What hangs: here a photo that lies where opening it never returns, as on a share that no longer answers (a named pipe)."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from refdiff.agent.service import InspectionService
from refdiff.agent.settings import AgentSettings
from refdiff.agent.work import queue
from refdiff.agent.work.queue import InspectionQueue
from refdiff.agent.work.watch import Work
from refdiff.memory.database import tables as t
from refdiff.memory.golden_bank.bank import GoldenBank
from refdiff.memory.journals.jobs import HUNG, Job
from refdiff.memory.photos.image_store import FolderImages
from refdiff.memory.records.adoptions import AdoptionStore
from refdiff.memory.records.dispositions import Decision
from refdiff.memory.settings import MemorySettings
from refdiff.memory.stores import Stores
from refdiff.model.errors import BusyError, UnavailableError
from refdiff.model.progress import Progress, silent
from refdiff.server import signals
from refdiff.server.cli import main
from refdiff.tools.golden_samples import background_fit, fit
from refdiff.tools.golden_samples.adopt import adopt, adopt_all
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrates, current_calibration
from refdiff.tools.workspace import Workspace

from .conftest import good_photo
from .test_workers import COMMAND, WAIT_S, until, workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and named pipes")

HANG_S = 8  # the first inspection of a process on a busy machine takes seconds


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "off")
    monkeypatch.setenv("REFDIFF_HANG_S", str(HANG_S))


class Unanswered:
    """A photo whose opening, or reading, never returns."""

    def __init__(self, stores: Stores, sha256: str) -> None:
        assert isinstance(stores.images, FolderImages)
        self.path = stores.images.path(sha256)
        self._data = self.path.read_bytes()
        self._pipe: int | None = None
        self.path.unlink()
        os.mkfifo(self.path)

    def opened(self) -> None:
        """Wait until somebody opens it, who goes on waiting for what is in it."""

        def opens() -> bool:
            try:
                self._pipe = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as e:
                if e.errno != errno.ENXIO:  # nobody reads
                    raise
                return False
            os.set_blocking(self._pipe, True)
            return True

        until(opens)

    def mend(self) -> None:
        """From now on it opens; who waits already goes on waiting."""
        photo = self.path.with_name("mended")
        photo.write_bytes(self._data)
        photo.replace(self.path)

    def answer(self) -> None:
        """Let the one that waits, or is about to, go on with the whole photo."""
        if self._pipe is None:
            self.opened()
        assert self._pipe is not None
        with open(self._pipe, "wb") as pipe:
            pipe.write(self._data)
        self._pipe = None


def submit(service: InspectionService, part: str, line: str | None = None) -> Job:
    photo = Upload("p.png", good_photo(40 + sum(part.encode()) % 50))
    return service.submit(part_id=part, product="board", photo=photo, by="ann", line=line)


def photo_of(service: InspectionService, job: Job) -> Unanswered:
    return Unanswered(service.stores, service.stores.captures.history(job.request["part_id"])[0].sha256)


def hangs(service: InspectionService, job: Job) -> int:
    with service.stores.db.connection() as conn:
        return int(conn.scalar(select(t.jobs.c.hangs).where(t.jobs.c.inspection_id == job.inspection_id)) or 0)


def check_filed_once(service: InspectionService, *jobs: Job) -> None:
    filed = service.stores.inspections.list(limit=100)
    assert Counter(r.inspection_id for r in filed) == Counter(j.inspection_id for j in jobs)
    assert service.stores.audit.verify_store(photos=True).problem is None


def test_inspection_that_hangs_is_taken_over_once_and_filed_once(
    ready: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with InspectionService.open(role="server") as service:
        first, behind = submit(service, "11", "a"), submit(service, "12", "a")
        photo = photo_of(service, first)
        with workers(1) as (hanging,):
            until(lambda: hangs(service, first) == 1)
            photo.mend()
            assert hanging.process.wait(WAIT_S) == signals.HUNG
            given_up = service.jobs.get(first.inspection_id)
            assert (given_up.state, given_up.attempts, given_up.crashes) == ("queued", 1, 0)
            assert service.jobs.workers() == []
        said = capfd.readouterr().err
        assert f"inspection {first.inspection_id} has taken no step for {HANG_S} s (REFDIFF_HANG_S)" in said
        assert "in opened" in said  # where it hangs
        assert "to be started again" in said
        with workers(1) as (_,):
            assert [service.wait(j.inspection_id, WAIT_S).state for j in (first, behind)] == ["done", "done"]
        assert service.jobs.get(first.inspection_id).attempts == 2
        check_filed_once(service, first, behind)
        assert [r.part_id for r in reversed(service.stores.inspections.list())] == ["11", "12"]


@pytest.mark.long
def test_inspection_that_hangs_twice_fails_and_holds_nothing_up(ready: Path) -> None:
    with InspectionService.open(role="server") as service:
        stuck, behind = submit(service, "21", "a"), submit(service, "22", "a")
        others = [submit(service, str(i)) for i in range(31, 35)]
        photo = photo_of(service, stuck)
        with workers(2) as started:
            last = list(service.follow(stuck.inspection_id, WAIT_S))[-1]
            assert (last.state, "hung twice" in last.message) == ("failed", True)
            assert [w.process.wait(WAIT_S) for w in started] == [signals.HUNG] * 2
        assert {service.inspection(j.inspection_id).state for j in others} == {"done"}
        seen = service.inspection(stuck.inspection_id)
        assert seen.error is not None
        assert (seen.state, seen.error["type"], hangs(service, stuck)) == ("failed", HUNG, 2)
        photo.mend()
        with workers(1) as (third,):
            assert service.wait(behind.inspection_id, WAIT_S).state == "done"
            service.retry(stuck.inspection_id, "ann")
            assert service.wait(stuck.inspection_id, WAIT_S).state == "done"
            assert third.end() == 0
        check_filed_once(service, stuck, behind, *others)


def test_server_that_inspects_by_itself_says_what_hangs_and_ends(ready: Path) -> None:
    with InspectionService.open(role="server") as service:
        stuck, other = submit(service, "41"), submit(service, "42")
        photo = photo_of(service, stuck)
    for state in ("queued", "failed"):
        with served() as (process, http):
            seen: list[tuple[int, str, dict[str, Any]]] = []  # /healthz, /readyz, the inspection
            with contextlib.suppress(httpx2.TransportError):
                while process.poll() is None:
                    asked = http.get("/healthz").status_code, http.get("/readyz").text
                    seen.append((*asked, http.get(f"/v1/inspections/{stuck.inspection_id}").json()))
                    time.sleep(0.2)
            assert process.wait(WAIT_S) == signals.HUNG
            health, ready_said, inspection = seen[-1]
            assert (health, inspection["state"]) == (503, state)
            assert f"inspection {stuck.inspection_id} has taken no step for {HANG_S} s" in ready_said
    assert inspection["error"]["type"] == HUNG
    with InspectionService.open(role="server") as service:
        check_filed_once(service, other)
    photo.mend()


@contextlib.contextmanager
def served() -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    process = subprocess.Popen([*COMMAND, "serve", "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    text = ""
    try:
        while "}" not in text:
            line = process.stdout.readline()
            assert line
            text += line
        said = json.loads(text)
        key = {"Authorization": f"Bearer {said['api_key']}"}
        with httpx2.Client(base_url=said["address"], headers=key, timeout=30) as http:
            yield process, http
    finally:
        process.kill()
        process.communicate()


@pytest.mark.long
def test_mcp_server_ends_with_what_hangs(ready: Path) -> None:
    with InspectionService.open(role="server") as service:
        photo_of(service, job := submit(service, "61"))
    process = subprocess.Popen([*COMMAND, "mcp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.wait(WAIT_S) == signals.HUNG
    finally:
        process.kill()
        process.communicate()
    with InspectionService.open(role="server") as service:
        assert hangs(service, job) == 1


def test_inspection_that_moves_again_after_it_was_given_up_files_nothing(ready: Path) -> None:
    with InspectionService.open(role="server") as service:  # another process, which has no photo in memory
        job = submit(service, "51")
        photo = photo_of(service, job)
    with InspectionService.open() as service:
        photo.opened()
        until(lambda: service.hung)
        photo.answer()
        until(lambda: not service._queue._thread.is_alive())
        assert service.jobs.get(job.inspection_id).state == "queued"
        assert service.stores.inspections.find(job.inspection_id) is None
        assert not service.alive
        assert (
            service.readiness()
            .problems[0]
            .startswith(f"inspection {job.inspection_id} has taken no step for {HANG_S} s")
        )


def test_inspection_whose_hang_could_not_be_recorded_is_counted_at_the_end_of_its_process(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with InspectionService.open(role="server") as service:
        job = submit(service, "71")
        photo = photo_of(service, job)
    with InspectionService.open() as service:
        hang, refused = service.jobs.hang, threading.Event()

        def away(*arguments: Any) -> Any:
            if not refused.is_set():
                refused.set()
                raise UnavailableError("the database does not answer")
            return hang(*arguments)

        monkeypatch.setattr(service.jobs, "hang", away)
        assert refused.wait(WAIT_S)
        assert (service.jobs.get(job.inspection_id).state, hangs(service, job)) == ("running", 0)
    with InspectionService.open(role="server") as service:
        assert (service.jobs.get(job.inspection_id).state, hangs(service, job)) == ("queued", 1)
    photo.answer()


def approved(*parts: str) -> tuple[Unanswered, list[str]]:
    """Inspections whose photos are approved as golden samples, and not enrolled yet; and the photo of the first."""
    with InspectionService.open() as service:
        jobs = [submit(service, part) for part in parts]
        assert {service.wait(job.inspection_id, WAIT_S).state for job in jobs} == {"done"}
    with Stores.open() as stores:
        for job in jobs:
            decision: Decision = "accept" if stores.inspections.get(job.inspection_id).verdict == "PASS" else "override"
            stores.dispositions.add(job.inspection_id, decision, "ann", "good", "good", as_reference=True)
            stores.adoptions.decide(job.inspection_id, True, "eve", admin=True)
        photo = Unanswered(stores, stores.captures.history(parts[0])[0].sha256)
    return photo, [job.inspection_id for job in jobs]


def counted(stores: Stores, inspection_id: str, times: int) -> bool:
    """Whether the enrolment of its photo hung so often."""
    with stores.db.connection() as conn:
        a = t.approvals.c
        return conn.scalar(select(a.hangs).where(a.inspection_id == inspection_id)) == times


def test_approved_photo_whose_enrolment_hangs_twice_waits_for_people_again_and_holds_nothing_up(
    ready: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, (stuck, other) = approved("81", "82")
    monkeypatch.setattr(queue, "_STOP_WAIT_S", WAIT_S)
    for times in (1, 2):
        with InspectionService.open() as service:
            until(lambda: service.hung)
            named = f"enrolment of the photo of inspection {stuck} has taken no step for {HANG_S} s (REFDIFF_HANG_S)"
            assert service.hung == named
            until(partial(counted, service.stores, stuck, times))
            assert [w.hung for w in service.stores.adoptions.waiting(stuck)] == [True] * (times == 2)
            # the second time, what never hung comes first
            assert (service.stores.adoptions.get(other) is not None) == (times == 2)
            began = time.monotonic()
        assert time.monotonic() - began < WAIT_S  # its end waits for no thread that hangs
        photo.answer()  # as the end of a process ends its threads
        until(lambda: not service._queue._thread.is_alive())
    photo.mend()
    monkeypatch.setenv("REFDIFF_HANG_S", "900")
    with InspectionService.open() as service:
        job = submit(service, "83")
        assert service.wait(job.inspection_id, WAIT_S).state == "done"
        assert service.hung is None
        adoptions = service.stores.adoptions
        assert adoptions.get(stuck) is None
        [given_up] = [r for r in service.stores.audit.of(stuck) if r.kind == "enrolment_given_up"]
        assert given_up.by == "refdiff"
    capsys.readouterr()
    assert main.run(["review"]) == 0
    shown = capsys.readouterr().out.replace("│", " ")  # cells of a table, whose lines break
    assert "enrolment hung twice" in " ".join(shown.split())
    assert main.run(["review", stuck, "--approve-reference", "--reason", "mended", "--by", "eve"]) == 0
    with Workspace.open(shared=True) as workspace:
        learned = workspace.stores.adoptions.get(stuck)
        assert learned is not None
        assert learned.golden_id is not None
        golden = workspace.bank.get(learned.golden_id)
        assert (golden.source, calibrates(golden), golden.status != "retired") == ("disposition", False, True)
        assert workspace.stores.audit.verify_store(photos=True).problem is None


def test_enrolment_of_an_approved_photo_takes_steps(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo, (_, second) = approved("81", "82")
    photo.mend()
    step, stepped = Work.step, Counter[str]()

    def counts(work: Work) -> None:
        stepped[work.what] += 1
        step(work)

    monkeypatch.setattr(Work, "step", counts)
    with InspectionService.open() as service:
        until(lambda: service.stores.adoptions.get(second))
    assert stepped[f"enrolment of the photo of inspection {second}"] == 1


def test_photo_whose_enrolment_was_given_up_and_moves_again_is_no_golden_sample_in_use(ready: Path) -> None:
    photo, (stuck,) = approved("81")
    with Workspace.open(shared=True) as workspace:
        made: list[Any] = []

        def moves_again() -> None:
            try:
                adopt(workspace, stuck)
            except UnavailableError as e:
                made.append(e)

        adopting = threading.Thread(target=moves_again)
        adopting.start()
        photo.opened()
        for _ in range(2):
            workspace.stores.adoptions.hang(stuck, "it hung")
        photo.answer()
        photo.mend()
        adopting.join(WAIT_S)
        assert "was given up" in str(made[0])
        assert adopt_all(workspace) == []
        assert [g.status for g in workspace.bank.list("board") if g.source == "disposition"] == ["retired"]


def test_golden_sample_of_an_enrolment_that_hangs_at_its_end_is_retired_until_it_is_approved_again(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the database or the bank stops answering between the two."""

    def left(service: InspectionService) -> list[str]:
        return [g.status for g in service.goldens("board") if g.source == "disposition"]

    photo, (stuck,) = approved("81")
    photo.mend()
    ends = threading.Event()

    def unanswered(*arguments: Any) -> Any:
        ends.wait(WAIT_S)
        raise UnavailableError("the process ends")

    with monkeypatch.context() as patch:
        patch.setattr(AdoptionStore, "add", unanswered)
        for times in (1, 2):
            with InspectionService.open() as service:
                until(lambda: service.hung)
                until(partial(counted, service.stores, stuck, times))
                until(lambda: left(service) == ["active"])
            ends.set()  # as the end of a process ends its threads
            until(lambda: not service._queue._thread.is_alive())
            ends.clear()
    monkeypatch.setenv("REFDIFF_HANG_S", "900")
    with InspectionService.open() as service:
        until(lambda: left(service) == ["retired"])
        service.people.decide_reference(stuck, True, "eve", admin=True)
        until(lambda: service.stores.adoptions.get(stuck))
        assert left(service) == ["active"]
        assert service.stores.audit.verify_store(photos=True).problem is None


def test_what_was_left_is_retired_before_other_photos_are_enrolled_which_may_fail(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, (stuck, other) = approved("81", "82")
    photo.mend()
    with Workspace.open(shared=True) as workspace:
        leave_behind(workspace, stuck, monkeypatch)
        get = workspace.stores.images.get

        def unanswered(sha256: str) -> bytes:
            if sha256 == workspace.stores.captures.history("82")[0].sha256:
                raise UnavailableError("the share does not answer")
            return get(sha256)

        monkeypatch.setattr(workspace.stores.images, "get", unanswered)
        with pytest.raises(UnavailableError, match="the share"):
            adopt_all(workspace)
        assert left_behind(workspace) == ["retired"]
        assert workspace.stores.adoptions.consented() == [other]
        assert workspace.stores.adoptions.abandoned() == []


def test_bank_that_does_not_answer_while_what_was_left_is_retired_is_no_hang_of_the_enrolment(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, (stuck,) = approved("81")
    photo.mend()
    with Workspace.open(shared=True) as workspace:
        leave_behind(workspace, stuck, monkeypatch)
    answers = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(GoldenBank, "set_status", lambda *_: answers.wait(WAIT_S))
        with InspectionService.open() as service:
            until(lambda: service.hung)
            what = f"retiring what the enrolment of the photo of inspection {stuck} left"
            assert service.hung == f"{what} has taken no step for {HANG_S} s (REFDIFF_HANG_S)"
            until(lambda: service.stores.jobs.hung())
            assert counted(service.stores, stuck, 2)
            answers.set()
            until(lambda: not service._queue._thread.is_alive())


def test_what_was_left_of_a_photo_that_is_gone_when_it_is_approved_again_is_retired(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, (stuck,) = approved("81")
    photo.mend()
    with Workspace.open(shared=True) as workspace:
        leave_behind(workspace, stuck, monkeypatch)
        workspace.stores.adoptions.decide(stuck, True, "eve", admin=True)
        photo.path.unlink()
        assert adopt(workspace, stuck).outcome.startswith("refused")
        assert left_behind(workspace) == ["retired"]


def test_photo_that_was_lost_and_is_sent_again_becomes_a_golden_sample_in_use(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, (stuck, again) = approved("81", "81")
    photo.mend()
    data = photo.path.read_bytes()
    with Workspace.open(shared=True) as workspace:
        leave_behind(workspace, stuck, monkeypatch)
        workspace.stores.adoptions.decide(stuck, True, "eve", admin=True)
        photo.path.unlink()
        assert adopt(workspace, stuck).outcome.startswith("refused")
        photo.path.write_bytes(data)
        assert adopt(workspace, again).outcome.startswith("enrolled")
        assert left_behind(workspace) != ["retired"]


def test_what_is_approved_again_while_others_enrol_is_not_retired_and_is_enrolled_after_them(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo, (stuck,) = approved("81")
    photo.mend()
    with Workspace.open(shared=True) as workspace:
        leave_behind(workspace, stuck, monkeypatch)

        @contextlib.contextmanager
        def turn(inspection_id: str) -> Iterator[Progress]:
            if workspace.stores.adoptions.waiting(inspection_id):
                workspace.stores.adoptions.decide(inspection_id, True, "eve", admin=True)
                with pytest.raises(BusyError, match="are being enrolled"):
                    adopt(workspace, inspection_id)
                seen.append("approved")
            else:
                seen.extend(left_behind(workspace))
            yield silent

        seen: list[str] = []
        assert [a.outcome[:8] for a in adopt_all(workspace, turn, turn)] == ["enrolled"]
        assert seen == ["approved", "active"]
        assert left_behind(workspace) == ["active"]


def left_behind(workspace: Workspace) -> list[str]:
    return [g.status for g in workspace.bank.list("board") if g.source == "disposition"]


def leave_behind(workspace: Workspace, inspection_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an enrolment leaves that hangs at its end, and is given up."""

    def ends(*arguments: Any) -> Any:
        raise UnavailableError("the process ends")

    with monkeypatch.context() as patch:
        patch.setattr(AdoptionStore, "add", ends)
        with pytest.raises(UnavailableError, match="the process ends"):
            adopt(workspace, inspection_id)
    for _ in range(2):
        workspace.stores.adoptions.hang(inspection_id, "it hung")
    assert left_behind(workspace) == ["active"]


def test_inspection_that_another_process_still_runs_is_waited_for_and_no_outage(ready: Path) -> None:
    """As by a worker that was taken for dead, or that takes long to end after something hung in it."""
    with InspectionService.open(role="server") as service, contextlib.ExitStack() as later:
        job = submit(service, "91")
        with service._inspector.checkpoints.claim(job.inspection_id):
            worker = later.enter_context(InspectionService.open(role="worker"))
            until(lambda: service.jobs.get(job.inspection_id).attempts >= 2)
            until(lambda: service.jobs.get(job.inspection_id).state == "queued")
            assert worker.readiness().problems == ()
            assert service.jobs.get(job.inspection_id).failures == 0
        assert service.wait(job.inspection_id, WAIT_S).state == "done"


def test_calibration_that_hangs_is_named(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_HANG_S", "3")
    monkeypatch.setenv("REFDIFF_CACHE", str(ready / "empty"))
    with InspectionService.open() as service:
        photo = Unanswered(service.stores, service.goldens("board")[5].sha256)
        asking = threading.Thread(target=lambda: service.calibrate("board", by="ann"))
        asking.start()
        until(lambda: service.hung)
        assert service.hung == "calibration of product board has taken no step for 3 s (REFDIFF_HANG_S)"
        assert not service.alive
        photo.answer()
        asking.join(WAIT_S)
    with Stores.open() as stores:  # for who waits for this process to be started again
        assert stores.jobs.hung() == service.hung


def test_journal_that_does_not_answer_at_the_end_of_an_inspection_is_named(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    with InspectionService.open() as service:
        finish = service.jobs.finish

        def unanswered(*arguments: Any) -> None:
            answers.wait(WAIT_S)
            finish(*arguments)

        monkeypatch.setattr(service.jobs, "finish", unanswered)
        job = submit(service, "11")
        until(lambda: service.hung)
        answers.set()
        named = f"noting the end of inspection {job.inspection_id} has taken no step for {HANG_S} s (REFDIFF_HANG_S)"
        assert service.hung == named


def test_fit_that_hangs_has_failed(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fit_network", lambda net, *arguments: net)
    monkeypatch.setattr(background_fit, "_STOP_S", 0.2)
    monkeypatch.setenv("REFDIFF_CACHE", str(ready / "empty"))
    with InspectionService.open() as service:
        photo = Unanswered(service.stores, service.goldens("board")[5].sha256)
        service.fit("board", "ann")
        photo.opened()  # else it might end before it reads the photo
        until(lambda: service.hung)
        assert service.hung == f"fit of product board has taken no step for {HANG_S} s (REFDIFF_HANG_S)"
    with Stores.open() as stores:
        last = stores.networks.last_attempt("board")
    photo.answer()
    assert last is not None
    assert (last.outcome, last.message) == ("failed", service.hung)


def test_who_waits_for_a_calibration_of_another_process_does_not_hang(ready: Path) -> None:
    told: list[str] = []

    def tell(what: str, done: int, total: int, note: str = "") -> None:
        told.append(what)

    found: list[Any] = []
    with Workspace.open(shared=True) as one, Workspace.open(shared=True) as other:
        one.bank.set_status(one.bank.list("board")[0].golden_id, "retired", "stale now")
        waiting = threading.Thread(target=lambda: found.append(current_calibration(other, "board", progress=tell)))
        with one.stores.db.lock("calibrate board", BusyError("held")):
            waiting.start()
            until(lambda: told.count("waiting for another process that calibrates") >= 2)
        waiting.join(WAIT_S)
    assert found[0].n == 21


def test_watched_photo_whose_inspection_hangs_ends_the_watch_and_is_inspected_once_it_answers(
    ready: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_CACHE", str(ready / "empty"))
    monkeypatch.setenv("REFDIFF_ENGINE", "torch")  # nothing is converted first
    camera = ready / "camera"
    camera.mkdir()
    (camera / "board_11.png").write_bytes(good_photo(70))
    with Workspace.open(shared=True) as workspace:
        photos = [Unanswered(workspace.stores, g.sha256) for g in workspace.bank.list("board")]
    with Stores.open() as stores:
        pattern = r"(?P<product>[a-z]+)_(?P<part>\d+)"
        command = ["watch", str(camera), "--pattern", pattern, "--judge", "never", "--once"]
        process = subprocess.Popen([*COMMAND, *command], stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=WAIT_S)[1]
        finally:
            process.kill()
        assert process.returncode == signals.HUNG
        named = f"the inspection of board_11.png has taken no step for {HANG_S} s (REFDIFF_HANG_S)"
        assert f"{named}; this process ends, to be started again" in said
        for photo in photos:
            photo.mend()
        monkeypatch.setenv("REFDIFF_HANG_S", "900")
        assert main.run(command) == 0
        assert [r.part_id for r in stores.inspections.list()] == ["11"]


@pytest.mark.parametrize(("what", "times"), [("resolve", 1), ("finish", 2)])
def test_watch_whose_folder_does_not_answer_ends_also_at_its_start(
    ready: Path, monkeypatch: pytest.MonkeyPatch, what: str, times: int
) -> None:
    """finish: first after the inspection, then at the start of the next watch, which has that photo to move."""
    camera, pipe = ready / "camera", ready / "pipe"
    camera.mkdir()
    os.mkfifo(pipe)
    (camera / "11.png").write_bytes(good_photo(70))
    where = "the opening of" if what == "resolve" else "the watch of"
    code = f"""
import os, pathlib
from refdiff.server.cli.main import main
from refdiff.server.watch import folder
class Share(type(pathlib.Path())):
    def resolve(self, *more):
        os.open({str(pipe)!r}, os.O_RDONLY)
if {what!r} == "resolve":
    made = folder.WatchedFolder.__init__
    folder.WatchedFolder.__init__ = lambda self, root, **more: made(self, Share(root), **more)
else:
    folder.WatchedFolder.finish = lambda *_: os.open({str(pipe)!r}, os.O_RDONLY)
main()
"""
    command = ["watch", str(camera), "--product", "board", "--judge", "never", "--once"]
    for _ in range(times):
        process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=WAIT_S)[1]
        finally:
            process.kill()
        assert process.returncode == signals.HUNG, said
        assert f"{where} {camera} has taken no step for {HANG_S} s (REFDIFF_HANG_S); this process ends" in said
    monkeypatch.setenv("REFDIFF_HANG_S", "900")
    assert main.run(command) == 0
    with Stores.open() as stores:
        assert [r.part_id for r in stores.inspections.list()] == ["11"]
    assert [p.name for p in (camera / "done").iterdir()] == ["11.png"]


def test_machine_that_was_suspended_hangs_in_nothing(tmp_path: Path) -> None:
    code = """
import threading
import time
from refdiff.agent.work.watch import Watch
hung = threading.Event()
watch = Watch(1.5, lambda work: (print(f"{work.what} hung", flush=True), hung.set()))
watch.start()
with watch.over("it") as work:
    print("begun", flush=True)
    for _ in range(20):
        time.sleep(0.1)
        work.step()
with watch.over("that"):
    hung.wait(60)
print("done")
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(3.0)
    process.send_signal(signal.SIGCONT)
    assert process.stdout.readline() == "that hung\n"
    assert process.stdout.read() == "done\n"  # communicate() would not see what readline has read ahead
    assert process.wait(WAIT_S) == 0


def test_what_hangs_in_the_midst_of_a_log_write_is_known_and_recorded_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the stream of the log is a pipe that nobody reads: the thread that writes holds the handler's lock."""
    answers = threading.Event()

    class Unread(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            answers.wait(WAIT_S)

    def inspect(job: Job) -> str:
        logging.getLogger("refdiff").warning("this is never read")
        return "PASS"

    unread, ours = Unread(), logging.getLogger("refdiff")
    with Stores.open(MemorySettings(home=tmp_path / "home")) as stores:
        job, _ = stores.jobs.add("insp-1", {"part_id": "1"}, None, 10)
        hanging = InspectionQueue(stores.jobs, inspect, hang_s=1.0)
        ours.addHandler(unread)
        try:
            hanging.start()
            until(lambda: hanging.hung, 20)
            until(lambda: stores.jobs.hung() == hanging.hung, 20)
            assert stores.jobs.get(job.inspection_id).state == "queued"
        finally:
            answers.set()
            ours.removeHandler(unread)
            hanging.stop()
    until(lambda: "is tried again once" in caplog.text and "Its thread is at" in caplog.text, 20)


def test_endpoint_may_take_as_long_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFDIFF_LLM", "auto")
    assert AgentSettings(llm_timeout_s=60, llm_retries=2).longest_step_s == HANG_S
    assert AgentSettings(llm_base_url="http://host/v1", llm_timeout_s=60, llm_retries=2).longest_step_s == 360
    assert AgentSettings(llm="off", llm_base_url="http://host/v1").longest_step_s == HANG_S
