"""The agent's graph: the driver calls tools until it submits, then code verifies, decides and files.

agent -> tools -> record -+-> agent          (until submit_report)
                          +-> verify -+-> agent   (unsupported claims, once)
                                      +-> read -> decide -> file -> review (interrupt) -> end
"""

from __future__ import annotations

from typing import Any, Literal

from langchain_core.messages import AIMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode

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


def build_graph(checkpointer: BaseCheckpointSaver[Any] | None = None) -> CompiledStateGraph[Any, Any, Any, Any]:
    graph = StateGraph(InspectionState, context_schema=AgentContext)
    graph.add_node("agent", agent_node)
    graph.add_node("tools", ToolNode(TOOLS, handle_tool_errors=tool_error))
    graph.add_node("record", record_node)
    graph.add_node("verify", verify_node)
    graph.add_node("read", read_node)
    graph.add_node("decide", decide_node)
    graph.add_node("file", file_node)
    graph.add_node("review", review_node)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", _after_agent)
    graph.add_edge("tools", "record")
    graph.add_conditional_edges("record", _after_record)
    graph.add_conditional_edges("verify", _after_verify)
    graph.add_edge("read", "decide")
    graph.add_edge("decide", "file")
    graph.add_edge("file", "review")
    graph.add_edge("review", END)
    return graph.compile(checkpointer=checkpointer)
