"""The nodes of the agent's graph, in the order in which an inspection passes them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import ToolException
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from refdiff.agent import prompts, telemetry
from refdiff.agent.context import AgentContext
from refdiff.agent.drivers.driver import failures
from refdiff.agent.drivers.scripted import ScriptedDriver
from refdiff.agent.events import AgentEvent
from refdiff.agent.filing import file_report
from refdiff.agent.report.artefacts import artefacts_of
from refdiff.agent.report.schema import DefectReport, Judge, Software, ToolCall, Verdict
from refdiff.agent.request import InspectionRequest
from refdiff.agent.state import InspectionState
from refdiff.agent.verdict.assemble import assemble, claims_of, complete_evidence, conclude_without_reading
from refdiff.agent.verdict.verify import verify
from refdiff.model.errors import (
    DamagedError,
    ImageError,
    LLMError,
    RefDiffError,
    UnavailableError,
    UnknownPartError,
    UnknownProductError,
)
from refdiff.model.files import outage
from refdiff.model.language.reading import READ
from refdiff.model.settings import software_version
from refdiff.tools.evidence import Evidence, ScoreEvidence, ZoomEvidence, evidence_of
from refdiff.tools.inspection.calibration import software_fingerprint, weights_in_use
from refdiff.tools.registry import TOOLS, TRAINED_TOOLS
from refdiff.tools.submit_report import Draft

log = logging.getLogger(__name__)

MAX_PAIRS = 4  # pairs of pictures a conversation may show
MAX_FAILURES = 2  # of the very same call in a row before the script takes over
MAX_NUDGES = 2  # answers without a usable tool call before the script takes over
MAX_VERIFY_ROUNDS = 1
MAX_MODEL_MESSAGE = 400


def first_state(
    request: InspectionRequest, shown: InspectionRequest, *, via: str, fallback_reason: str = ""
) -> dict[str, Any]:
    """The InspectionState that a run begins with. shown: the request as the model reads it."""
    asked = prompts.request_message(shown.text, shown.part_id)
    return {
        "messages": [
            SystemMessage(prompts.SYSTEM), HumanMessage(asked, additional_kwargs={"part_id": shown.part_id}),
        ],
        "request": asdict(request), "evidence": [], "trace": [], "timings_ms": {}, "via": via,
        "fallback_reason": fallback_reason, "draft": None,
    }  # fmt: skip


def _fall_back(context: AgentContext, reason: str, cause: BaseException | None = None) -> dict[str, Any]:
    """reason is filed; cause, which may hold a server's text, is only shown."""
    shown = f" ({str(cause)[:300]})" if cause else ""
    context.emit(AgentEvent("fallback", f"{reason}{shown}; the scripted driver takes over"))
    return {"via": "fallback", "fallback_reason": reason}


@telemetry.step("step agent")
def agent_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """Ask the driver for the next tool call."""
    context, messages, steps = runtime.context, state["messages"], state.get("steps", 0)
    update: dict[str, Any] = {"steps": steps + 1}
    started = time.perf_counter()
    message: AIMessage | None = None
    if state["via"] != "fallback" and context.driver is not None:
        nudges = sum(isinstance(m, HumanMessage) and m.content == prompts.NO_TOOL_CALL for m in messages)
        if steps >= context.settings.max_steps:
            update |= _fall_back(context, f"the model did not finish in {steps} steps")
        else:
            try:
                answer = context.driver.next_call(messages, TRAINED_TOOLS)
                stuck = messages[_after_success(messages) :]
                if any(failures(stuck, c["name"], c["args"]) >= MAX_FAILURES for c in answer.tool_calls):
                    update |= _fall_back(context, "the model kept repeating a call that fails")
                elif answer.tool_calls:
                    message = answer
                elif nudges >= MAX_NUDGES:
                    update |= _fall_back(context, "the model kept answering without a tool call")
                else:
                    said = answer.model_copy(update={"content": answer.text[:MAX_MODEL_MESSAGE] or "..."})
                    update["messages"] = [said, HumanMessage(prompts.NO_TOOL_CALL)]
            except LLMError as e:
                update |= _fall_back(context, str(e), e.__cause__)
    elif state["via"] != "fallback":
        update |= _fall_back(context, "no language model is configured any more")
    if message is None and "messages" not in update:
        script = ScriptedDriver(k=context.tools.workspace.settings.references, names=context.tools.names_defects)
        message = script.next_call(messages)
        if not message.tool_calls:
            error = next((m.text for m in reversed(messages) if isinstance(m, ToolMessage)), "no tool could be called")
            raise RefDiffError(f"the inspection cannot continue: {error}")
    if message is not None:
        update["messages"] = [message]
    update["timings_ms"] = {"llm": (time.perf_counter() - started) * 1000}
    return update


