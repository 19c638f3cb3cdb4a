"""Single-threaded job queue: runs inspections in order and short exclusive work in between.

Only this thread uses the language model. The difference network is also used by enrolment and calibration, which run beside
it; that is safe because its weights are only read and the feature caches are locked.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

from refdiff.agent.events import AgentEvent
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.jobs import Job, JobState, JobStore
from refdiff.model.errors import BusyError, RefDiffError, UnavailableError
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
        self, jobs: JobStore, inspect: Callable[[Job], str], on_idle: Callable[[], None] = lambda: None
    ) -> None:
        """inspect: runs a job, files it and returns what to report at the end, e.g. the verdict; it may be called again for
        a job that was interrupted. on_idle: short work at the start, after each inspection and once a minute without one.
        """
        self._jobs, self._inspect, self._on_idle = jobs, inspect, on_idle
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._later: list[tuple[float, str]] = []  # a heap of jobs to retry, by the time of the retry
        self._failures: dict[str, int] = {}  # of those, in a row
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
        self.sign_of_life = time.monotonic()  # of the thread
        self.seconds_each = 5.0  # moving average
        self.finished = {"done": 0, "failed": 0}
        # a daemon: a process that stops does not wait for an inspection, which is resumed after the next start
        self._thread = threading.Thread(target=self._run, name="inspections", daemon=True)

    def start(self) -> None:
        self._thread.start()

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

    def stop(self) -> None:
        """Drain, and wait briefly for what is running; the journal keeps the rest."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)
        if (current := self._current) is not None:  # a stop is no crash
            try:
                self._jobs.requeue(current)
            except UnavailableError:
                log.exception("inspection %s is resumed after the next start", current)

    @property
    def current(self) -> str | None:
        """The inspection that is running."""
        return self._current

    @property
    def busy(self) -> bool:
        """Whether something runs or waits to be run at once."""
        exclusive = self._running_exclusive
        running = self._current is not None or (exclusive is not None and not exclusive.done())
        return running or bool(self._waiting or self._exclusive)

    @property
    def outage(self) -> str | None:
        """What the inspections that are tried again later lack; None if there are none."""
        return self._outage if self._later else None

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # -- jobs

    def enqueue(self, job: Job, ahead: int | None = None) -> None:
        """Add a job that the journal holds. ahead: how many come before it, if known."""
        ahead = self._jobs.ahead_of(job) if ahead is None else ahead
        self._report(job.inspection_id, "queued", f"inspections ahead of it: {ahead}", "queued")
        with self._changed:
            self._waiting.append(job.inspection_id)
            self._changed.notify_all()

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
        with self._changed:
            with contextlib.suppress(ValueError):
                self._waiting.remove(inspection_id)
            self._later = [(when, i) for when, i in self._later if i != inspection_id]
            heapq.heapify(self._later)
            self._failures.pop(inspection_id, None)
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
    def beside(self) -> Iterator[None]:
        """Work in another thread that might crash the process: it is not blamed on the inspection that runs meanwhile."""
        with self._blame:
            if self._blamed is not None:
                self._jobs.not_alone(self._blamed)
            self._beside, self._blamed = self._beside + 1, None
        try:
            yield
        finally:
            with self._blame:
                self._beside -= 1

    # -- progress

    def on_event(self, event: AgentEvent) -> None:
        """The agent's listener: an event belongs to the inspection that is running."""
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
        self.sign_of_life = time.monotonic()
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

    # -- the thread

    def _run(self) -> None:
        self._idle()
        while True:
            self.sign_of_life = time.monotonic()
            with self._changed:
                if not (self._is_due() or self._exclusive or self._stopping.is_set()):
                    later = self._later[0][0] - time.monotonic() if self._later else _IDLE_S
                    self._changed.wait(min(max(0.0, later), _IDLE_S))
                    self._is_due()
                if self._stopping.is_set():
                    return
                work = self._exclusive.popleft() if self._exclusive else None
                self._running_exclusive = work[0] if work else None
                inspection_id = self._waiting.popleft() if self._waiting and not work else None
            if work:
                _run_exclusive(*work)
            elif inspection_id:
                try:
                    self._run_job(inspection_id)
                except Exception as e:  # the journal itself fails, e.g. because the disk is full
                    if not self._stopping.is_set():  # else it was closed meanwhile, and the next start goes on
                        self._retry_later(inspection_id, outage(e) or e)
            if not (work or self._stopping.is_set()):
                self._idle()

    def _is_due(self) -> bool:
        """Is there a job to run now? Due retries jump the queue, but only the first few times: failing jobs cannot starve
        new ones."""
        while self._later and self._later[0][0] <= time.monotonic():
            inspection_id = heapq.heappop(self._later)[1]
            early = self._failures.get(inspection_id, 0) < _EARLY_RETRIES
            (self._waiting.appendleft if early else self._waiting.append)(inspection_id)
        return bool(self._waiting)

    def _retry_later(self, inspection_id: str, error: Exception) -> None:
        failures = self._failures[inspection_id] = self._failures.get(inspection_id, 0) + 1
        delay = BACKOFF.wait_s(failures)
        if self._outage != str(error):  # once, not with each try of each inspection
            log.warning("inspection %s and perhaps others wait: %s", inspection_id, error,
                        exc_info=None if isinstance(error, UnavailableError) else error)  # fmt: skip
            self._outage = str(error)
        self._report(inspection_id, "retry", f"{error}; retrying in {delay:g} s", "queued")
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + delay, inspection_id))

    def _idle(self) -> None:
        try:
            self._on_idle()
        except Exception:  # it runs again at the next occasion
            log.warning("the work between two inspections failed", exc_info=True)

    def _run_job(self, inspection_id: str) -> None:
        """Run it once. While something is unavailable it is retried for as long as it takes, and other jobs run."""
        started = time.monotonic()
        self._current = inspection_id
        try:
            with self._blame:
                alone = not self._beside
                job = self._jobs.begin(inspection_id, alone)
                if (
                    job is not None and job.crashes and alone
                ):  # a first crash makes it suspect, whatever else is at work
                    self._blamed = inspection_id
            if job is None:  # cancelled, perhaps by another process
                return self._report_end(inspection_id)
            self._report(inspection_id, "started", f"attempt {job.attempts}", "running")
            outcome = self._inspect(job)
        except Exception as e:
            if (lacking := outage(e)) is None:
                return self._fail(inspection_id, e)
            self._jobs.requeue(inspection_id)
            return self._retry_later(inspection_id, lacking)
        finally:
            self._current = self._blamed = None
        self._jobs.finish(inspection_id)
        self._failures.pop(inspection_id, None)
        self._outage = None
        self.finished["done"] += 1
        self.seconds_each += 0.2 * (time.monotonic() - started - self.seconds_each)
        return self._report(inspection_id, "done", outcome, "done")

    def _report_end(self, inspection_id: str) -> None:
        job = self._jobs.get(inspection_id)
        if job.error:
            self._report(inspection_id, "failed", str(job.error["message"]), "failed")

    def _fail(self, inspection_id: str, error: Exception) -> None:
        known = isinstance(error, RefDiffError)
        if not known:
            log.error("inspection %s failed", inspection_id, exc_info=error)
        message = str(error) if known else f"internal error ({type(error).__name__}); the log has the details"
        code = error.exit_code if isinstance(error, RefDiffError) else RefDiffError.exit_code
        self._jobs.finish(inspection_id, {"type": type(error).__name__, "message": message, "exit_code": code})
        self._failures.pop(inspection_id, None)
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
