"""The service of one home folder, without any transport: HTTP, Slack, Teams and MCP are thin layers over it.

One process does everything, or many share the home: servers that accept and answer, and workers that inspect. Each worker
inspects one part after the other, and every accepted inspection is filed, also after crashes and restarts.

Plain reads go to `service.stores` and `service.workspace`, decisions of people to `service.people`, what they call
findings to `service.names`.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from refdiff.agent import telemetry
from refdiff.agent.device.published import Published, export_and_publish
from refdiff.agent.filing import ReportFiles, filed_report
from refdiff.agent.inspector import HOW_TO_ASK, Inspector
from refdiff.agent.language.intent import (
    Intent,
    Said,
    Subject,
    the_part,
    the_product,
    understand,
)
from refdiff.agent.language.parts import parts_in
from refdiff.agent.people.names import DefectNames
from refdiff.agent.people.reviews import Reviews
from refdiff.agent.report import pictures
from refdiff.agent.report.schema import DefectReport
from refdiff.agent.report.values import Values
from refdiff.agent.request import InspectionRequest, Judge, capture_part, prepare
from refdiff.agent.settings import AgentSettings
from refdiff.agent.work.batches import BatchPart, fill
from refdiff.agent.work.queue import MAX_CRASHES, MAX_CRASHES_ALONE, InspectionQueue, Progress
from refdiff.agent.work.received import file_received
from refdiff.agent.work.watch import aside
from refdiff.memory.golden_bank.golden import IN_USE, Golden, GoldenStatus
from refdiff.memory.journals.batches import Batch
from refdiff.memory.journals.jobs import CRASHED, PERSON, Job, JobState
from refdiff.memory.locks import hold_lock, hold_shared_lock
from refdiff.memory.records.dispositions import Disposition
from refdiff.memory.rows.captures import Capture
from refdiff.memory.settings import MemorySettings
from refdiff.memory.upkeep.leftovers import remove_abandoned
from refdiff.model.difference.sessions import GraphFormat
from refdiff.model.errors import (
    BusyError,
    InputError,
    UnavailableError,
    UnknownRecordError,
)
from refdiff.model.images import F32
from refdiff.model.progress import Progress as WorkProgress
from refdiff.model.settings import ModelSettings
from refdiff.tools.golden_samples.adopt import adopt_all
from refdiff.tools.golden_samples.background_fit import Fittings
from refdiff.tools.golden_samples.enroll import EnrollResult, enroll
from refdiff.tools.golden_samples.photos import Upload
from refdiff.tools.inspection.calibration import calibrate
from refdiff.tools.inspection.component_names import name_component
from refdiff.tools.inspection.fineness import check_specification, product_fineness
from refdiff.tools.inspection.overview import calibration_overview, product_names, product_overview, shown_calibration
from refdiff.tools.inspection.specification import parse_spec
from refdiff.tools.settings import ToolsSettings
from refdiff.tools.workspace import Workspace

T = TypeVar("T")

__all__ = ["Inspection", "InspectionService", "Job", "Progress", "ServiceStatus", "Upload"]

MAX_TEXT = 20_000
_MAX_ENROLLING = 4  # enrolments and calibrations that run or wait; each holds a thread of its caller
Role = Literal["all", "server", "worker"]  # of a process: everything by itself, or its share
_FULL_PX = 4096  # long side of a shown picture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspection:
    """The current state of one inspection."""

    inspection_id: str
    state: JobState
    part_id: str
    product: str | None
    requested_by: str
    created_at: str
    ahead: int = 0  # inspections that come before it
    error: dict[str, Any] | None = None  # {"type", "message", "exit_code"} of a failed one
    report: DefectReport | None = None  # once it is filed
    disposition: Disposition | None = None  # once a person has decided


@dataclass(frozen=True)
class Readiness:
    """Whether accepted work gets done now."""

    problems: tuple[str, ...]  # in words; none: ready
    free_bytes: int  # on the disk of the home folder
    oldest_s: float  # age of the oldest inspection that waits or runs; 0 without one
    silent_s: float  # since the last step of what the inspecting thread does; 0 while it has nothing to do


@dataclass(frozen=True)
class ServiceStatus:
    version: str
    waiting: int
    running: str | None  # inspection id
    queue_limit: int
    seconds_each: float  # recent average of an inspection
    model: str | None  # the chat model that drives; None: the script
    no_model: str  # why the script drives
    uptime_s: float
    healthy: bool


class InspectionService(AbstractContextManager["InspectionService"]):
    """Use as a context manager. Methods may be called from any thread; those that need the model wait for their turn.

    All raise StorageError if the disk fails, and UnavailableError if a service does.
    """

    def __init__(self, workspace: Workspace, settings: AgentSettings, role: Role = "all") -> None:
        """Raises as `open`, which also opens the workspace."""
        self.role: Role = role
        self.workspace, self.settings = workspace, settings
        self.stores, self.files = workspace.stores, ReportFiles(workspace)
        self._stack = ExitStack()
        self._enrolling, self._enrol_places = threading.Lock(), threading.BoundedSemaphore(_MAX_ENROLLING)
        self._began = time.monotonic()
        try:
            home = self.stores.settings.home
            if role == "all":
                busy = UnavailableError(
                    f"another refdiff server is using {home}; use that one, stop it, or set REFDIFF_HOME to another "
                    "folder. To share the work: refdiff serve --no-inspections, and refdiff worker"
                )
                self._stack.enter_context(hold_lock(home / "serve.lock", busy))
            else:
                busy = UnavailableError(
                    f"a refdiff server that inspects by itself is using {home}; start it with --no-inspections, "
                    "so that workers can share the work"
                )
                self._stack.enter_context(hold_shared_lock(home / "serve.lock", busy))
            _ = workspace.bank  # now: if another process holds it, this fails at once
            shared = UnavailableError(
                "another refdiff server is using the database of REFDIFF_DATABASE_URL; stop that one"
            )
            if self.stores.db.path is None:  # else the lock of the home does it
                self._stack.enter_context(self.stores.db.lock("serving", shared, shared=role != "all"))
            self.jobs = self.stores.jobs
            self._queue = InspectionQueue(
                self.jobs, self._inspect, self._adopt, takes_jobs=role != "server", on_crashed=self._give_up_deadly,
                outcome=self._outcome, lease_s=settings.lease_s, hang_s=settings.longest_step_s,
            )  # fmt: skip
            self._inspector = self._stack.enter_context(
                Inspector(workspace, settings, on_event=self._queue.on_event, unattended=True)
            )
            self.fittings = Fittings(workspace, self._queue.beside, self._comes_first, elsewhere=role == "server")
            self.people = Reviews(self._inspector, self._enrol_now)
            self.names = DefectNames(workspace)
            self._recover()
            threading.Thread(target=_sweep, args=(home,), name="sweep", daemon=True).start()
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
        role: Role = "all",
    ) -> Self:
        """Open the home folder and resume what a crash interrupted.

        role: all: this process inspects by itself, and no other one may; server: it accepts and answers, and others
        inspect; worker: it inspects. Raises UnavailableError if another server has the home and does not share it,
        BankBusyError if a command has the bank.
        """
        workspace = Workspace.open(memory, model, tools, shared=True)
        try:
            return cls(workspace, agent or AgentSettings(), role)
        except BaseException:
            workspace.close()
            raise

    def fit_by_itself(self) -> None:
        """Also fit networks to products without being asked, while there is nothing else to do; see REFDIFF_AUTO_FIT. A
        worker also fits those that a server was asked for."""
        if self.role == "worker":
            self.fittings.for_others()
        if self.workspace.settings.auto_fit:
            self.fittings.by_itself()

    def drain(self) -> None:
        """Stop accepting work and release waiting callers, before a server answers its open requests and closes.

        Accepted inspections are kept; questions raise UnavailableError. Quick.
        """
        self._queue.drain()

    @property
    def stopping(self) -> bool:
        return self._queue.stopping

    def close(self, wait_s: float | None = None) -> None:
        """wait_s: how long to wait for the inspection that runs; default: briefly. What has not ended is resumed."""
        self._queue.drain()
        self.fittings.stop(self.hung or "")
        self._queue.stop(wait_s)
        self._stack.close()
        self.workspace.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def worker(self) -> str:
        """What this process is called in the journal, where it takes jobs."""
        return self._queue.worker

    @property
    def alive(self) -> bool:
        """Whether this process gets work done: its inspecting thread lives, and nothing hangs. Waits for nothing."""
        return self._queue.alive

    @property
    def hung(self) -> str | None:
        """What hangs in this process, in words, which should end then, and be started again: no thread can be ended from
        outside. What it had accepted is kept."""
        return self._queue.hung

    def readiness(self, workers: bool = True) -> Readiness:
        """Whether accepted work gets done now. Reads the stores, so it may take long in an outage.

        workers: False: of a server that leaves inspections to others, only whether it can accept them.
        """
        problems = []
        oldest = self.jobs.oldest_open()
        oldest_s = 0.0 if oldest is None else (datetime.now(UTC) - datetime.fromisoformat(oldest)).total_seconds()
        if self.hung:
            problems.append(f"{self.hung}; this process ends, to be started again")
        elif not self.alive:
            problems.append("the inspecting thread has died; restart the server")
        elif self.stopping:
            problems.append("the server is stopping")
        elif workers and self.role == "server" and not self.jobs.workers():
            problems.append("no worker takes inspections; start one: refdiff worker")
        elif self._queue.outage:
            problems.append("inspections wait for something that is unavailable; the log says for what")
        try:
            self.workspace.bank.products()
        except UnavailableError:
            problems.append("the golden bank cannot be read; the log says why")
        if self.stores.free_bytes() < self.stores.settings.min_free_bytes:
            problems.append("the disk is nearly full; free some space (REFDIFF_MIN_FREE_BYTES)")
        return Readiness(tuple(problems), self.stores.free_bytes(), oldest_s, self._queue.silent_s)

    def status(self) -> ServiceStatus:
        return ServiceStatus(
            version=version("refdiff"),
            waiting=self.jobs.count_open(),
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
        self,
        part_id: str,
        photo: Upload,
        product: str | None = None,
        scale_mm_per_px: float | None = None,
        conditions: Mapping[str, float] | None = None,
    ) -> Capture:
        """Record a photo as the part's newest. product: may be left out for a part that was photographed before. conditions:
        stated with it, where the product's kind has any.

        Raises ImageError, InputError.
        """
        with self._queue.beside():
            return capture_part(self.workspace, part_id, photo, product, scale_mm_per_px, conditions)

    def file_of_device(
        self, report: bytes, photo: bytes, difference: bytes, *, by: str, filename: str
    ) -> tuple[DefectReport, bool]:
        """File what a device inspected (see `file_received`)."""
        share = self.settings.blind_share
        with self._queue.beside():
            return file_received(self.workspace, report, photo, difference, by=by, filename=filename, blind_share=share)

    def understand(self, said: Sequence[Said], about: Subject | None = None) -> Intent:
        """What the newest of a person's messages asks for (see `intent.understand`)."""
        known = self.products()
        return understand(said, self.stores.captures.stored, products=known, about=about)

    def names_part(self, text: str) -> bool:
        return bool(parts_in(text, self.stores.captures.stored).ids)

    def product_named(
        self, part_id: str, texts: Sequence[str], *, photo: bool, about: Subject | None = None
    ) -> str | None:
        """The product named by the first of the texts that names one, or that `about` has of the same part; for the photo of
        a new part, the only product with golden samples; else None. Raises InputError as `the_product`.
        """
        named = the_product(texts, self.products())
        if named is None and about is not None and about.part_id == part_id:
            return about.product
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
        conditions: Mapping[str, float] | None = None,
        capture_id: str | None = None,
        origin: str | None = None,
        digest: str | None = None,
        origin_lasts: timedelta | None = None,
        judge: Judge = "always",
        priority: int = PERSON,
        line: str | None = None,
        batch: str | None = None,
    ) -> Job:
        """Accept an inspection; on return it is on the disk and will be filed exactly once.

        text: the request in the caller's words; part and product may be named there, or by part_id and product. photo,
        capture_id: see `prepare`. origin: the caller's key for this request, e.g. an event id; the same key again returns
        the same job, and tries it again if it failed for no fault of the request. digest: of what the caller sent; the same
        key with another one is refused. origin_lasts: how long the key is remembered; default: for good. judge: what the
        language model does (see InspectionRequest). priority, line: see `JobStore.add`. batch: whose part it is; those do
        not count as waiting.
        Raises UnknownPartError, UnknownProductError, ImageError, InputError; BusyError if too many wait.
        """
        if origin is not None and (known := self._known(origin, digest, origin_lasts)) is not None:
            return known
        if batch is None:
            self._check_room()
        if len(text) > MAX_TEXT:
            raise InputError(f"the request has {len(text):,} characters; {MAX_TEXT:,} is the limit")
        has_photo = photo is not None or capture_id is not None
        named = the_part(text, self.stores.captures.stored, part_id, photo=has_photo)
        if not named:
            raise InputError(HOW_TO_ASK)
        product = product or (the_product([text], self.products()) if text else None)
        with self._queue.beside() if photo else nullcontext():
            request = prepare(
                self.workspace, named, text, product=product, photo=photo, scale_mm_per_px=scale_mm_per_px,
                conditions=conditions, capture_id=capture_id, requested_by=by, judge=judge,
            )  # fmt: skip
        try:
            job, new = self.jobs.add(
                request.inspection_id, asdict(request) | telemetry.carried(), origin, self.settings.queue_limit, digest,
                priority=priority, line=line, batch=batch,
            )  # fmt: skip
        except BusyError as e:
            e.retry_after_s = self._queue.seconds_each
            raise
        telemetry.note(inspection_id=job.inspection_id, part=named, product=job.request["product"])
        if new:
            self._queue.enqueue(job)
        return job

    def submit_batch(
        self, source: str, parts: Iterable[BatchPart], *, by: str, judge: Judge = "on-anomaly", in_order: bool = False,
        origin: str | None = None, digest: str | None = None, origin_lasts: timedelta | None = None,
    ) -> Batch:  # fmt: skip
        """Accept many parts, which wait behind what people ask for: see `batches.fill`, also for what it raises."""
        try:
            return fill(
                self.workspace, source, parts, by=by, judge=judge, in_order=in_order, origin=origin, digest=digest,
                origin_lasts=origin_lasts,
            )  # fmt: skip
        finally:
            self._queue.look()  # also where it broke off: what was accepted before is inspected

    def cancel(self, inspection_id: str, by: str) -> Inspection:
        """End an inspection that waits; its photo is kept. Raises UnknownRecordError, InputError (running, filed)."""
        self._queue.cancel(inspection_id, by)
        log.info("inspection %s was cancelled by %s", inspection_id, by)
        return self.inspection(inspection_id)

    def retry(self, inspection_id: str, by: str) -> Inspection:
        """Run a failed or cancelled inspection again. by: who wants it, for the audit.

        Raises UnknownRecordError, InputError (not failed), BusyError.
        """
        if self._filed(inspection_id):
            raise InputError(f"inspection {inspection_id} is filed; inspect the part again for a new one")
        self.jobs.get(inspection_id)
        self._check_room()
        self._queue.retry(inspection_id, by)
        return self.inspection(inspection_id)

    def inspection(self, inspection_id: str) -> Inspection:
        """The current state of an inspection, also of one from the command line. Raises UnknownRecordError."""
        disposition, job = self.stores.dispositions.get(inspection_id), self.jobs.find(inspection_id)
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
            ahead=self.jobs.ahead_of(job) if job.open else 0, error=job.error,
        )  # fmt: skip

    def unfinished(self, failed: bool = False) -> list[Job]:
        """Jobs that run or wait, in order; or the failed ones."""
        if failed:
            return [j for j in self.jobs.list(("failed",)) if not self._filed(j.inspection_id)]
        return self.jobs.list()

    def report(self, inspection_id: str) -> DefectReport:
        """A filed report. Raises UnknownRecordError."""
        return filed_report(self.stores, inspection_id)

    def wait(self, inspection_id: str, timeout_s: float | None = None) -> Inspection:
        """The inspection once it is filed or has failed, at the latest after timeout_s. Raises UnknownRecordError."""
        for _ in self.follow(inspection_id, timeout_s):
            pass
        return self.inspection(inspection_id)

    def follow(self, inspection_id: str, timeout_s: float | None = None) -> Iterator[Progress]:
        """The progress of an inspection from its start until it is filed or has failed, or timeout_s is over."""
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
        """Call the listener with all past progress now, and with future progress from the inspecting thread.

        It must be quick and must not call the service. The last call has `progress.last`. Returns the function that
        unsubscribes. Raises UnknownRecordError.
        """
        heard_end = False

        def hear(progress: Progress) -> None:
            nonlocal heard_end
            heard_end |= progress.last
            listener(progress)

        self.inspection(inspection_id)
        if (job := self.jobs.find(inspection_id)) is not None:
            self._queue.show(job)
        unsubscribe = self._queue.subscribe(inspection_id, hear)
        now = self.inspection(inspection_id)
        if now.state in ("done", "failed") and not heard_end:  # before the last start, or in another process
            said = now.report.verdict.value if now.report else (now.error or {}).get("message", "")
            unsubscribe()
            hear(Progress(inspection_id, 1, now.state, said, now.state))
        return unsubscribe

    def artefact(self, inspection_id: str, name: str) -> Path:
        """The file of a filed inspection: overlay, heatmap, side_by_side, html, markdown, report, ...; see `ReportFiles`."""
        return self.files.path(inspection_id, name)

    def values(self, inspection_id: str) -> Values | None:
        """What the part measures on the pixels of its picture (temperatures, heights); None for a product of photos.

        Raises UnknownRecordError, StorageError, TamperedError.
        """
        drawing = self.files.drawing(inspection_id)
        return drawing.values if drawing else None

    def points(self, inspection_id: str) -> F32 | None:
        """The point cloud of a part, (n, 4) x, y, z and deviation in mm; None for other products. Raises as `values`."""
        return self.files.points(inspection_id)

    def picture(self, inspection_id: str, which: Literal["query", "reference"], max_px: int = _FULL_PX) -> bytes:
        """The photo or its nearest golden as it was taken, as a PNG or JPEG."""
        report = self.report(inspection_id)
        sha256 = report.query_sha256 if which == "query" else report.reference.sha256
        return self.shown(sha256, report.product, max_px)

    def shown(self, sha256: str, product: str, max_px: int = _FULL_PX) -> bytes:
        """A stored picture as a PNG or JPEG, with the product's intensity window."""
        return pictures.page_image(self.workspace.shown(sha256, product), max_px)

    # -- questions

    def ask(self, inspection_id: str, question: str) -> str:
        """The answer to a question about a filed report. Raises UnknownRecordError, InputError."""
        self.stores.inspections.get(inspection_id)
        _check_question(question)
        return self._queue.run_exclusive(lambda: self._inspector.answer_about(inspection_id, question))

    def chat(self, text: str) -> str:
        """The answer to a text that names no part and is about no report."""
        _check_question(text)
        return self._queue.run_exclusive(lambda: self._inspector.answer(text))

    def run_exclusive(self, work: Callable[[], T]) -> T:
        """Run short work between two inspections. Raises what it raises, or BusyError."""
        return self._queue.run_exclusive(work)

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
        kind: str | None = None,
        conditions: Mapping[str, float] | None = None,
    ) -> EnrollResult:
        """Enrol photos of good parts; the result lists refused ones with the reason. kind, conditions: see `enroll`.

        Raises BusyError if many wait.
        """
        with self._enrolment(f"enrolment in product {product}") as progress:
            return enroll(
                self.workspace, product, photos, scale_mm_per_px=scale_mm_per_px, part_group=part_group,
                station=station, enrolled_by=by, kind=kind, conditions=conditions, progress=progress,
            )  # fmt: skip

    def goldens(self, product: str | None = None, status: GoldenStatus | None = None) -> list[Golden]:
        """Oldest first."""
        product = None if product is None else self.stores.products.name_of(product)
        return self.workspace.bank.list(product, None if status is None else (status,))

    def set_golden_status(self, golden_id: str, status: GoldenStatus, by: str, note: str = "") -> Golden:
        """Flag, retire or reactivate a golden. Raises UnknownRecordError."""
        return self.workspace.bank.set_status(golden_id, status, note.strip() or f"{status} by {by}", by)

    def products(self) -> list[str]:
        return product_names(self.workspace)

    def only_product(self) -> str | None:
        """The only product with golden samples; None if there are several or none."""
        able = [p for p in self.products() if self.workspace.bank.count(p, IN_USE)]
        return able[0] if len(able) == 1 else None

    def product(self, name: str) -> dict[str, Any]:
        """A product as `product_overview` has it, the fit that runs or ran last (`fitting`, None), and why one that is due
        does not begin (`fit_held_back`, ""). Raises UnknownProductError."""
        found = product_overview(self.workspace, name)
        fitting = self.fittings.of(found["name"])
        return found | {
            "fitting": None if fitting is None else asdict(fitting),
            "fit_held_back": self.fittings.held_back(found["name"]),
        }

    def set_spec(self, name: str, spec: dict[str, Any], by: str, instead_of: int | None = None) -> dict[str, Any]:
        """Set the acceptance rules, as `refdiff product set` does. Raises SpecError, InputError, and ChangedError where
        `instead_of` is not the version that is there."""
        parsed = parse_spec(spec)
        check_specification(self.workspace, self.stores.products.name_of(name), parsed)
        self.stores.products.set_spec(name, parsed.model_dump(mode="json"), parsed.scale_mm_per_px, by, instead_of)
        return self.product(name)

    def name_component(self, name: str, component: str, called: str | None, by: str) -> dict[str, Any]:
        """Call a counted component something, by its number or name; None takes its name away. Raises UnknownRecordError,
        InputError."""
        shown, _ = shown_calibration(self.workspace, self.stores.products.name_of(name))
        name_component(self.stores, name, component, called, by, shown)
        return self.product(name)

    def calibrate(self, name: str, alpha: float | None = None, *, by: str) -> dict[str, Any]:
        """Calibrate from the golden samples. Raises UnknownProductError, InputError, BusyError if many wait."""
        name = self.stores.products.name_of(name)
        if not self.workspace.bank.count(name):
            raise self.workspace.bank.no_goldens(name)
        with self._enrolment(f"calibration of product {name}") as progress:
            made = calibrate(self.workspace, name, progress=progress, alpha=alpha, by=by)
        smallest = {"smallest_defect": product_fineness(self.workspace, name)}
        return calibration_overview(self.workspace, made) | smallest

    def export_for_devices(self, name: str, graphs: GraphFormat, *, by: str) -> Published:
        """Export a product as it is now, and publish it. Raises as `export_and_publish`, BusyError if many wait."""
        with self._enrolment(f"export of product {name}") as progress:
            return export_and_publish(self.workspace, name, graphs, by=by, progress=progress)

    def fit(self, name: str, by: str) -> dict[str, Any]:
        """Begin to fit a network to a product, or have a worker do it. Raises UnknownProductError, InputError with too few
        golden samples, BusyError while another one is fitted."""
        name = self.stores.products.name_of(name)
        if not self.workspace.bank.count(name):
            raise self.workspace.bank.no_goldens(name)
        return asdict(self.fittings.start(name, by))

    def end_fit(self, name: str, by: str) -> None:
        """End the fit of a product; none begins by itself any more. What it brings in this very moment stays in use, see
        `forget_network`. Raises UnknownRecordError where none runs."""
        name = self.stores.products.name_of(name)
        if not self.fittings.give_up(name, by):
            raise UnknownRecordError(f"no network is being fitted to product {name!r}")
        self.stores.networks.decline(name, by)

    def forget_network(self, name: str, by: str) -> None:
        """Let the shared network inspect a product again, and end a fit that runs.

        Raises UnknownRecordError where no network was fitted to it, nor is being fitted.
        """
        name = self.stores.products.name_of(name)
        ended = self.fittings.give_up(name, by)
        if not (self.stores.networks.remove(name, by) or ended):
            raise UnknownRecordError(f"no network was fitted to product {name!r}")

    # -- inside

    def _recover(self) -> None:
        """Recover jobs interrupted by a crash, and unfinished inspections of the command line."""
        for inspection_id in self._inspector.pending(self.jobs.open_ids()):
            request = self._inspector.request_of(inspection_id)
            if request is not None:
                self.jobs.adopt(inspection_id, asdict(request))
        if self.role == "all":  # alone: what runs was left so by a crash
            self.jobs.take_over(everybody=True)
            self._give_up_deadly(self.jobs.crashed())

    def _give_up_deadly(self, crashed: Sequence[Job]) -> None:
        """End the jobs that crashed their process too often; the others wait behind all that waited."""
        for job in crashed:
            deadly = job.crashes >= MAX_CRASHES or job.crashes_alone >= MAX_CRASHES_ALONE
            if not deadly or self._filed(job.inspection_id):
                log.info("inspection %s is resumed after %s crashes, last and alone", job.inspection_id, job.crashes)
                continue
            message = (
                f"given up: the server ended {job.crashes} times while it inspected this photo "
                f"({job.crashes_alone} times while it did nothing else). To try it again: "
                f"POST /v1/inspections/{job.inspection_id}/retry, or, with the server stopped, "
                f"refdiff inspections resume {job.inspection_id}"
            )
            # another process may have begun it meanwhile, or even filed it
            if self.jobs.give_up(job, {"type": CRASHED, "message": message, "exit_code": 70}):
                log.error("inspection %s is %s", job.inspection_id, message)

    def _outcome(self, inspection_id: str) -> str:
        return self.report(inspection_id).verdict.value if self._filed(inspection_id) else ""

    def _inspect(self, job: Job) -> str:
        """Run by the queue, perhaps again after a crash: a filed inspection is not repeated."""
        parent, first = job.request.get(telemetry.CARRIED), job.attempts == 1
        if not self._filed(job.inspection_id):
            with telemetry.continuing(parent, job.created_at, waited=first, apart=job.batch is not None):
                return self._inspector.run(InspectionRequest.of_job(job.request)).verdict.value
        return self.report(job.inspection_id).verdict.value

    def _adopt(self) -> None:
        """Enrol photos with consent given elsewhere, e.g. at the command line while this process had the bank; and retire
        what enrolments that were given up left behind."""
        if not (self.stores.adoptions.consented() or self.stores.adoptions.abandoned()):
            return
        try:
            adopt_all(self.workspace, self._enrol_now, self._retire_now)
        except BusyError as e:  # an enrolment may take minutes; inspections do not wait for it
            log.info("approved photos wait for their enrolment: %s", e)

    @contextmanager
    def _enrolment(self, what: str) -> Iterator[WorkProgress]:
        """The turn of one enrolment or calibration, to be told of its steps. Raises BusyError if many wait: each keeps a
        thread from others."""
        if not self._enrol_places.acquire(blocking=False):
            raise BusyError(f"{_MAX_ENROLLING} enrolments or calibrations run or wait already; try again later", 10.0)
        try:
            with self._enrolling, self._queue.beside(what) as step:
                yield lambda *_moved: step()
        finally:
            self._enrol_places.release()

    def _enrol_now(self, inspection_id: str) -> AbstractContextManager[WorkProgress]:
        """The turn to enrol the photo of an inspection, to be told of its steps; raises as `_now`."""
        what = f"enrolment of the photo of inspection {inspection_id}"
        return self._now(what, partial(self._give_up_enrolment, inspection_id))

    def _retire_now(self, inspection_id: str) -> AbstractContextManager[object]:
        """The turn to retire what the enrolment of that photo left; raises as `_now`."""
        return self._now(f"retiring what the enrolment of the photo of inspection {inspection_id} left")

    @contextmanager
    def _now(self, what: str, note: Callable[[], None] | None = None) -> Iterator[WorkProgress]:
        """The turn of what can wait, to be told of its steps; BusyError instead of waiting. note: see `Work`."""
        if not self._enrolling.acquire(blocking=False):
            raise BusyError("an enrolment or calibration is running")
        try:
            with self._queue.beside(what, note) as step:
                yield lambda *_moved: step()
        finally:
            self._enrolling.release()

    def _give_up_enrolment(self, inspection_id: str) -> None:
        """Record that the enrolment of an approved photo hangs in this process."""
        why = (
            f"its enrolment hung twice, taking no step for {self.settings.longest_step_s:g} s (REFDIFF_HANG_S), the second "
            f"time in {self.worker}, whose log says where"
        )
        said = f"the enrolment of the photo of inspection {inspection_id} is tried again once"
        if self.stores.adoptions.hang(inspection_id, why):
            said = (
                f"the photo of inspection {inspection_id} is given up: {why}. Once that is mended, approve it again: "
                f"refdiff review {inspection_id} --approve-reference"
            )
        aside(lambda: log.error("%s", said))

    def _known(self, origin: str, digest: str | None, lasts: timedelta | None) -> Job | None:
        """The job of that origin. Raises InputError if it was another request."""
        known = self.jobs.by_origin(origin)
        if known is None:
            return None
        if lasts is not None and datetime.now(UTC) - datetime.fromisoformat(known.created_at) > lasts:
            self.jobs.forget_origin(origin, known.inspection_id)
            return None
        known = self.jobs.by_origin(origin, digest)
        if known and known.state == "failed" and not known.is_final and not self._filed(known.inspection_id):
            with suppress(InputError):  # the same request, sent twice at once, has put it back already
                return self._queue.retry(known.inspection_id, str(known.request["requested_by"]))
        return known

    def _comes_first(self) -> bool:
        """Whether there is work that a fit waits for."""
        return self._queue.busy or self._enrolling.locked()

    def _filed(self, inspection_id: str) -> bool:
        return self.stores.inspections.find(inspection_id) is not None

    def _check_room(self) -> None:
        """Raises BusyError before a photo is stored in vain."""
        waiting = self.jobs.count_open(of_batches=False)
        if waiting >= self.settings.queue_limit:
            raise BusyError(
                f"{waiting} inspections are already waiting; try again later (or raise REFDIFF_QUEUE_LIMIT)",
                self._queue.seconds_each,
            )


def _sweep(home: Path) -> None:
    """Remove what killed processes left behind. Waits for nobody, and nothing depends on it."""
    try:
        remove_abandoned(home)
    except OSError as e:
        log.info("the leftovers of killed processes are not removed: %s", e)


def _check_question(text: str) -> None:
    if not text.strip():
        raise InputError("the question is empty")
    if len(text) > MAX_TEXT:
        raise InputError(f"the question has {len(text):,} characters; {MAX_TEXT:,} is the limit")
