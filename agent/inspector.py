"""Runs one inspection, resumes what was interrupted, and answers questions about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from typing import Any

from langgraph.graph import START
from langgraph.types import Command, StateSnapshot

from refdiff.agent import prompts, telemetry
from refdiff.agent.checkpoints import open_checkpoints, run_config
from refdiff.agent.context import AgentContext
from refdiff.agent.drivers.choice import choose_driver
from refdiff.agent.events import AgentEvent
from refdiff.agent.filing import filed_report
from refdiff.agent.graph import build_graph, run_script
from refdiff.agent.language import questions
from refdiff.agent.language.requests import canonical_request
from refdiff.agent.nodes import first_state
from refdiff.agent.report.schema import DefectReport, Verdict
from refdiff.agent.request import InspectionRequest, check_goldens
from refdiff.agent.settings import AgentSettings
from refdiff.agent.verdict.in_force import settings_in_force
from refdiff.memory.audit_chain import using_key
from refdiff.memory.changes import record_settings
from refdiff.memory.records.dispositions import Disposition
from refdiff.memory.rows.captures import Capture
from refdiff.memory.settings import login_name
from refdiff.model.errors import InputError, LLMError, UnavailableError, out_of_memory
from refdiff.tools.context import ToolContext
from refdiff.tools.inspection.captures import find_part
from refdiff.tools.workspace import Workspace

log = logging.getLogger(__name__)

_SCRIPTED = {
    "never": "requested without a language model",
    "on-anomaly": "the language model reads only parts that would not pass",
}

HOW_TO_ASK = (
    "I inspect parts against golden samples. Name the part, for example: "
    '"inspect part #4412 against the nearest good sample".'
)


class Inspector(AbstractContextManager["Inspector"]):
    """Use as a context manager. One process may run many inspections; each inspection runs in one process at a time."""

    def __init__(
        self,
        workspace: Workspace,
        settings: AgentSettings | None = None,
        on_event: Callable[[AgentEvent], None] | None = None,
        *,
        unattended: bool = False,
    ) -> None:
        """unattended: what is accepted is in a journal, and nobody waits for files. A run by script then keeps nothing on
        its way, and pictures are drawn when somebody asks for them."""
        self.workspace = workspace
        self.settings = settings or AgentSettings()
        self._emit = on_event or (lambda _: None)
        self._stack = ExitStack()
        home, database = workspace.stores.settings.home, workspace.stores.settings.database_url
        self.checkpoints = self._stack.enter_context(open_checkpoints(home, self.settings.checkpoint_url or database))
        self._graph = build_graph(self.checkpoints.saver)
        self._unattended = unattended
        self._driver, self.no_model = choose_driver(workspace, self.settings, self._emit)

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, request: InspectionRequest) -> DefectReport:
        """Inspect and file. A run of the same inspection id that was interrupted resumes where it stopped.

        Raises UnknownPartError, UnknownProductError, ImageError, UnavailableError; nothing is filed then.
        """
        with (
            telemetry.span("inspection", inspection_id=request.inspection_id, part=request.part_id),
            self.checkpoints.claim(request.inspection_id),  # before the bank, so a second process gets the right error
        ):
            report = self._run(request)
            telemetry.note(product=report.product, verdict=report.verdict.value, driver=report.judge.via)
            return report

    def _run(self, request: InspectionRequest) -> DefectReport:
        capture = find_part(self.workspace.stores, request.part_id, request.product, request.capture_id)
        self.workspace.stores.images.mark_used(capture.sha256)
        request = replace(request, part_id=capture.part_id)
        check_goldens(self.workspace, capture.product, capture.part_id)
        via = self._driver.via if self._driver and request.judge == "always" else "fallback"
        reason = self.no_model or _SCRIPTED.get(request.judge, "")
        state = first_state(request, self._shown(request), via=via, fallback_reason=reason)
        return self._drive(request, state, capture)

    def pending(self, known: Collection[str] = ()) -> list[str]:
        """Ids of inspections that were interrupted (not those that wait for a person), but for those `known` already."""
        left = []
        for inspection_id in self.checkpoints.threads():
            if inspection_id in known:
                continue
            snapshot = self._kept(inspection_id)
            if not snapshot.next or snapshot.interrupts or self.checkpoints.is_claimed(inspection_id):
                continue
            # a script ends with filing; a model's run may still have to wait for a person
            if _by_script(snapshot.values) and self.workspace.stores.inspections.find(inspection_id) is not None:
                continue
            left.append(inspection_id)
        return left

    def request_of(self, inspection_id: str) -> InspectionRequest | None:
        """The request of an unfinished inspection; None if there is no checkpoint of it."""
        values = self._kept(inspection_id).values
        return InspectionRequest(**values["request"]) if values.get("request") else None

    def resume(self, inspection_id: str) -> DefectReport:
        """Finish an inspection that was interrupted. Raises UnknownRecordError if there is nothing to resume."""
        request = self.request_of(inspection_id)
        if request is None:
            return self._filed(inspection_id)
        with self.checkpoints.claim(inspection_id):
            return self._drive(request, None)

    def end_review(self, disposition: Disposition) -> None:
        """Let an inspection that waits for a person end with that decision."""
        if self._kept(disposition.inspection_id).interrupts:
            config = run_config(disposition.inspection_id)
            with self.checkpoints.failing():
                self._graph.invoke(Command(resume=asdict(disposition)), config, context=None)
            self.checkpoints.remove(disposition.inspection_id)

    def answer(self, text: str) -> str:
        """A short answer to a request that names no part."""
        if self._driver is None or self._driver.via == "embedded":  # ours is trained to inspect, not to chat
            return HOW_TO_ASK
        self._emit(AgentEvent("llm", "asking the language model"))
        try:
            return self._driver.answer(f"{prompts.SYSTEM}\n{HOW_TO_ASK}", prompts.sanitise(text)) or HOW_TO_ASK
        except LLMError as e:
            self._emit(AgentEvent("fallback", str(e)))
            return HOW_TO_ASK

    def answer_about(self, inspection_id: str, question: str) -> str:
        """A question about a filed report, answered with a statement of it, or with all of them (`questions.answer`).

        Raises UnknownRecordError, InputError.
        """
        report = self._filed(inspection_id)
        decided = self.workspace.stores.dispositions.get(inspection_id)
        asked = prompts.sanitise(question)
        if not asked:
            raise InputError('the question is empty; try: refdiff ask "how long is finding 1?" --about INSPECTION')
        if self._driver is not None:
            self._emit(AgentEvent("llm", "asking the language model"))
            try:
                return questions.answer(report, asked, decided, self._driver)
            except LLMError as e:
                self._emit(AgentEvent("fallback", str(e)))
        return questions.answer(report, asked, decided)

    @property
    def model(self) -> str | None:
        """Name of the language model that drives; None for the script (`no_model` says why)."""
        return self._driver.model if self._driver else None

    # -- inside

    def _kept(self, inspection_id: str) -> StateSnapshot:
        """The newest checkpoint of an inspection, empty if there is none. One that cannot be read is removed: the inspection
        begins anew, or waits for a person all the same."""
        config = run_config(inspection_id)
        try:
            with self.checkpoints.failing():
                return self._graph.get_state(config)
        except (ValueError, TypeError, LookupError, AttributeError) as e:
            log.warning("the checkpoint of inspection %s is damaged and was removed (%s)", inspection_id, e)
            self.checkpoints.remove(inspection_id)
            return self._graph.get_state(config)

    def _shown(self, request: InspectionRequest) -> InspectionRequest:
        """The request as the model reads it; the report keeps the caller's words.

        Our own model is trained to inspect and ignores wishes, but unknown words can mislead it (16 steps instead of 5): it
        is given the part, and a wish for more references, in the words of its training.
        """
        if self._driver is None or self._driver.via != "embedded":
            return request
        return replace(request, text=canonical_request(request.text, request.part_id))

    def _drive(
        self, request: InspectionRequest, state: dict[str, Any] | None, capture: Capture | None = None
    ) -> DefectReport:
        """state: the first state of a new run; None to resume from the checkpoint. capture: the photo, if it is known."""
        # before the first verdict under them, and again where another process has worked with others meanwhile
        stores, in_force = self.workspace.stores, settings_in_force(self.workspace, self.settings, self._driver)
        record_settings(stores.db, in_force, login_name())
        config = run_config(request.inspection_id)
        begun = self._kept(request.inspection_id).values
        state = begun or state or {}
        # the script does the same again: after a crash it begins anew, and needs no checkpoint on its way
        scripted = _by_script(state)
        context = self._context(request, capture, scripted)
        try:
            with using_key(request.by_key), self.checkpoints.failing():
                if scripted:
                    if not (begun or self._unattended):  # no journal tells that it is to be finished
                        self._graph.update_state(config, state, as_node=START)
                    run_script(state, context)
                else:
                    # durable before the next node starts: a crash loses at most one node's work
                    self._graph.invoke(None if begun else state, config, context=context, durability="sync")
        except InputError:  # resuming would end the same way
            self.checkpoints.remove(request.inspection_id)
            raise
        except Exception as e:
            if not out_of_memory(e):
                raise
            raise UnavailableError("too little memory is free for this inspection; try again later") from e
        report = self._filed(request.inspection_id)
        if scripted and self._unattended and not begun:
            return report
        # an interrupted run may have been reviewed before it was resumed
        if scripted or report.verdict != Verdict.REVIEW or stores.dispositions.get(request.inspection_id):
            self.checkpoints.remove(request.inspection_id)
        else:
            self.checkpoints.compact(request.inspection_id)
        return report

    def _context(self, request: InspectionRequest, capture: Capture | None, scripted: bool) -> AgentContext:
        def progress(what: str, done: int, total: int, note: str = "") -> None:
            said = "calibrating from the golden samples" if total else what  # it waits
            self._emit(AgentEvent("calibrating", said, done, total))

        tools = ToolContext(
            self.workspace, request.part_id, request.product, request.capture_id, progress, capture,
            keeps_pictures=not (scripted and self._unattended),
        )  # fmt: skip
        return AgentContext(tools, self.settings, self._driver, self._emit, draws=not self._unattended)

    def _filed(self, inspection_id: str) -> DefectReport:
        return filed_report(self.workspace.stores, inspection_id)


def _by_script(state: Mapping[str, Any]) -> bool:
    """Whether a run begins with the script; one that a model began keeps its checkpoints."""
    return state.get("via") == "fallback" and not state.get("steps")
