"""Single-threaded job queue: runs inspections in order and answers short questions in between.

The language model is used by this thread alone. The network is not: enrolling and calibrating on request run beside it,
which is safe, because its weights are only read and the caches of features are locked.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, TypeVar

from refdiff.agent.events import AgentEvent
from refdiff.memory.journals.jobs import Job, JobState, JobStore
from refdiff.model.errors import BusyError, RefDiffError, UnavailableError

T = TypeVar("T")
Listener = Callable[["Progress"], None]

MAX_CRASHES = 4  # of the process while it ran one job; the job may be the cause
RETRY_S = (
    1.0,
    5.0,
    20.0,
    60.0,
)  # waits before retrying what is unavailable; the last one repeats for as long as it takes
_MAX_QUESTIONS = 16  # each holds a thread of its caller
_HISTORIES = 512  # inspections whose progress is kept for late listeners
_HISTORY = 256  # progress of each, which grows while something is unavailable
_STOP_WAIT_S = 8.0
_STOPPING = "the server is stopping; ask again after the restart"
_IDLE_S = 60.0  # between two looks for what other processes left to do

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What happens to an inspection. number: counts from 1. done/total: of long work, 0 if not counted.

    kind: queued, started, calibrating, llm, tool, verify, fallback, filed, retry, done or failed. The last one of an
    inspection has the state done or failed.
    """

    inspection_id: str
    number: int
    kind: str
    message: str
    state: JobState
    done: int = 0
    total: int = 0

    @property
    def last(self) -> bool:
        return self.state in ("done", "failed")


