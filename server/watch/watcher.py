"""Folder watch: photos that a camera writes to a folder are inspected in order, each exactly once.

One thread claims photos, writes lines and moves files, in the order of the photos; workers inspect. Only as many photos
are claimed as workers are free: the folder itself is the queue, so memory does not grow with a backlog.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from refdiff.agent.events import AgentEvent
from refdiff.agent.inspector import Inspector
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.request import Judge, prepare
from refdiff.agent.work.watch import Watch, Work
from refdiff.memory.artefacts import new_inspection_id
from refdiff.memory.journals.backoff import Backoff
from refdiff.memory.journals.watch import WatchedPhoto, WatchJournal
from refdiff.memory.rows.watched import FileIdentity
from refdiff.memory.timestamps import to_utc, utc_now
from refdiff.model.errors import ImageError, InputError, UnavailableError, UnknownRecordError
from refdiff.model.files import outage
from refdiff.model.wording import few
from refdiff.server.watch.folder import FOLDERS, TAKE_BACK_S, UNFINISHED, WatchedFolder
from refdiff.server.watch.jsonl import JsonLinesFile
from refdiff.server.watch.names import NamePattern
from refdiff.server.watch.webhook import Webhook

log = logging.getLogger(__name__)

POLL_S = 0.25
MAX_STARTS = 5  # a photo that crashes the process this often is refused
BACKOFF = Backoff(first_s=0.5, longest_s=8.0, factor=4.0)  # before retries when the disk or a service fails
MAX_TRIES = 4

# in the threads that an inspection is done in
_DOING: ContextVar[Work | None] = ContextVar("doing", default=None)


@dataclass(frozen=True)
class WatchOptions:
    """How photos are inspected. workers: parallel inspections. requested_by: the requester named in reports."""

    pattern: NamePattern
    scale_mm_per_px: float | None = None
    judge: Judge = "on-anomaly"
    workers: int = 2
    requested_by: str = "line"


@dataclass
class WatchState:
    """Progress for people: counts since the start, and photos waiting or in progress now.

    ended: end times of the last hundred photos, in s of the monotonic clock.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    quarantined: int = 0
    taken_back: int = 0  # of those, back from quarantine because they changed there
    left_alone: dict[str, list[str]] = field(
        default_factory=dict
    )  # kind -> names of what is there and is not inspected
    waiting: int = 0
    working: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: deque[float] = field(default_factory=lambda: deque(maxlen=100))

    @property
    def filed(self) -> int:
        return self.verdicts.total()

    @property
    def per_second(self) -> float | None:
        """Recent rate of finished photos per second; None before the second one."""
        spent = self.ended[-1] - self.ended[0] if self.ended else 0.0
        return (len(self.ended) - 1) / spent if spent > 0 else None


@dataclass(frozen=True)
class _Withdrawn:
    """The file vanished or changed before it was read. young: it may be complete later."""

    young: bool


def step(event: AgentEvent) -> None:
    """The inspector's listener: the inspection that this event belongs to moves on."""
    if (work := _DOING.get()) is not None:
        work.step()


