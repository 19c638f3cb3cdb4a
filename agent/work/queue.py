"""Takes jobs from the journal, one after the other in one thread, and runs short exclusive work in between.

Any number of processes take jobs from one journal: what is next is found there, and each says while it runs a job that it
lives. Progress is heard in the process that runs the job; of jobs of other processes the journal tells when they end.

A job that takes no step for too long hangs. It goes back once, and fails the next time; the process takes no more jobs, and
should end.

Only this thread uses the language model. The difference network is also used by enrolment and calibration, which run beside
it; that is safe because its weights are only read and the feature caches are locked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from refdiff.agent.events import AgentEvent
from refdiff.agent.work.watch import HANG_S, Watch, Work, aside
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.jobs import HUNG, LEASE_S, Job, JobState, JobStore
from refdiff.model.errors import BusyError, ElsewhereError, RefDiffError, UnavailableError
from refdiff.model.files import outage

T = TypeVar("T")
Listener = Callable[["Progress"], None]

MAX_CRASHES_ALONE = (
    3  # of the process while it ran a job that had crashed before, and did nothing else: it is the cause
)
MAX_CRASHES = 12  # while it ran one job, whatever else was at work
BACKOFF = Backoff(first_s=1.0, longest_s=60.0, factor=4.0)  # while something that an inspection needs is unavailable
_EARLY_RETRIES = 4  # of a job that go before newer jobs
_MAX_EXCLUSIVE = 16  # each holds a thread of its caller
_HISTORIES = 512  # inspections whose progress is kept for listeners that come late
_HISTORY = 256  # progress of each, which grows while something is unavailable
_STOP_WAIT_S = 8.0
_STOPPING = "the server is stopping; ask again after the restart"
_IDLE_S = 60.0  # between two runs of the idle work
_LOOK_S = 0.25  # between two looks for jobs that other processes accepted, or ended
_ELSEWHERE_S = 2.0  # between two looks whether another process, perhaps at its end, still runs a job
_AGAIN_S = 1.0, 4.0  # between two tries of a journal that fails: at random, as many processes ask it once it is back

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """A step of an inspection. The last one has the state done or failed."""

    inspection_id: str
    number: int  # counts from 1
    kind: str  # queued, started, calibrating, llm, tool, verify, fallback, filed, retry, done or failed
    message: str
    state: JobState
    done: int = 0  # of long work; 0 if it is not counted
    total: int = 0

    @property
    def last(self) -> bool:
        return self.state in ("done", "failed")


class InspectionQueue:
    """Progress is reported in the thread in which it happens: listeners must be quick."""

    def __init__(
        self,
        jobs: JobStore,
        inspect: Callable[[Job], str],
        on_idle: Callable[[], None] = lambda: None,
        *,
        takes_jobs: bool = True,
        on_crashed: Callable[[list[Job]], None] = lambda jobs: None,
        outcome: Callable[[str], str] = lambda inspection_id: "",
        lease_s: float = LEASE_S,
        hang_s: float = HANG_S,
    ) -> None:
        """inspect: runs a job, files it and returns what to report at the end, e.g. the verdict; it may be called again for
        a job that was interrupted. on_idle: short work at the start, after each inspection and once a minute without one.
        takes_jobs: False where other processes inspect. on_crashed: called with jobs whose worker has died, once they wait
        again. outcome: what to report at the end of one that another process filed. lease_s: how long after its last sign of
        life a worker is taken for dead. hang_s: how long work may take for one step.
        """
        self._jobs, self._inspect, self._on_idle = jobs, inspect, on_idle
        self._takes_jobs, self._on_crashed, self._lease_s = takes_jobs, on_crashed, lease_s
        self._outcome, self._hang_s = outcome, hang_s
        self._watch = Watch(hang_s, self._hang)
        self._noted = False  # that something hangs
        self._noting = threading.Lock()
        self._doing: Work | None = None  # of the inspecting thread
        self._heard: AgentEvent | None = None  # the last one
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"
        self._changed = threading.Condition()
        self._more = takes_jobs  # whether there may be a job to take
        self._next_look = 0.0
        self._idle_at = self._next_crash_look = 0.0  # when the idle work ran, and when to look for dead workers
        self._failing: set[str] = set()  # jobs of this process that are tried again later
        self._unwritten: dict[str, str] = {}  # jobs that the journal could not be told about, and why
        self._journal_fails = False
        self._exclusive: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running_exclusive: Future[Any] | None = None
        self._histories: OrderedDict[str, list[Progress]] = OrderedDict()
        self._listeners: dict[str, list[Listener]] = {}
        self._stopping = threading.Event()
        self._current: str | None = None
        self._blame = threading.Lock()  # what the journal holds about blame is written under it, too
        self._beside = 0  # pieces of work in other threads that might crash the process
        self._blamed: str | None = None  # the running job, if a crash now would be its own
        self._outage: str | None = None  # the last one, logged already
        self.seconds_each = 5.0  # moving average
        self.finished = {"done": 0, "failed": 0}
        # a daemon: a process that stops does not wait for an inspection, which is resumed after the next start
        self._thread = threading.Thread(target=self._run, name="inspections", daemon=True)
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._looks = threading.Thread(target=self._listen, name="progress", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._looks.start()
        self._watch.start()
        if self._takes_jobs:
            self._beats.start()

    def drain(self) -> None:
        """Stop accepting work, and release the callers of exclusive work. Quick."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            for future, _ in self._exclusive:
                _refuse(future)
            self._exclusive.clear()
            if self._running_exclusive is not None:  # its caller delays the end of the process
                timer = threading.Timer(_STOP_WAIT_S, _refuse, (self._running_exclusive,))
                timer.daemon = True
                timer.start()

    def stop(self, wait_s: float | None = None) -> None:
        """Drain, and wait for what is running, no longer than wait_s (default: briefly); the journal keeps the rest."""
        self.drain()
        if self._thread.is_alive() and not self._is_stuck:
            self._thread.join(_STOP_WAIT_S if wait_s is None else wait_s)
        self._ended.set()
        self._watch.stop()
        for thread in (self._beats, self._looks):  # they use the journal, which is closed next
            if thread.is_alive():
                thread.join(_STOP_WAIT_S)
        try:
            self._note()  # again: what hangs may not go back uncounted
            if self._takes_jobs:
                self._jobs.release(self.worker)  # a stop is no crash
                self._jobs.leave(self.worker, self.hung)
        except UnavailableError:
            log.exception("what was running is resumed after the next start")

    @property
    def current(self) -> str | None:
        """The inspection that is running."""
        return self._current

    @property
    def busy(self) -> bool:
        """Whether something runs or waits to be run at once."""
        exclusive = self._running_exclusive
        running = self._current is not None or (exclusive is not None and not exclusive.done())
        return running or bool(self._more or self._exclusive)

    @property
    def outage(self) -> str | None:
        """What the inspections that are tried again later lack; None if there are none."""
        return self._outage if self._failing or self._unwritten or self._journal_fails else None

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def hung(self) -> str | None:
        """What hangs, in words: this process should end."""
        return self._watch.hung

    @property
    def alive(self) -> bool:
        """Whether this process gets work done: its inspecting thread lives, and nothing hangs."""
        return self._thread.is_alive() and self.hung is None

    @property
    def silent_s(self) -> float:
        """Since the last step of what the inspecting thread does; 0 while it has nothing to do."""
        return self._doing.silent_s if self._doing else 0.0

    # -- jobs

    def enqueue(self, job: Job) -> None:
        """Say that the journal holds a job. It is accepted: that this cannot be counted or told is no error."""
        try:
            said = f"inspections ahead of it: {self._jobs.ahead_of(job)}"
        except RefDiffError as e:
            said = f"accepted; {e}"
        self._report(job.inspection_id, "queued", said, "queued")
        self.look()

    def look(self) -> None:
        """Look for jobs now: some were added."""
        with self._changed:
            self._more = self._takes_jobs
            self._changed.notify_all()

    def show(self, job: Job) -> None:
        """Let those who will listen to a waiting job hear of it first that it waits."""
        with self._changed:
            known = job.inspection_id in self._histories
        if job.open and not known and job.inspection_id != self._current:
            self._report(job.inspection_id, "queued", f"inspections ahead of it: {self._jobs.ahead_of(job)}", "queued")

    def run_exclusive(self, work: Callable[[], T]) -> T:
        """Run short work between two inspections, and wait for its result. Raises what it raises, or BusyError."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopping.is_set():
                raise UnavailableError(_STOPPING)
            if len(self._exclusive) >= _MAX_EXCLUSIVE:
                raise BusyError(f"{_MAX_EXCLUSIVE} questions are already waiting; ask again later", self.seconds_each)
            self._exclusive.append((future, work))
            self._changed.notify_all()
        return future.result()

    def cancel(self, inspection_id: str, by: str) -> None:
        """End a waiting job. Raises UnknownRecordError, InputError if it runs or has ended."""
        job = self._jobs.cancel(inspection_id, by)
        self._failing.discard(inspection_id)
        if job.error:
            self._report(inspection_id, "failed", str(job.error["message"]), "failed")

    def retry(self, inspection_id: str, by: str) -> Job:
        """Put a failed job back in the queue. Raises UnknownRecordError, InputError if it has not failed."""
        job = self._jobs.retry(inspection_id, by)
        with self._changed:
            self._histories.pop(inspection_id, None)  # whoever listens from now on is not told that it has failed
        self.enqueue(job)
        return job

    @contextlib.contextmanager
    def beside(self, what: str = "", note: Callable[[], None] | None = None) -> Iterator[Callable[[], None]]:
        """Work in another thread that might crash the process: it is not blamed on the inspection that runs meanwhile.

        what: long work, which is watched. note: records that it hung. Yields what it calls with each step.
        """
        with self._blame:
            if self._blamed is not None:
                self._jobs.not_alone(self._blamed)
            self._beside, self._blamed = self._beside + 1, None
        try:
            if what:
                with self._watch.over(what, note) as work:
                    yield work.step
            else:
                yield lambda: None
        finally:
            with self._blame:
                self._beside -= 1

    # -- progress

    def on_event(self, event: AgentEvent) -> None:
        """The agent's listener: an event belongs to the inspection that is running. Raises UnavailableError in one that was
        given up."""
        if self._is_given_up(self._doing):
            raise UnavailableError("this inspection was given up, as it took no step for too long")
        if self._doing is not None:
            self._doing.step()
        if event.kind == "calibrating" and event == self._heard:
            return  # it still waits for another process
        self._heard = event
        if self._current is not None:
            self._report(self._current, event.kind, event.message, "running", event.done, event.total)

    def subscribe(self, inspection_id: str, listener: Listener) -> Callable[[], None]:
        """Report past and future progress of an inspection, up to its last; returns the function that unsubscribes."""
        with self._changed:
            for progress in self._histories.get(inspection_id, ()):
                listener(progress)
                if progress.last:
                    return lambda: None
            self._listeners.setdefault(inspection_id, []).append(listener)

        def unsubscribe() -> None:
            with self._changed:
                listeners = self._listeners.get(inspection_id, [])
                if listener in listeners:
                    listeners.remove(listener)
                if not listeners:
                    self._listeners.pop(inspection_id, None)

        return unsubscribe

    def _report(
        self, inspection_id: str, kind: str, message: str, state: JobState, done: int = 0, total: int = 0
    ) -> None:
        with self._changed:
            history = self._histories.setdefault(inspection_id, [])
            number = history[-1].number + 1 if history else 1
            progress = Progress(inspection_id, number, kind, message, state, done, total)
            counted = history and total and history[-1].kind == kind and history[-1].total
            if not counted:  # of counted work the history keeps the first step only
                history.append(progress)
                del history[1:-_HISTORY]
            while len(self._histories) > _HISTORIES:
                self._histories.popitem(last=False)
            listeners = list(self._listeners.get(inspection_id, ()))
            if progress.last:
                self._listeners.pop(inspection_id, None)
            for listener in listeners:
                try:
                    listener(progress)
                except Exception:  # the listener disconnected; keep inspecting
                    log.exception("a listener of %s failed", inspection_id)

    # -- other processes

    def _keep(self) -> None:
        """Renew the lease, and the news that this process takes jobs."""
        told = False  # once, not with each try
        # what else hangs in this process is no matter of the inspection that runs
        while not self._is_stuck:
            try:
                self._jobs.keep(self.worker, self._lease_s)
                told = False
            except Exception as e:  # another worker may take over what it runs; it is filed once all the same
                if not told:
                    log.warning("the lease of %s could not be renewed: %s", self.worker, e)
                told = True
                # nor could others renew theirs: who lives says so first once the journal is there again
                self._next_crash_look = time.monotonic() + self._lease_s
            if self._ended.wait(self._lease_s / 3):
                return

    def _listen(self) -> None:
        """Report the end of jobs that somebody listens to and that another process ended."""
        while not self._ended.wait(_LOOK_S):
            with self._changed:
                heard = [i for i in self._listeners if i != self._current]
            try:
                found = self._jobs.states([*heard, *self._failing]) if heard or self._failing else {}
                self._failing = {i for i in self._failing if found.get(i, ("done",))[0] == "queued"}
                for inspection_id in heard:
                    self._follow(inspection_id, *found.get(inspection_id, ("done", 0, None)))
            except Exception as e:
                if outage(e) is None and not isinstance(e, RefDiffError):
                    log.warning("the progress of inspections cannot be read", exc_info=True)

    def _follow(self, inspection_id: str, state: JobState, attempts: int, error: dict[str, Any] | None) -> None:
        with self._changed:
            history = self._histories.get(inspection_id, [])
            known = history[-1].kind if history else ""
            if inspection_id == self._current or (history and history[-1].last):
                return
        if state == "running" and known == "queued" and inspection_id != self._current:
            self._report(inspection_id, "started", f"attempt {attempts}, elsewhere", "running")
        elif state == "done":
            self._report(inspection_id, "done", self._outcome(inspection_id), "done")
        elif state == "failed":
            self._report(inspection_id, "failed", str((error or {}).get("message", "")), "failed")

    # -- the thread

    def _run(self) -> None:
        self._idle()
        while self.hung is None:
            with self._changed:
                if not (self._exclusive or self._stopping.is_set() or (self._more and not self._journal_fails)):
                    idle_at = self._idle_at + _IDLE_S
                    wake_at = min(self._next_look, idle_at) if self._takes_jobs else idle_at
                    self._changed.wait(max(0.0, wake_at - time.monotonic()))
                if self._stopping.is_set():
                    return
                work = self._exclusive.popleft() if self._exclusive else None
                self._running_exclusive = work[0] if work else None
                looks = self._takes_jobs and (self._more or time.monotonic() >= self._next_look)
            if work:
                with self._working("the answer to a question"):
                    _run_exclusive(*work)
                continue
            ran = looks and self._take()
            if not self._stopping.is_set() and (ran or time.monotonic() - self._idle_at >= _IDLE_S):
                self._idle()

    def _take(self) -> bool:
        """Take the next job and run it; whether there was one. If the journal fails, the next look is later."""
        with self._changed:
            self._more = False  # unless one is enqueued from now on, or one is found
        job = None
        try:
            for inspection_id, why in list(self._unwritten.items()):
                self._give_back(inspection_id, why)
                self._unwritten.pop(inspection_id)
            if self._journal_fails:  # perhaps once it had begun a job, whose lease would be renewed for ever
                self._jobs.release(self.worker)
            self._look_for_crashed()
            with self._blame:
                alone = not self._beside
                job = self._jobs.begin(None, alone, self.worker, self._lease_s)
                # a first crash makes it suspect, whatever else is at work
                self._blamed = job.inspection_id if job is not None and job.crashes and alone else None
                self._current = job.inspection_id if job is not None else None
            if job is not None:
                self._more = True
                self._run_job(job)
            if self._journal_fails:
                self._journal_fails, self._outage = False, self.outage if self._failing else None
        except Exception as e:  # the journal itself fails, e.g. because the disk is full
            self._journal_fails = True
            if not self._stopping.is_set():  # else it was closed meanwhile, and the next start goes on
                lacking = outage(e) or e
                if job is not None:
                    self._unwritten[job.inspection_id] = str(lacking)
                self._told(job.inspection_id if job else None, lacking)
        finally:
            self._current = self._blamed = None
        pause = random.uniform(*_AGAIN_S) if self._journal_fails else _LOOK_S
        self._next_look = time.monotonic() + pause
        return job is not None

    def _look_for_crashed(self) -> None:
        if time.monotonic() >= self._next_crash_look:
            self._next_crash_look = time.monotonic() + self._lease_s / 3
            if lost := self._jobs.take_over():
                self._on_crashed(lost)

    def _told(self, inspection_id: str | None, error: Exception) -> None:
        """Log an outage once, not with each try of each inspection."""
        if self._outage != str(error):
            which = f"inspection {inspection_id} and perhaps others wait" if inspection_id else "inspections wait"
            log.warning("%s: %s", which, error, exc_info=None if isinstance(error, UnavailableError) else error)
            self._outage = str(error)

    def _retry_later(self, job: Job, error: Exception) -> None:
        self._told(job.inspection_id, error)
        self._failing.add(job.inspection_id)
        self._give_back(job.inspection_id, str(error), job.failures + 1)

    def _give_back(self, inspection_id: str, why: str, failures: int = 1) -> None:
        """Put a job back in the queue. One that failed early goes before newer jobs, but only the first few times: failing
        jobs cannot starve new ones."""
        delay = BACKOFF.wait_s(failures)
        self._jobs.requeue(inspection_id, self.worker, delay, last=failures >= _EARLY_RETRIES)
        self._report(inspection_id, "retry", f"{why}; retrying in {delay:g} s", "queued")

    def _idle(self) -> None:
        self._idle_at = time.monotonic()
        try:
            self._on_idle()
        except Exception:  # it runs again at the next occasion
            log.warning("the work between two inspections failed", exc_info=True)

    @contextlib.contextmanager
    def _working(self, what: str, note: Callable[[], None] | None = None) -> Iterator[Work]:
        """Work of the inspecting thread, which is watched."""
        with self._watch.over(what, note) as self._doing:
            try:
                yield self._doing
            finally:
                self._doing = None

    def _is_given_up(self, work: Work | None) -> bool:
        return work is not None and work is self._watch.hanging

    @property
    def _is_stuck(self) -> bool:
        """Whether the inspecting thread hangs, in whatever it does."""
        hanging = self._watch.hanging
        return hanging is not None and hanging.thread == self._thread.ident

    def _hang(self, work: Work) -> None:
        """In the thread that watches. It has waited for no lock before the lease ends and the process is known to be of no
        use: what hangs may hold any."""
        try:
            self._note()
        except Exception:
            log.exception("this is not recorded; the end of this process tries again, else the end of its lease tells")

    def _note(self) -> None:
        """Record what hangs, once. Raises what that raises; the next call tries again."""
        work = self._watch.hanging
        with self._noting:
            if work is None or self._noted:
                return
            if work.note is not None:
                work.note()
            if self._takes_jobs:
                self._jobs.leave(self.worker, self.hung)
            self._noted = True

    def _give_up(self, inspection_id: str) -> None:
        """Record that an inspection of this process hangs."""
        message = (
            f"given up: it hung twice, taking no step for {self._hang_s:g} s (REFDIFF_HANG_S), the second time in "
            f"{self.worker}, whose log says where. To try it again: POST /v1/inspections/{inspection_id}/retry"
        )
        state = self._jobs.hang(
            inspection_id, self.worker, {"type": HUNG, "message": message, "exit_code": RefDiffError.exit_code}
        )
        said = {"queued": "is tried again once, behind all that wait", "failed": f"is {message}"}
        aside(lambda: log.error("inspection %s %s", inspection_id, said.get(state or "", "had been taken over")))
        if state == "failed":
            self.finished["failed"] += 1
            self._report(inspection_id, "failed", message, "failed")
        elif state == "queued":
            self._report(inspection_id, "retry", "it hung; another process tries it again", "queued")

    def _run_job(self, job: Job) -> None:
        """Run it once. While something is unavailable it is retried for as long as it takes, and other jobs run."""
        started, inspection_id = time.monotonic(), job.inspection_id
        self._report(inspection_id, "started", f"attempt {job.attempts}", "running")
        work: Work | None = None
        try:
            with self._working(f"inspection {inspection_id}", partial(self._give_up, inspection_id)) as work:
                outcome = self._inspect(job)
        except Exception as e:
            if self._is_given_up(work):
                return None
            if isinstance(e, ElsewhereError):  # nothing fails: it is filed there, or, once that process has ended, here
                self._jobs.requeue(inspection_id, self.worker, _ELSEWHERE_S, failed=False)
                return self._report(inspection_id, "retry", f"{e}; looking again in {_ELSEWHERE_S:g} s", "queued")
            if (lacking := outage(e)) is None:
                return self._fail(inspection_id, e)
            return self._retry_later(job, lacking)
        finally:
            self._blamed = None
        if self._is_given_up(work):  # the journal has its end, or another process runs it
            return None
        with self._watch.over(f"noting the end of inspection {inspection_id}"):
            self._jobs.finish(inspection_id, None, self.worker)
        self._failing.discard(inspection_id)
        self._outage = None
        self.finished["done"] += 1
        self.seconds_each += 0.2 * (time.monotonic() - started - self.seconds_each)
        return self._report(inspection_id, "done", outcome, "done")

    def _fail(self, inspection_id: str, error: Exception) -> None:
        known = isinstance(error, RefDiffError)
        if not known:
            log.error("inspection %s failed", inspection_id, exc_info=error)
        message = str(error) if known else f"internal error ({type(error).__name__}); the log has the details"
        code = error.exit_code if isinstance(error, RefDiffError) else RefDiffError.exit_code
        self._jobs.finish(
            inspection_id, {"type": type(error).__name__, "message": message, "exit_code": code}, self.worker
        )
        self._failing.discard(inspection_id)
        self.finished["failed"] += 1
        self._report(inspection_id, "failed", message, "failed")


def _run_exclusive(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except Exception as e:
        with contextlib.suppress(InvalidStateError):  # refused meanwhile
            future.set_exception(e)
        return
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _refuse(future: Future[Any]) -> None:
    with contextlib.suppress(InvalidStateError):  # answered meanwhile
        future.set_exception(UnavailableError(_STOPPING))
