"""The agent's public interface: run a request, resume an interrupted one, record a person's disposition."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command

from refdiff.agent import prompts
from refdiff.agent.context import AgentContext
from refdiff.agent.drivers.driver import MIN_CONFIDENCE, Driver
from refdiff.agent.drivers.embedded import EmbeddedDriver
from refdiff.agent.drivers.endpoint import EndpointDriver
from refdiff.agent.events import AgentEvent
from refdiff.agent.graph import build_graph
from refdiff.agent.language import questions
from refdiff.agent.language.requests import canonical_request
from refdiff.agent.nodes import opening_messages
from refdiff.agent.report import pictures
from refdiff.agent.report.schema import DefectReport, LlmReading, Verdict
from refdiff.agent.request import InspectionRequest
from refdiff.agent.settings import AgentSettings
from refdiff.memory.locks import hold_lock
from refdiff.memory.records.adoptions import Adoption
from refdiff.memory.records.blind_checks import BlindCheck
from refdiff.memory.records.dispositions import Decision, Disposition, Judgement
from refdiff.model.errors import InputError, LLMError, StorageError, UnavailableError, UnknownProductError
from refdiff.model.images import RgbImage, data_url, decode_image
from refdiff.model.language.build import is_built, model_folder, unfit
from refdiff.model.language.reading import READ
from refdiff.tools.find_part import find_part
from refdiff.tools.golden_samples.adopt import adopt, adopt_all
from refdiff.tools.inspection.inspection import open_workbench
from refdiff.tools.workspace import Workspace

# checkpoints may only hold types that can be read back safely: None allows the built-in ones and nothing else
# (LANGGRAPH_STRICT_MSGPACK is read when langgraph is imported, too early for us to set it)
_SERDE = JsonPlusSerializer(allowed_msgpack_modules=None)
_RECURSION_LIMIT = 400  # more than max_steps of a model plus the script can take, at three nodes per step

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
    ) -> None:
        self.workspace = workspace
        self.settings = settings or AgentSettings()
        self._emit = on_event or (lambda _: None)
        self._stack = ExitStack()
        self._home = workspace.stores.settings.home
        self._saver = self._open_saver()
        self._graph = build_graph(self._saver)
        self._driver, self.no_model = self._choose_driver()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, request: InspectionRequest) -> DefectReport:
        """Inspect and file. An interrupted run of the same inspection id resumes where it stopped.

        Raises UnknownPartError, UnknownProductError, ImageError, UnavailableError; nothing is filed then.
        """
        with self._claim(request.inspection_id):  # before the bank, so a second process gets the right error
            return self._run(request)

    def _run(self, request: InspectionRequest) -> DefectReport:
        capture = find_part(self.workspace.stores, request.part_id, request.product, request.capture_id)
        request = replace(request, part_id=capture.part_id)
        if not self.workspace.bank.count(capture.product, ("active", "flagged")):
            raise UnknownProductError(
                f"product {capture.product!r} (part {request.part_id}) has no golden samples; "
                f"add some: refdiff enroll --product {capture.product!r} FOLDER"
            )
        state = {
            "messages": opening_messages(self._shown(request)),
            "request": asdict(request),
            "evidence": [],
            "trace": [],
            "timings_ms": {},
            "via": self._driver.via if self._driver and request.judge == "always" else "fallback",
            "fallback_reason": self.no_model or _SCRIPTED.get(request.judge, ""),
            "draft": None,
        }
        return self._drive(request, state)

    def pending(self) -> list[str]:
        """Ids of inspections that a crashed process left unfinished (not those waiting for a person)."""
        threads = {str(c.config["configurable"]["thread_id"]) for c in self._saver.list(None)}
        left = []
        for thread in sorted(threads):
            snapshot = self._graph.get_state(_config(thread))
            if snapshot.next and not snapshot.interrupts and not self._running_elsewhere(thread):
                left.append(thread)
        return left

    def request_of(self, inspection_id: str) -> InspectionRequest | None:
        """What an unfinished inspection was asked for; None if there is no checkpoint of it."""
        values = self._graph.get_state(_config(inspection_id)).values
        return InspectionRequest(**values["request"]) if values.get("request") else None

    def resume(self, inspection_id: str) -> DefectReport:
        """Finish an interrupted inspection. Raises UnknownRecordError if there is nothing to resume."""
        request = self.request_of(inspection_id)
        if request is None:
            return self._filed(inspection_id)
        with self._claim(inspection_id):
            return self._drive(request, None)

    def dispose(
        self,
        inspection_id: str,
        decision: Decision,
        by: str,
        reason: str,
        judged: Judgement | None = None,
        as_reference: bool = False,
    ) -> Disposition:
        """A person's accept or override of a filed inspection; the first wins. Raises DuplicateError, InputError.

        judged: what the part is, where a REVIEW is decided. as_reference: the photo of this good part becomes a golden
        sample; the outcome is in `stores.adoptions` (none yet if the bank is unavailable; `learn` retries).
        """
        disposition = self.workspace.stores.dispositions.add(inspection_id, decision, by, reason, judged, as_reference)
        config = _config(inspection_id)
        if self._graph.get_state(config).interrupts:
            self._graph.invoke(Command(resume=asdict(disposition)), config, context=None)
            self._saver.delete_thread(inspection_id)
        if as_reference:
            self._adopt(inspection_id)
        return disposition

    def judge_blind(
        self, inspection_id: str, judged: Judgement, by: str, note: str = "", as_reference: bool = False
    ) -> BlindCheck:
        """Record the judgement of a person who did not see the verdict; the first answer stands.

        Raises UnknownRecordError (not drawn for a blind check), DuplicateError, InputError.
        """
        answer = self.workspace.stores.blind_checks.answer(inspection_id, judged, by, note, as_reference)
        if as_reference:
            self._adopt(inspection_id)
        return answer

    def learn(self) -> list[Adoption]:
        """Enrol the approved photos that could not be enrolled when they were approved."""
        return adopt_all(self.workspace)

    def _adopt(self, inspection_id: str) -> None:
        try:
            learned = adopt(self.workspace, inspection_id)
            self._emit(AgentEvent("learned", f"reference from {inspection_id}: {learned.outcome}"))
        except UnavailableError as e:  # the decision stands, and the consent waits
            self._emit(AgentEvent("learned", f"the photo of {inspection_id} is not enrolled yet: {e}"))

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
        """A question about a filed report, answered with what is true of it, or with questions.NOT_KNOWN.

        Where neither words nor a model tell what is asked, the report's facts are the answer. Raises UnknownRecordError,
        InputError.
        """
        report = self.workspace.stores.inspections.get(inspection_id).report
        asked = prompts.sanitise(question)
        if not asked:
            raise InputError('the question is empty; try: refdiff ask "how long is finding 1?" --about INSPECTION')
        if (plain := questions.direct(report, asked)) is not None:
            return plain
        if self._driver is None:
            return questions.unclear(report, asked)
        self._emit(AgentEvent("llm", "asking the language model"))
        prompt = questions.prompt_of(report, asked)
        try:
            said, sure = self._driver.choose(prompts.ANSWER, prompt, questions.statements(report, asked))
        except LLMError as e:
            self._emit(AgentEvent("fallback", str(e)))
            return questions.unclear(report, asked)
        return said if sure is None or sure >= MIN_CONFIDENCE else questions.unclear(report, asked)

    def read_pair(self, reference: str, query: str) -> LlmReading | None:
        """The model's reading of a stored pair (sha256 each), None without a model. Raises LLMError."""
        return self._driver.read_pair(READ, reference, query) if self._driver else None

    @property
    def model(self) -> str | None:
        """The name of the language model that drives, None for the script; `no_model` says why."""
        return self._driver.model if self._driver else None

    # -- inside

    def _shown(self, request: InspectionRequest) -> InspectionRequest:
        """The request as the model reads it. Ours is trained to inspect and heeds no wishes, but other people's words can
        lead it astray (16 steps instead of 5); so it is told the part, and a wish for more references in words that it
        knows, never in theirs. The report keeps theirs."""
        if self._driver is None or self._driver.via != "embedded":
            return request
        return replace(request, text=canonical_request(request.text, request.part_id))

    def _drive(self, request: InspectionRequest, state: dict[str, Any] | None) -> DefectReport:
        """state: the first state of a new run, None to resume from the checkpoint."""
        config = _config(request.inspection_id)
        if state is not None and self._graph.get_state(config).values:
            state = None
        try:
            # durable before the next node starts: a crash loses one node's work at most
            self._graph.invoke(state, config, context=self._context(request), durability="sync")
        except sqlite3.Error as e:
            raise StorageError(f"checkpoints under {self._home} cannot be written: {e}") from e
        except InputError:  # resuming later would end the same way
            self._saver.delete_thread(request.inspection_id)
            raise
        report = self._filed(request.inspection_id)
        # a crashed run may have been reviewed before it was resumed
        if report.verdict != Verdict.REVIEW or self.workspace.stores.dispositions.get(request.inspection_id):
            self._saver.delete_thread(request.inspection_id)
        return report

    def _context(self, request: InspectionRequest) -> AgentContext:
        def progress(done: int, total: int) -> None:
            self._emit(AgentEvent("calibrating", "calibrating from the golden samples", done, total))

        bench = open_workbench(self.workspace, request.part_id, request.product, progress, request.capture_id)
        return AgentContext(bench, self.settings, self._driver, self._emit)

    def _filed(self, inspection_id: str) -> DefectReport:
        return DefectReport.model_validate(self.workspace.stores.inspections.get(inspection_id).report)

    def _image_url(self, sha256: str) -> str:
        """A stored picture as a data URL, at most `llm_image_px` long."""
        data = self.workspace.stores.images.get(sha256)
        image = decode_image(data, settings=self.workspace.model_settings)
        return data_url(pictures.page_image(image, self.settings.llm_image_px))

    def _choose_driver(self) -> tuple[Driver | None, str]:
        """Choose the chat model, or say why only the scripted driver is available."""
        if self.settings.llm == "off":
            return None, "the language model is switched off by REFDIFF_LLM"
        if self.settings.llm_base_url:
            return EndpointDriver(self.settings, self._image_url), ""
        model = self.workspace.model_settings
        try:
            if reason := unfit(model):
                return None, reason
            folder = model_folder(model)
            if not is_built(folder):
                return None, "the embedded model is not built yet; build it: refdiff model build"
            return EmbeddedDriver(folder, self._picture, model.threads), ""
        except StorageError as e:  # reported as the reason for the fallback; a broken model must never stop a line
            self._emit(AgentEvent("fallback", str(e)))
            return None, "the embedded model is unreadable; rebuild it: refdiff model build --again"

    def _picture(self, sha256: str) -> RgbImage:
        return decode_image(self.workspace.stores.images.get(sha256), settings=self.workspace.model_settings)

    def _open_saver(self) -> BaseCheckpointSaver[Any]:
        url = self.settings.checkpoint_url
        if url is None:
            try:
                connection = sqlite3.connect(self._home / "checkpoints.sqlite", check_same_thread=False, timeout=30)
                self._stack.callback(connection.close)
                saver = SqliteSaver(connection, serde=_SERDE)
                saver.setup()
            except sqlite3.Error as e:
                raise StorageError(f"checkpoints under {self._home} cannot be opened: {e}") from e
            return saver
        try:
            from langgraph.checkpoint.postgres import PostgresSaver
        except ImportError as e:
            raise UnavailableError("checkpoints in Postgres need: pip install 'refdiff[postgres]'") from e
        import psycopg

        try:
            postgres = self._stack.enter_context(PostgresSaver.from_conn_string(url.get_secret_value()))
            postgres.serde = _SERDE
            postgres.setup()
        except psycopg.Error as e:
            raise UnavailableError(
                f"the checkpoint database is unavailable ({type(e).__name__}); is it running?"
            ) from e
        return postgres

    def _claim(self, inspection_id: str) -> AbstractContextManager[None]:
        """Lock an inspection. Raises UnavailableError if another process holds it."""
        busy = UnavailableError(f"inspection {inspection_id} is running in another process; wait for it")
        return hold_lock(self._home / "locks" / f"{inspection_id}.lock", busy, remove=True)

    def _running_elsewhere(self, inspection_id: str) -> bool:
        try:
            with self._claim(inspection_id):
                return False
        except UnavailableError:
            return True


def _config(inspection_id: str) -> Any:
    return {"configurable": {"thread_id": inspection_id}, "recursion_limit": _RECURSION_LIMIT}


__all__ = ["AgentEvent", "Inspector"]