class FolderWatcher:
    def __init__(
        self,
        folder: WatchedFolder,
        journal: WatchJournal,
        inspector: Inspector,
        options: WatchOptions,
        *,
        lines: JsonLinesFile | None = None,
        webhook: Webhook | None = None,
        note: Callable[[str], None] = log.warning,
        show: Callable[[WatchState], None] = lambda _: None,
        watch: Watch | None = None,
    ) -> None:
        """inspector: whose events come to `step`. note: called with what a person should know. show: called with the state
        whenever it changes. watch: of inspections and of looks at the folder; None: nobody notices what hangs."""
        self._folder, self._journal, self._inspector, self._options = folder, journal, inspector, options
        self._lines, self._webhook, self._note, self._show = lines, webhook, note, show
        self._stop = threading.Event()
        self._working: dict[Future[_Withdrawn | None], WatchedPhoto] = {}
        self._later: dict[FileIdentity, float] = {}
        self._mine: set[FileIdentity] = set()  # claimed files, and those not moved yet
        self._again: list[WatchedPhoto] = []  # claimed by a process that crashed
        self._alone = False  # one of those is at work
        self._pool: ThreadPoolExecutor
        self.state = WatchState()
        self._watch = watch or Watch()
        self._looks: Work

    def stop(self) -> None:
        """Stop after the photos in progress."""
        self._stop.set()

    def run(self, *, once: bool = False) -> WatchState:
        """Inspect until stopped, or (once) until the folder holds only refused photos.

        Raises UnavailableError when an outage of the disk or a service persists: nothing is lost, the next run resumes.
        """
        left = self._journal.unfinished()
        self._again = [p for p in left if p.state == "claimed"]
        self._mine = {p.identity for p in left}
        lately = to_utc(datetime.now(UTC) - timedelta(seconds=TAKE_BACK_S))
        for photo in self._journal.refused_since(lately):
            self._folder.remember_quarantined(photo.identity.name, photo.identity)
        ready: list[FileIdentity] = []
        listed, every = 0.0, POLL_S
        with (
            ThreadPoolExecutor(self._options.workers, thread_name_prefix="inspection") as self._pool,
            self._watch.over(f"the watch of {self._folder.root}") as self._looks,
        ):
            try:
                self._folder.step = self._looks.step
                self._follow_up()
                while True:
                    self._looks.step()
                    if not ready and time.monotonic() - listed >= every:
                        began = time.monotonic()
                        ready = self._ready()
                        listed = time.monotonic()
                        every = max(POLL_S, 10 * (listed - began))  # a huge folder is listed less often
                    if not self._stop.is_set():
                        self._begin(ready)
                    self._tell(len(ready) + len(self._again))
                    if not self._working and (self._stop.is_set() or (once and not ready and self._is_empty())):
                        return self.state
                    self._collect()
            except BaseException:
                self._stop.set()  # ends the workers' waits; the pool waits for the workers
                raise

    # -- the thread that keeps the order

    def _ready(self) -> list[FileIdentity]:
        now = time.monotonic()
        self._later = {i: t for i, t in self._later.items() if self._folder.is_there(i)}
        waits = {i for i, t in self._later.items() if t > now}
        for name in self._folder.take_back():
            self.state.taken_back += 1
            self._note(
                f"{name} changed in quarantine and was taken back: it had been refused while it was being written"
            )
        ready = self._folder.complete(self._mine | waits)
        for kind, names in self._folder.left_alone.items():
            if kind not in (*self.state.left_alone, UNFINISHED):
                self._note(_left_alone(kind, names))
        self.state.left_alone = self._folder.left_alone
        return ready

    def _is_empty(self) -> bool:
        return not (self._again or self._later or self._ready() or self._folder.unsettled)

    def _begin(self, ready: list[FileIdentity]) -> None:
        """Claim and start photos while workers are free; never two photos of one part at a time.

        Photos that were at work in a crash come first, one by one and alone: the next crash shows which of them it was.
        """
        while len(self._working) < (1 if self._alone else self._options.workers):
            self._looks.step()  # a folder may be full of photos to refuse
            busy = {(p.part_id, p.product) for p in self._working.values()}
            if self._again:
                if self._working:
                    return
                photo = self._again.pop(0)
                starts = self._journal.start_again(photo.seq)
                if starts > MAX_STARTS:
                    self._refuse(
                        photo,
                        f"its inspection was interrupted {starts - 1} times; see REFDIFF_HOME/logs. "
                        "To try it again, move it back to the watched folder",
                    )
                    continue
            elif ready:
                identity = ready[0]
                try:
                    part_id, product = self._options.pattern.read(identity.name)
                except InputError as e:
                    ready.pop(0)
                    self._mine.add(identity)
                    self._refuse(self._journal.claim(identity, new_inspection_id()), str(e))
                    continue
                if (part_id, product) in busy:
                    return
                ready.pop(0)
                if not self._folder.is_there(identity):
                    continue
                photo = self._journal.claim(identity, new_inspection_id(), part_id, product)
                starts = 1
                self._mine.add(identity)
            else:
                return
            self._alone = starts > 1
            self._working[self._pool.submit(self._work, photo, starts > 1)] = photo

    def _collect(self) -> None:
        """Wait for workers (or a while), then process their results."""
        if not self._working:
            self._stop.wait(POLL_S / 2)
            return
        done, _ = wait(self._working, timeout=POLL_S, return_when=FIRST_COMPLETED)
        for future in done:
            photo = self._working.pop(future)
            withdrawn = future.result()
            if withdrawn is not None:
                self._journal.withdraw(photo.seq)
                self._mine.discard(photo.identity)
                if withdrawn.young:
                    self._later[photo.identity] = time.monotonic() + POLL_S
        if done:
            self._follow_up()

    def _refuse(self, photo: WatchedPhoto, reason: str) -> None:
        self._end_refused(photo, reason)
        self._follow_up()

    def _follow_up(self) -> None:
        """Write lines and move files of finished photos, up to the first unfinished one, to keep the order."""
        ended = []
        for photo in self._journal.unfinished():
            if photo.event is None:
                break
            ended.append(photo)
        if not ended:
            return
        if self._lines:
            self._lines.write(p.event for p in ended if p.event and not p.written)
        self._journal.done([p.seq for p in ended if not p.written], "written")
        for photo in ended:
            self._looks.step()
            assert photo.event is not None
            if photo.state == "refused":
                self._folder.quarantine(photo.identity, str(photo.event["reason"]))
                self.state.quarantined += 1
                self._note(f"{photo.event['file']} was moved to quarantine: {photo.event['reason']}")
            else:
                self._folder.finish(photo.identity)
                self.state.verdicts[photo.event["verdict"]] += 1
            self._mine.discard(photo.identity)
        self._journal.done([p.seq for p in ended], "moved")
        self.state.ended.extend([time.monotonic()] * len(ended))
        if self._webhook:
            self._webhook.wake()

    def _tell(self, waiting: int) -> None:
        self.state.waiting, self.state.working = waiting, len(self._working)
        self._show(self.state)

    # -- workers

    def _work(self, photo: WatchedPhoto, again: bool) -> _Withdrawn | None:
        """Inspect a photo and end it in the journal, or return that it must be withdrawn. Raises UnavailableError."""
        with self._watch.over(f"the inspection of {photo.identity.name}") as work:
            _DOING.set(work)
            return self._until_done(photo, again)

    def _until_done(self, photo: WatchedPhoto, again: bool) -> _Withdrawn | None:
        failed = 0
        while True:
            try:
                return self._inspect(photo, again)
            except UnavailableError as e:
                failed += 1
                if failed == MAX_TRIES or self._stop.is_set():
                    raise
                wait_s = BACKOFF.wait_s(failed)
                self._note(f"{photo.identity.name}: {e}; retrying in {wait_s:g} s")
                self._stop.wait(wait_s)
                again = True

    def _inspect(self, photo: WatchedPhoto, again: bool) -> _Withdrawn | None:
        began = time.perf_counter()
        try:
            report = self._resumed(photo) if again else None
            if report is None:
                if not self._folder.is_there(photo.identity):
                    return _Withdrawn(young=False)
                try:
                    request = prepare(
                        self._inspector.workspace,
                        photo.part_id,
                        product=photo.product,
                        photo=self._folder.path(photo.identity),
                        scale_mm_per_px=self._options.scale_mm_per_px,
                        judge=self._options.judge,
                        requested_by=self._options.requested_by,
                        inspection_id=photo.inspection_id,
                    )
                except ImageError:
                    if not self._folder.is_there(photo.identity) or self._folder.may_still_grow(photo.identity):
                        return _Withdrawn(young=True)
                    raise
                if not self._folder.is_there(photo.identity):  # overwritten while it was read: another photo
                    return _Withdrawn(young=False)
                report = self._inspector.run(request)
        except UnavailableError:
            raise
        except InputError as e:
            self._end_refused(photo, str(e))
            return None
        except Exception as e:
            if (lacking := outage(e)) is not None:
                raise lacking from e
            log.exception("inspection of %s failed", photo.identity.name)
            self._end_refused(photo, f"internal error ({type(e).__name__}: {e})")
            return None
        self._end(photo, "filed", _filed_event(photo, report, time.perf_counter() - began))
        return None

    def _resumed(self, photo: WatchedPhoto) -> DefectReport | None:
        """Resume an interrupted inspection; None if it had not started."""
        with contextlib.suppress(UnknownRecordError):
            return self._inspector.resume(photo.inspection_id)
        return None

    def _end_refused(self, photo: WatchedPhoto, reason: str) -> None:
        self._end(photo, "refused", _common(photo, "quarantined") | {"reason": reason})

    def _end(self, photo: WatchedPhoto, outcome: Literal["filed", "refused"], event: dict[str, Any]) -> None:
        self._journal.end(photo.seq, outcome, event, send=self._webhook is not None)