class InspectionQueue:
    """inspect: runs a job and files it; it may be called again for a job that was cut off.

    Listeners are called in the inspecting thread, so they must be quick.
    """

    def __init__(
        self, jobs: JobStore, inspect: Callable[[Job], str], between: Callable[[], None] = lambda: None
    ) -> None:
        """inspect: returns what to tell at the end, e.g. the verdict. between: short work at the start, after each
        inspection and once a minute while there is none."""
        self._jobs, self._inspect, self._between = jobs, inspect, between
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._later: list[
            tuple[float, str]
        ] = []  # a heap of jobs that wait for something, by when they are tried again
        self._failures: dict[str, int] = {}  # how often in a row those found it unavailable
        self._questions: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._asked: Future[Any] | None = None  # of the question that is being answered
        self._histories: OrderedDict[str, list[Progress]] = OrderedDict()
        self._listeners: dict[str, list[Listener]] = {}
        self._stopping = threading.Event()
        self._current: str | None = None
        self.seconds_each = 5.0  # moving average
        self.finished = {"done": 0, "failed": 0}
        # a daemon: a stopping process does not wait for an inspection, which resumes after the restart
        self._thread = threading.Thread(target=self._run, name="inspections", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Stop starting work, refuse waiting questions, and soon the running one too. Returns quickly."""
        with self._changed:
            self._stopping.set()
            self._changed.notify_all()
            for future, _ in self._questions:
                _refuse(future)
            self._questions.clear()
            if self._asked is not None:  # its caller delays the shutdown
                timer = threading.Timer(_STOP_WAIT_S, _refuse, (self._asked,))
                timer.daemon = True
                timer.start()

    def stop(self) -> None:
        """Stop starting work and wait briefly for the running inspection; the journal keeps the rest."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)
        if (current := self._current) is not None:  # resumes after the restart, and does not count as a crash
            try:
                self._jobs.requeue(current)
            except UnavailableError:
                log.exception("inspection %s resumes after the restart", current)

    @property
    def current(self) -> str | None:
        """The inspection that is running."""
        return self._current

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # -- jobs

    def enqueue(self, job: Job, ahead: int | None = None) -> None:
        """A job that the journal holds. ahead: how many come before it, where the caller knows."""
        ahead = self._jobs.ahead_of(job) if ahead is None else ahead
        self._tell(job.inspection_id, "queued", f"inspections ahead of it: {ahead}", "queued")
        with self._changed:
            self._waiting.append(job.inspection_id)
            self._changed.notify_all()

    def ask(self, question: Callable[[], T]) -> T:
        """Run a short question between two inspections, and wait for its answer. Raises what it raises, or BusyError."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopping.is_set():
                raise UnavailableError(_STOPPING)
            if len(self._questions) >= _MAX_QUESTIONS:
                raise BusyError(f"{_MAX_QUESTIONS} questions are already waiting; ask again later", self.seconds_each)
            self._questions.append((future, question))
            self._changed.notify_all()
        return future.result()

    # -- progress

    def on_event(self, event: AgentEvent) -> None:
        """The agent's listener: what it says belongs to the inspection that is running."""
        if self._current is not None:
            self._tell(self._current, event.kind, event.message, "running", event.done, event.total)

    def subscribe(self, inspection_id: str, listener: Listener) -> Callable[[], None]:
        """Hear what happened to an inspection so far, and what will, up to its last; returns the function that ends it."""
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

    def _tell(
        self, inspection_id: str, kind: str, message: str, state: JobState, done: int = 0, total: int = 0
    ) -> None:
        with self._changed:
            history = self._histories.setdefault(inspection_id, [])
            number = history[-1].number + 1 if history else 1
            progress = Progress(inspection_id, number, kind, message, state, done, total)
            counted = history and total and history[-1].kind == kind and history[-1].total
            if not counted:  # of counted work the history keeps the beginning
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
        self._pause()
        while True:
            with self._changed:
                if not (self._due() or self._questions or self._stopping.is_set()):
                    later = self._later[0][0] - time.monotonic() if self._later else _IDLE_S
                    self._changed.wait(min(max(0.0, later), _IDLE_S))
                    self._due()
                if self._stopping.is_set():
                    return
                question = self._questions.popleft() if self._questions else None
                self._asked = question[0] if question else None
                inspection_id = self._waiting.popleft() if self._waiting and not question else None
            if question:
                _answer(*question)
            elif inspection_id:
                try:
                    self._work(inspection_id)
                except Exception as e:  # the journal itself failed, for example because the disk is full
                    log.exception("inspection %s waits until the journal is writable", inspection_id)
                    self._try_later(inspection_id, e)
            if not question:
                self._pause()

    def _due(self) -> bool:
        """Is there a job to run now?

        Due retries jump the queue, but only the first few times, so failing jobs cannot starve new ones.
        """
        while self._later and self._later[0][0] <= time.monotonic():
            inspection_id = heapq.heappop(self._later)[1]
            early = self._failures.get(inspection_id, 0) < len(RETRY_S)
            (self._waiting.appendleft if early else self._waiting.append)(inspection_id)
        return bool(self._waiting)

    def _try_later(self, inspection_id: str, error: Exception) -> None:
        failures = self._failures[inspection_id] = self._failures.get(inspection_id, 0) + 1
        delay = RETRY_S[min(failures, len(RETRY_S)) - 1]
        self._tell(inspection_id, "retry", f"{error}; retrying in {delay:g} s", "queued")
        with self._changed:
            heapq.heappush(self._later, (time.monotonic() + delay, inspection_id))

    def _pause(self) -> None:
        try:
            self._between()
        except Exception:  # retried at the next pause
            log.warning("the work between inspections failed", exc_info=True)

    def _work(self, inspection_id: str) -> None:
        """Run it once. If something is unavailable it is retried for as long as it takes, while other jobs run."""
        started = time.monotonic()
        job = self._jobs.begin(inspection_id)
        self._current = inspection_id
        try:
            self._tell(inspection_id, "started", f"attempt {job.attempts}", "running")
            said = self._inspect(job)
        except UnavailableError as e:
            log.warning("inspection %s: %s; retrying", inspection_id, e)
            self._jobs.requeue(inspection_id)
            return self._try_later(inspection_id, e)
        except Exception as e:
            return self._fail(inspection_id, e)
        finally:
            self._current = None
        self._jobs.finish(inspection_id)
        self._failures.pop(inspection_id, None)
        self.finished["done"] += 1
        self.seconds_each += 0.2 * (time.monotonic() - started - self.seconds_each)
        return self._tell(inspection_id, "done", said, "done")

    def _fail(self, inspection_id: str, error: Exception) -> None:
        known = isinstance(error, RefDiffError)
        if not known:
            log.error("inspection %s failed", inspection_id, exc_info=error)
        message = str(error) if known else f"internal error ({type(error).__name__}); the log has the details"
        code = error.exit_code if isinstance(error, RefDiffError) else RefDiffError.exit_code
        self._jobs.finish(inspection_id, {"type": type(error).__name__, "message": message, "exit_code": code})
        self._failures.pop(inspection_id, None)
        self.finished["failed"] += 1
        self._tell(inspection_id, "failed", message, "failed")


def _answer(future: Future[Any], question: Callable[[], Any]) -> None:
    try:
        result = question()
    except Exception as e:
        with contextlib.suppress(InvalidStateError):  # refused meanwhile
            future.set_exception(e)
        return
    with contextlib.suppress(InvalidStateError):
        future.set_result(result)


def _refuse(future: Future[Any]) -> None:
    with contextlib.suppress(InvalidStateError):  # answered meanwhile
        future.set_exception(UnavailableError(_STOPPING))
