"""The inspection service: everything that a way in can ask of the product, in plain Python and without any transport.

HTTP, Slack, Teams and MCP are thin layers over it. One process owns a home folder: it holds the golden bank, inspects one
part after another, and guarantees that every accepted inspection is filed, across crashes and restarts.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from refdiff.agent.filing import ARTEFACTS, inspection_folder
from refdiff.agent.inspector import HOW_TO_ASK, Inspector
from refdiff.agent.language.intent import part_id_in, product_in
from refdiff.agent.people.rates import Rates, rates
from refdiff.agent.queue import MAX_CRASHES, InspectionQueue, Progress
from refdiff.agent.report import pictures
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.request import InspectionRequest, Judge, new_inspection_id
from refdiff.agent.settings import AgentSettings
from refdiff.memory.golden_bank.golden import IN_USE, Golden, GoldenStatus
from refdiff.memory.journals.jobs import Job, JobState, JobStore
from refdiff.memory.locks import hold_lock
from refdiff.memory.records.adoptions import Adoption
from refdiff.memory.records.blind_checks import BlindCheck
from refdiff.memory.records.captures import Capture, normalise_part_id
from refdiff.memory.records.dispositions import Decision, Disposition, Judgement
from refdiff.memory.records.products import check_product_name
from refdiff.memory.settings import MemorySettings
from refdiff.model.errors import (
    BusyError,
    InputError,
    StorageError,
    UnavailableError,
    UnknownProductError,
    UnknownRecordError,
)
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.captures import record_capture
from refdiff.tools.golden_samples.enroll import EnrollResult, enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate, calibration_key, requested_alpha, summary
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

T = TypeVar("T")

__all__ = ["Inspection", "InspectionService", "Job", "Progress", "ServiceStatus", "Upload"]

MAX_TEXT = 20_000
_FULL_PX = 4096  # long side of a shown picture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspection:
    """One inspection as it stands: report is None until it is filed, disposition until a person has decided.

    ahead: inspections that come before it. error: {"type", "message", "exit_code"} of a failed one.
    """

    inspection_id: str
    state: JobState
    part_id: str
    product: str | None
    requested_by: str
    created_at: str
    ahead: int = 0
    error: dict[str, Any] | None = None
    report: DefectReport | None = None
    disposition: Disposition | None = None


@dataclass(frozen=True)
class ServiceStatus:
    """model: who drives, None for the script with the reason in no_model. seconds_each: of an inspection, lately."""

    version: str
    waiting: int
    running: str | None
    queue_limit: int
    seconds_each: float
    model: str | None
    no_model: str
    uptime_s: float
    healthy: bool


class InspectionService(AbstractContextManager["InspectionService"]):
    """Use as a context manager. Methods may be called from any thread; those that need the model wait their turn.

    All raise StorageError where the disk fails, UnavailableError where a service does.
    """

    def __init__(self, workspace: Workspace, settings: AgentSettings) -> None:
        """Use `open`."""
        self.workspace, self.settings = workspace, settings
        self.stores = workspace.stores
        self._stack = ExitStack()
        self._enrolling = threading.Lock()
        self._began = time.monotonic()
        try:
            home = self.stores.settings.home
            busy = UnavailableError(
                f"another refdiff server is using {home}; use that one, stop it, or set REFDIFF_HOME to another folder"
            )
            self._stack.enter_context(hold_lock(home / "serve.lock", busy))
            _ = workspace.bank  # opened now, so a bank held by another process is reported immediately
            self._jobs = self._stack.enter_context(JobStore(self.stores.settings.home))
            self._queue = InspectionQueue(self._jobs, self._inspect, self._learn)
            self._inspector = self._stack.enter_context(Inspector(workspace, settings, on_event=self._queue.on_event))
            self._recover()
        except BaseException:
            self._stack.close()
            raise
        self._queue.start()

    @classmethod
    def open(
        cls,
        memory: MemorySettings | None = None,
        model: ModelSettings | None = None,
        tools: ToolsSettings | None = None,
        agent: AgentSettings | None = None,
    ) -> Self:
        """Take over the home folder and resume what a crashed process left.

        Raises UnavailableError where another server owns the home, BankBusyError where a command has the bank.
        """
        workspace = Workspace.open(memory, model, tools)
        try:
            return cls(workspace, agent or AgentSettings())
        except BaseException:
            workspace.close()
            raise

    def drain(self) -> None:
        """Stop accepting work and release waiting callers; for a server that still has open requests to answer.

        Accepted inspections are kept; questions raise UnavailableError. Returns quickly.
        """
        self._queue.drain()

    @property
    def stopping(self) -> bool:
        return self._queue.stopping

    def close(self) -> None:
        self._queue.stop()
        self._stack.close()
        self.workspace.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def status(self) -> ServiceStatus:
        return ServiceStatus(
            version=version("refdiff"),
            waiting=self._jobs.count_open(),
            running=self._queue.current,
            queue_limit=self.settings.queue_limit,
            seconds_each=round(self._queue.seconds_each, 2),
            model=self._inspector.model,
            no_model=self._inspector.no_model,
            uptime_s=round(time.monotonic() - self._began, 1),
            healthy=self._queue.alive,
        )

    @property
    def finished(self) -> dict[str, int]:
        """{"done": n, "failed": n} since the start."""
        return dict(self._queue.finished)

    # -- photos

    def capture(
        self, part_id: str, photo: Upload, product: str | None = None, scale_mm_per_px: float | None = None
    ) -> Capture:
        """Keep the photo of a part as its newest. product: may be left out for a part that was photographed before.

        Raises ImageError, InputError.
        """
        product = product or self.product_of(part_id)
        settings = self.workspace.model_settings
        return record_capture(self.stores, part_id, product, photo, scale_mm_per_px=scale_mm_per_px, settings=settings)

    def product_of(self, part_id: str) -> str:
        """The product of a part that was photographed before. Raises InputError where that does not say it."""
        products = sorted({c.product for c in self.stores.captures.history(part_id)})
        if len(products) == 1:
            return products[0]
        known = ", ".join(p.name for p in self.stores.products.list()) or "none yet"
        why = f"is used in {', '.join(products)}" if products else f"is new (products: {known})"
        raise InputError(f"part {normalise_part_id(part_id)} {why}: say which product")

    def product_named(self, part_id: str, texts: Iterable[str], *, photo: bool) -> str | None:
        """The product of a part as the first text that names one says; for the photo of a new part, the only product that
        has golden samples. None: the part's captures tell it, or nothing does.
        """
        known = self.products()
        named = next((p for t in texts if (p := product_in(t, known))), None)
        if named or not photo or self.stores.captures.history(part_id):
            return named
        return self.only_product()

    # -- inspections

    def submit(
        self,
        text: str = "",
        *,
        by: str,
        part_id: str | None = None,
        product: str | None = None,
        photo: Upload | None = None,
        scale_mm_per_px: float | None = None,
        capture_id: str | None = None,
        origin: str | None = None,
        judge: Judge = "always",
    ) -> Job:
        """Accept an inspection; on return it is on the disk and will be filed exactly once, whatever happens.

        text: the request in the person's words; the part may be named there or by part_id. photo: of the part, kept first;
        else capture_id, else the newest. origin: the caller's own key for this request (an event id, say): the same key
        again gives the same job and inspects nothing twice. judge: what the language model does (InspectionRequest).
        Raises UnknownPartError, UnknownProductError, ImageError, InputError; BusyError where too many wait.
        """
        if origin is not None and (known := self._jobs.by_origin(origin)) is not None:
            return known
        self._check_room()
        if len(text) > MAX_TEXT:
            raise InputError(f"the request has {len(text):,} characters; {MAX_TEXT:,} is the limit")
        named = part_id or part_id_in(text)
        if not named:
            raise InputError(HOW_TO_ASK)
        named = normalise_part_id(named)
        if photo is not None:
            if capture_id is not None:
                raise InputError("give either a photo or a capture_id, not both")
            taken = self.capture(named, photo, product, scale_mm_per_px)
        elif scale_mm_per_px is not None:
            raise InputError("scale_mm_per_px needs a photo; send the photo too")
        elif capture_id is not None:
            taken = self.stores.captures.get(capture_id)
            if taken.part_id != named or product not in (None, taken.product):
                raise InputError(f"capture {capture_id} is of part {taken.part_id}, product {taken.product}")
        else:
            taken = self.stores.captures.latest(named, product)
        if not self.workspace.bank.count(taken.product, IN_USE):
            raise UnknownProductError(
                f"product {taken.product!r} (part {named}) has no golden samples; enrol some first"
            )
        request = InspectionRequest(
            text=text.strip() or f"inspect part #{named} against the nearest good sample",
            part_id=named,
            product=taken.product,
            requested_by=by,
            inspection_id=new_inspection_id(),
            capture_id=taken.capture_id,
            judge=judge,
        )
        try:
            job, new = self._jobs.add(request.inspection_id, asdict(request), origin, self.settings.queue_limit)
        except BusyError as e:
            e.retry_after_s = self._queue.seconds_each
            raise
        if new:
            self._queue.enqueue(job)
        return job

    def begun_by(self, origin: str) -> Job | None:
        """The job that a request of that origin began."""
        return self._jobs.by_origin(origin)

    def forget_origin(self, origin: str) -> None:
        """Let the next request of that origin be a new one."""
        self._jobs.forget_origin(origin)

    def inspection(self, inspection_id: str) -> Inspection:
        """How an inspection stands, also one of the command line. Raises UnknownRecordError."""
        disposition = self.stores.dispositions.get(inspection_id)
        try:
            job: Job | None = self._jobs.get(inspection_id)
        except UnknownRecordError:
            job = None
        # one that failed may have been filed since, by `refdiff inspections resume`
        if job is None or job.state == "done" or (job.state == "failed" and self._filed(inspection_id)):
            report = self.report(inspection_id)
            return Inspection(
                inspection_id, "done", report.part_id, report.product, report.requested_by,
                report.created_at.isoformat(), report=report, disposition=disposition,
            )  # fmt: skip
        asked = job.request
        return Inspection(
            inspection_id, job.state, asked["part_id"], asked["product"], asked["requested_by"], job.created_at,
            ahead=self._jobs.ahead_of(job) if job.open else 0, error=job.error,
        )  # fmt: skip

    def unfinished(self, failed: bool = False) -> list[Job]:
        """Jobs that run or wait, in order; or those that failed."""
        if failed:
            return [j for j in self._jobs.list(("failed",)) if not self._filed(j.inspection_id)]
        return self._jobs.list()

    def report(self, inspection_id: str) -> DefectReport:
        """A filed report. Raises UnknownRecordError."""
        return DefectReport.model_validate(self.stores.inspections.get(inspection_id).report)

    def wait(self, inspection_id: str, timeout_s: float | None = None) -> Inspection:
        """The inspection once it is filed or has failed, or as it stands after timeout_s. Raises UnknownRecordError."""
        for _ in self.follow(inspection_id, timeout_s):
            pass
        return self.inspection(inspection_id)

    def follow(self, inspection_id: str, timeout_s: float | None = None) -> Iterator[Progress]:
        """What happens to an inspection, from its beginning until it is filed or has failed, or timeout_s is over."""
        heard: queue.SimpleQueue[Progress] = queue.SimpleQueue()
        unsubscribe = self.subscribe(inspection_id, heard.put)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                try:
                    progress = heard.get(timeout=left)
                except queue.Empty:
                    return
                yield progress
                if progress.last:
                    return
        finally:
            unsubscribe()

    def subscribe(self, inspection_id: str, listener: Callable[[Progress], None]) -> Callable[[], None]:
        """Have listener called with all that happened so far, at once, and with all that will, from the inspecting thread.

        It must be quick and not call the service. The last call has `progress.last`. Returns the function that ends it.
        Raises UnknownRecordError.
        """
        heard_end = False

        def hear(progress: Progress) -> None:
            nonlocal heard_end
            heard_end |= progress.last
            listener(progress)

        self.inspection(inspection_id)
        unsubscribe = self._queue.subscribe(inspection_id, hear)
        now = self.inspection(inspection_id)
        if now.state in ("done", "failed") and not heard_end:  # before the last start, or in another process
            said = now.report.verdict.value if now.report else (now.error or {}).get("message", "")
            unsubscribe()
            hear(Progress(inspection_id, 1, now.state, said, now.state))
        return unsubscribe

    def artefact(self, inspection_id: str, name: str) -> Path:
        """The file of a filed inspection: overlay, heatmap, side_by_side, html, markdown or report.

        Raises UnknownRecordError (also for any other name), StorageError where the file is gone.
        """
        self.stores.inspections.get(inspection_id)
        if name not in ARTEFACTS:
            raise UnknownRecordError(f"unknown artefact {name!r}; choose from {', '.join(ARTEFACTS)}")
        path = inspection_folder(self.stores.settings.home, inspection_id) / ARTEFACTS[name]
        if not path.is_file():
            raise StorageError(f"{path.name} of inspection {inspection_id} is missing; restore it from a backup")
        return path

    def picture(self, inspection_id: str, which: Literal["query", "reference"], max_px: int = _FULL_PX) -> bytes:
        """The photo or its nearest golden as it was taken, as a PNG or JPEG that anyone can show."""
        report = self.report(inspection_id)
        sha256 = report.query_sha256 if which == "query" else report.reference.sha256
        return self.shown(sha256, report.product, max_px)

    def shown(self, sha256: str, product: str, max_px: int = _FULL_PX) -> bytes:
        """A stored picture as a PNG or JPEG that anyone can show, with the product's intensity window."""
        return pictures.page_image(self.workspace.image(sha256, product), max_px)

    # -- people

    def dispose(
        self,
        inspection_id: str,
        decision: Decision,
        by: str,
        reason: str,
        judged: Judgement | None = None,
        as_reference: bool = False,
    ) -> Disposition:
        """A person's accept or override of a filed inspection. The first wins.

        judged: what the part is, where a REVIEW is decided. as_reference: the photo of this good part may become a golden
        sample; `learned` says what came of it.
        Raises UnknownRecordError, InputError, DuplicateError (saying who decided and when; `disposition` has it).
        """
        with self._enrolling if as_reference else nullcontext():
            return self._inspector.dispose(inspection_id, decision, by, reason, judged, as_reference)

    @property
    def blind_share(self) -> float:
        """Share of all inspections that is drawn for a blind check."""
        return self._inspector.settings.blind_share

    def judge_blind(
        self, inspection_id: str, judged: Judgement, by: str, note: str = "", as_reference: bool = False
    ) -> BlindCheck:
        """Record the judgement of a person who did not see the verdict; the first answer stands.

        Raises UnknownRecordError (not drawn), InputError (not blind to it), DuplicateError.
        """
        with self._enrolling if as_reference else nullcontext():
            return self._inspector.judge_blind(inspection_id, judged, by, note, as_reference)

    def learned(self, inspection_id: str) -> Adoption | None:
        """The outcome of a person's approval of the photo as a golden sample; None without one."""
        return self.stores.adoptions.get(inspection_id)

    def rates(self, product: str | None = None, since: str | None = None) -> Rates:
        """How often system and people disagree, from blind checks. Raises InputError where `since` is no time."""
        return rates(self.stores, product, since)

    def disposition(self, inspection_id: str) -> Disposition | None:
        return self.stores.dispositions.get(inspection_id)

    def ask(self, inspection_id: str, question: str) -> str:
        """A question about a filed report, answered with what is true of it. Raises UnknownRecordError."""
        self.stores.inspections.get(inspection_id)
        _check_question(question)
        return self._queue.ask(lambda: self._inspector.answer_about(inspection_id, question))

    def chat(self, text: str) -> str:
        """An answer to a text that names no part and is about no report."""
        _check_question(text)
        return self._queue.ask(lambda: self._inspector.answer(text))

    def between(self, work: Callable[[], T]) -> T:
        """Run short work that needs the network, between two inspections. Raises what it raises, BusyError."""
        return self._queue.ask(work)

    # -- golden samples and products

    def enroll(
        self,
        product: str,
        photos: Sequence[Upload],
        *,
        by: str,
        scale_mm_per_px: float | None = None,
        part_group: str | None = None,
        station: str | None = None,
    ) -> EnrollResult:
        """Photos of good parts into the bank; what cannot be is refused in the result with the reason."""
        with self._enrolling:
            return enroll(
                self.workspace, product, photos, scale_mm_per_px=scale_mm_per_px, part_group=part_group,
                station=station, enrolled_by=by,
            )  # fmt: skip

    def goldens(self, product: str | None = None, status: GoldenStatus | None = None) -> list[Golden]:
        """Oldest first."""
        product = None if product is None else check_product_name(product)
        return self.workspace.bank.list(product, None if status is None else (status,))

    def golden(self, golden_id: str) -> Golden:
        """Raises UnknownRecordError."""
        return self.workspace.bank.get(golden_id)

    def set_golden_status(self, golden_id: str, status: GoldenStatus, by: str, note: str = "") -> Golden:
        """Flag, retire or reactivate a golden. Raises UnknownRecordError."""
        return self.workspace.bank.set_status(golden_id, status, note.strip() or f"{status} by {by}")

    def products(self) -> list[str]:
        return sorted({p.name for p in self.stores.products.list()} | set(self.workspace.bank.products()))

    def only_product(self) -> str | None:
        """The product that has golden samples, where it is one alone."""
        able = [p for p in self.products() if self.workspace.bank.count(p, IN_USE)]
        return able[0] if len(able) == 1 else None

    def product(self, name: str) -> dict[str, Any]:
        """A product with its specification, number of goldens by status, and calibration. Raises UnknownProductError."""
        found = self.stores.products.get(name)
        if found is None:
            raise UnknownProductError(f"no product {name!r}; products: {', '.join(self.products()) or 'none yet'}")
        statuses = [g.status for g in self.workspace.bank.list(found.name)]
        latest = self.stores.calibrations.latest(found.name)
        calibration = None
        if latest is not None:
            stale = latest.key != calibration_key(self.workspace, found.name, self.workspace.settings.references)
            calibration = summary(latest, requested_alpha(self.workspace, latest)) | {"stale": stale}
        counts = {s: statuses.count(s) for s in ("active", "flagged", "retired")}
        return asdict(found) | {"goldens": counts, "calibration": calibration}

    def set_spec(self, name: str, spec: dict[str, Any]) -> dict[str, Any]:
        """Set what is acceptable (as `refdiff product set`). Raises SpecError, InputError."""
        parsed = parse_spec(spec)
        self.stores.products.set_spec(name, parsed.model_dump(mode="json"), parsed.scale_mm_per_px)
        return self.product(name)

    def calibrate(self, name: str, alpha: float | None = None) -> dict[str, Any]:
        """Measure how good samples score. Raises UnknownProductError, InputError."""
        name = check_product_name(name)
        if not self.workspace.bank.count(name):
            raise UnknownProductError(f"product {name!r} has no golden samples; enrol some first")
        with self._enrolling:
            made = calibrate(self.workspace, name, None, None, alpha)
        return summary(made, requested_alpha(self.workspace, made))

    # -- inside

    def _recover(self) -> None:
        """Recover jobs interrupted by a crash, and unfinished CLI inspections."""
        for inspection_id in self._inspector.pending():
            request = self._inspector.request_of(inspection_id)
            if request is not None:
                self._jobs.adopt(inspection_id, asdict(request))
        self._jobs.count_deaths()
        ahead = 0
        for job in self._jobs.list(limit=-1):
            if job.deaths >= MAX_CRASHES and not self._filed(job.inspection_id):
                message = f"given up: the process crashed {job.deaths} times while running it; see the log"
                self._jobs.finish(job.inspection_id, {"type": "RefDiffError", "message": message, "exit_code": 70})
                continue
            log.info("resuming inspection %s, which was accepted before the restart", job.inspection_id)
            self._queue.enqueue(job, ahead)
            ahead += 1

    def _inspect(self, job: Job) -> str:
        """Run by the queue, possibly again after a crash: a filed inspection is not repeated."""
        if not self._filed(job.inspection_id):
            return self._inspector.run(InspectionRequest(**job.request)).verdict.value
        return self.report(job.inspection_id).verdict.value

    def _learn(self) -> None:
        """Enrol photos that were approved while this process held the bank, for example on the command line."""
        if not self.stores.adoptions.consented() or not self._enrolling.acquire(blocking=False):
            return  # enrolling or calibrating may take minutes; inspections do not wait for it
        try:
            self._inspector.learn()
        finally:
            self._enrolling.release()

    def _filed(self, inspection_id: str) -> bool:
        try:
            self.stores.inspections.get(inspection_id)
        except UnknownRecordError:
            return False
        return True

    def _check_room(self) -> None:
        """Checked before the photo is stored."""
        waiting = self._jobs.count_open()
        if waiting >= self.settings.queue_limit:
            raise BusyError(
                f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)",
                self._queue.seconds_each,
            )


def _check_question(text: str) -> None:
    if not text.strip():
        raise InputError("the question is empty")
    if len(text) > MAX_TEXT:
        raise InputError(f"the question has {len(text):,} characters; {MAX_TEXT:,} is the limit")