def _after_success(messages: Sequence[AnyMessage]) -> int:
    """Index of the first message after the last successful tool call: what failed before it may succeed now."""
    done = (i for i, m in enumerate(messages) if isinstance(m, ToolMessage) and m.status != "error")
    return max(done, default=-1) + 1


def tool_error(error: Exception) -> str:
    """What the model reads when a tool fails: the message for errors raised on purpose, arguments that do not validate.

    Errors that no other call could fix are raised again and end the run with their own exit code; so does what the machine
    lacks (memory, disk). An error of our own is logged, and the run goes on without that call.
    """
    if isinstance(error, (DamagedError, ImageError, UnknownPartError, UnknownProductError, UnavailableError)):
        raise error
    if (lacking := outage(error)) is not None:
        raise lacking from error
    if isinstance(error, RefDiffError):
        return f"Error: {error}"
    if not isinstance(error, ToolException):
        log.error("a tool failed", exc_info=error)
    return f"Error: {type(error).__name__}: {str(error)[:300]}"


_TOOL_NAMES = frozenset(t.name for t in TOOLS)
# ids and enums; anything else in a refused call is prose, and unverified prose is not filed
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,31}")


def _traced(step: int, call: Mapping[str, Any], evidence: str | None, ok: bool, message: str) -> ToolCall:
    """A line of the trace. It is filed, so it must not hold any claim of the model: ids and numbers pass, prose does not."""
    name, arguments = str(call["name"]), dict(call["args"])
    if name == "submit_report":
        arguments = {"findings": len(found)} if isinstance(found := arguments.get("findings"), list) else {}
        message = message if ok else "the report was rejected: it is malformed, or nothing has been compared yet"
    elif not ok:
        kept = {k: v for k, v in arguments.items() if _ID.fullmatch(k) and _is_plain(v)}
        if name not in _TOOL_NAMES:
            name, kept, message = "unknown", {}, "the model called a tool that does not exist"
        elif kept != arguments:
            message = "the arguments do not fit the tool"
        arguments = kept
    short = message if len(message) <= 500 else message[:497] + "..."
    return ToolCall(step=step, tool=name, arguments=arguments, evidence=evidence, ok=ok, message=short)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return _ID.fullmatch(value) is not None
    if isinstance(value, list):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (bool, int, float))


@telemetry.step("step record")
def record_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """Number the evidence that the tools just made, write the trace, post pictures in pairs."""
    messages = state["messages"]
    call_at = max(i for i, m in enumerate(messages) if isinstance(m, AIMessage))
    calling = messages[call_at]
    assert isinstance(calling, AIMessage)
    arguments = {c["id"]: c for c in calling.tool_calls}
    evidence: list[dict[str, Any]] = []
    trace: list[dict[str, Any]] = []
    changed: list[AnyMessage] = []
    pictures: list[AnyMessage] = []
    update: dict[str, Any] = {}
    shown = list(state.get("shown") or [])
    for message in messages[call_at + 1 :]:
        if not isinstance(message, ToolMessage):
            continue
        call: Mapping[str, Any] = arguments.get(message.tool_call_id) or {"name": message.name, "args": {}}
        ok = message.status != "error"
        artifact = message.artifact or {}
        evidence_id, said = None, str(message.text)
        if ok and "evidence" in artifact:
            evidence_id = f"e{len(state['evidence']) + len(evidence) + 1}"
            (record,) = evidence_of([artifact["evidence"] | {"id": evidence_id}])
            evidence.append(record.model_dump())
            said = record.summary
            content = json.dumps({"evidence": evidence_id} | json.loads(message.text), ensure_ascii=False)
            changed.append(message.model_copy(update={"content": content, "artifact": None}))
            pair = [record.images.get(role) for role in ("reference", "query")]
            if (
                state["via"] != "fallback"
                and runtime.context.settings.llm_images
                and isinstance(record, ScoreEvidence | ZoomEvidence)
                and all(pair)
                and len(shown) < MAX_PAIRS
            ):
                shown.append(evidence_id)
                blocks: list[str | dict[str, Any]] = [
                    {"type": "text", "text": prompts.PAIR.format(evidence=evidence_id)},
                    *({"type": "image_ref", "sha256": s} for s in pair),
                ]
                pictures.append(HumanMessage(blocks))
        elif ok and "draft" in artifact:
            update["draft"] = artifact["draft"]
            changed.append(message.model_copy(update={"artifact": None}))
        step = _traced(len(state["trace"]) + len(trace) + 1, call, evidence_id, ok, said)
        trace.append(step.model_dump())
        runtime.context.emit(AgentEvent("tool", f"{step.tool}: {step.message}"))
    return update | {"messages": [*changed, *pictures], "evidence": evidence, "trace": trace, "shown": shown}


