"""The agent's graph: the driver calls tools until it submits, then code verifies, decides and files.

agent -> tools -> record -+-> agent          (until submit_report)
                          +-> verify -+-> agent   (unsupported claims, once)
                                      +-> read -> decide -> file -> review (interrupt) -> end

LangGraph runs it where a model drives, with a checkpoint after each node. The script needs none of them: `run_script` takes
the same way in a twentieth of the time between nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal, get_type_hints

from langchain_core.messages import AIMessage, ToolCall, ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode, ToolRuntime
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.runtime import Runtime
from langgraph.types import Command

from refdiff.agent import telemetry
from refdiff.agent.context import AgentContext
from refdiff.agent.nodes import (
    agent_node,
    decide_node,
    file_node,
    read_node,
    record_node,
    review_node,
    tool_error,
    verify_node,
)
from refdiff.agent.state import InspectionState
from refdiff.tools.registry import TOOLS


def _after_agent(state: InspectionState) -> Literal["tools", "agent"]:
    last = state["messages"][-1]
    return "tools" if isinstance(last, AIMessage) and last.tool_calls else "agent"


def _after_record(state: InspectionState) -> Literal["verify", "agent"]:
    return "verify" if state.get("draft") is not None else "agent"


def _after_verify(state: InspectionState) -> Literal["read", "agent"]:
    return "read" if state.get("draft") is not None else "agent"


_AFTER: dict[str, str | Callable[[InspectionState], str]] = {
    "agent": _after_agent,
    "tools": "record",
    "record": _after_record,
    "verify": _after_verify,
    "read": "decide",
    "decide": "file",
    "file": "review",
    "review": END,
}


def build_graph(checkpointer: BaseCheckpointSaver[Any] | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(InspectionState, context_schema=AgentContext)
    graph.add_node("agent", agent_node)
    graph.add_node("tools", ToolNode(TOOLS, handle_tool_errors=tool_error, wrap_tool_call=_spanned))
    graph.add_node("record", record_node)
    graph.add_node("verify", verify_node)
    graph.add_node("read", read_node)
    graph.add_node("decide", decide_node)
    graph.add_node("file", file_node)
    graph.add_node("review", review_node)
    graph.add_edge(START, "agent")
    for name, after in _AFTER.items():
        if isinstance(after, str):
            graph.add_edge(name, after)
        else:
            graph.add_conditional_edges(name, after)
    return graph.compile(checkpointer=checkpointer)


def _spanned(request: ToolCallRequest, run: Callable[[ToolCallRequest], ToolMessage | Command[Any]]) -> Any:
    known = request.tool is not None  # else the name is what a model wrote
    with telemetry.span(f"tool {request.tool_call['name']}" if known else "tool unknown"):
        answer = run(request)
        if isinstance(answer, ToolMessage) and answer.status == "error":  # of which kind, LangGraph does not tell
            telemetry.mark_failed("_OTHER")
        return answer


def run_script(state: Mapping[str, Any], context: AgentContext) -> None:
    """Run an inspection that the script drives, from its first state until it is filed.

    What a crash interrupts is run again from there. A REVIEW ends too: whoever decides it finds it in the store.
    """
    runtime = Runtime(context=context)
    nodes: dict[str, Callable[..., Mapping[str, Any]]] = {
        "agent": agent_node,
        "tools": _tools_node,
        "record": record_node,
        "verify": verify_node,
        "read": read_node,
        "decide": decide_node,
        "file": file_node,
    }
    now, name = _updated({}, state), "agent"
    while name in nodes:
        now = _updated(now, nodes[name](now, runtime))
        after = _AFTER[name]
        name = after if isinstance(after, str) else after(now)


def _tools_node(state: InspectionState, runtime: Runtime[AgentContext]) -> dict[str, Any]:
    """As LangGraph's ToolNode, of calls that need no validation: they are our own."""
    last = state["messages"][-1]
    assert isinstance(last, AIMessage)
    return {"messages": [_answer(call, state, runtime.context) for call in last.tool_calls]}


def _answer(call: ToolCall, state: InspectionState, context: AgentContext) -> ToolMessage:
    tools: dict[str, Any] = {t.name: t for t in TOOLS}
    runtime = ToolRuntime(state, context, {}, lambda _: None, call["id"], None)
    try:
        with telemetry.span(f"tool {call['name']}"):
            content, artifact = tools[call["name"]].func(**call["args"], runtime=runtime)
    except Exception as e:
        return ToolMessage(tool_error(e), name=call["name"], tool_call_id=call["id"], status="error")
    return ToolMessage(content, artifact=artifact, name=call["name"], tool_call_id=call["id"])


def _updated(state: Any, update: Mapping[str, Any]) -> Any:
    """The state after a node, as LangGraph combines them."""
    combine = _reducers()
    return {**state, **{k: combine[k](state.get(k) or type(v)(), v) if k in combine else v for k, v in update.items()}}


@cache
def _reducers() -> dict[str, Callable[[Any, Any], Any]]:
    hints = get_type_hints(InspectionState, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