def _left_alone(kind: str, names: list[str]) -> str:
    some = few(names)
    if kind == FOLDERS:
        return f"{len(names)} sub-folders are not watched ({some}); to inspect the photos in them too: --recursive"
    if kind.startswith(".") or kind == "without suffix":
        return f"left alone, because it is no image that can be read: {some}; further files {kind} are only counted"
    return f"left alone: {kind} ({some})"


def _common(photo: WatchedPhoto, event: str) -> dict[str, Any]:
    return {
        "event": event,
        "seq": photo.seq,
        "inspection_id": photo.inspection_id,
        "file": photo.identity.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
        "part_id": photo.part_id or None,
        "product": photo.product or None,
        "taken_at": photo.claimed_at,
        "ended_at": utc_now(),
    }


def _filed_event(photo: WatchedPhoto, report: DefectReport, seconds: float) -> dict[str, Any]:
    """The event of a filed report for JSON lines and webhook: enough to sort the part, with the paths of the full report."""
    found = [
        {"id": f.id, "type": f.type, "severity": str(f.severity), "within_limits": f.within_limits,
         "box": [f.location.x0, f.location.y0, f.location.x1, f.location.y1], "length_mm": f.length_mm}
        for f in report.findings
    ]  # fmt: skip
    return _common(photo, "filed") | {
        "verdict": str(report.verdict),
        "verdict_basis": str(report.verdict_basis),
        "verdict_reason": report.verdict_reason,
        "image_score": report.image_score,
        "p_value": report.p_value,
        "findings": found,
        "judge": report.judge.via,
        "read": report.llm_reading is not None,
        "seconds": round(seconds, 3),
    }