@telemetry.step("step verify")
def verify_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """Check the draft against its evidence; unsupported claims go back once, then they are dropped and listed."""
    draft = Draft.model_validate(state["draft"])
    checked = verify(draft, evidence_of(state["evidence"]), shown=state.get("shown") or [])
    rounds = state.get("verify_rounds", 0)
    if checked.unsupported and rounds < MAX_VERIFY_ROUNDS and state["via"] != "fallback":
        problems = "\n".join(f"- {p}" for p in checked.unsupported)
        runtime.context.emit(
            AgentEvent("verify", f"unsupported claims: {len(checked.unsupported)}; asking the model again")
        )
        return {
            "messages": [HumanMessage(prompts.UNSUPPORTED.format(problems=problems))],
            "draft": None,
            "verify_rounds": rounds + 1,
        }
    return {
        "claims": [c.model_dump() for c in checked.claims],
        "reasoning": checked.reasoning,
        "unsupported": checked.unsupported,
        "verify_rounds": rounds + 1,
    }


@telemetry.step("step read")
def read_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """The model's own reading of the canonical pair, from a fixed prompt without user text; None if there is none."""
    context, evidence = runtime.context, evidence_of(state["evidence"])
    context.tools.capture_in(evidence)
    if context.driver is None or not context.settings.llm_images or not _is_read(state, context, evidence):
        return {"reading": None}
    pair = context.tools.shown_reference, context.tools.shown_query
    started = time.perf_counter()
    try:
        reading = context.driver.read_pair(READ, *pair)
    except LLMError as e:
        context.emit(AgentEvent("fallback", f"the model did not read the image pair: {e}"))
        spent = {"llm": (time.perf_counter() - started) * 1000}
        return {"reading": None, "fallback_reason": f"the model did not read the image pair: {e}", "timings_ms": spent}
    return {"reading": reading.model_dump(), "timings_ms": {"llm": (time.perf_counter() - started) * 1000}}


def _is_read(state: InspectionState, context: AgentContext, evidence: Sequence[Evidence]) -> bool:
    """Does the model read the pair? With judge "on-anomaly" it skips the parts that would pass."""
    if state["request"].get("judge", "always") != "on-anomaly":
        return state["via"] != "fallback"
    return conclude_without_reading(context.tools, evidence, claims_of(state)).verdict is not Verdict.PASS


@telemetry.step("step decide")
def decide_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """The verdict and the report, from the canonical comparison; deterministic, so a resumed run agrees."""
    context, evidence, request = runtime.context, evidence_of(state["evidence"]), state["request"]
    context.tools.capture_in(evidence)
    workspace, network = context.tools.workspace, context.tools.canonical.network
    drove = state["via"] != "fallback" and context.driver is not None
    driver = context.driver if drove or state.get("reading") else None
    report = DefectReport(
        **assemble(
            context.tools, complete_evidence(context.tools, evidence), state,
            by_llm=drove, history_days=context.settings.history_days,
        ),
        inspection_id=request["inspection_id"],
        requested_by=request["requested_by"],
        created_at=request["created_at"],
        request=prompts.sanitise(request["text"]),
        judge=Judge(
            model=driver.model if driver else None,
            via=driver.via if driver else "fallback",
            url=driver.url if driver else None,
            reason=state.get("fallback_reason") or None,
        ),
        tool_trace=[ToolCall.model_validate(step) for step in state["trace"]],
        timings_ms={
            k: round(v, 1) for k, v in (state["timings_ms"] | context.tools.canonical.comparison.timings_ms).items()
        },
        artefacts=artefacts_of(request["inspection_id"]),
        software=Software(
            version=software_version(),
            weights_sha256=software_fingerprint(workspace, network),
            weights=weights_in_use(workspace, network) | (driver.weights if driver else {}),
        ),
    )  # fmt: skip
    return {"report": report.model_dump(mode="json")}


@telemetry.step("filing")
def file_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """Draw, write and file exactly once, before any person is asked."""
    context = runtime.context
    context.tools.capture_in(evidence_of(state["evidence"]))
    # an earlier version may have begun it, and named absolute paths
    artefacts = artefacts_of(state["request"]["inspection_id"])
    report = file_report(context, DefectReport.model_validate(state["report"] | {"artefacts": artefacts}))
    context.emit(AgentEvent("filed", f"{report.inspection_id}: {report.verdict}"))
    return {"report": report.model_dump(mode="json")}


def review_node(state: InspectionState) -> dict[str, Any]:
    """Wait for a person's disposition, for days if necessary; the filed report is never rewritten."""
    report = state["report"]
    if report["verdict"] != Verdict.REVIEW:
        return {}
    return {"disposition": interrupt({"inspection_id": report["inspection_id"], "reason": report["verdict_reason"]})}
