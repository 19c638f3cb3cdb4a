"""Run-time dependencies of a run; never checkpointed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refdiff.agent.drivers.driver import Driver
from refdiff.agent.events import AgentEvent
from refdiff.agent.settings import AgentSettings
from refdiff.tools.context import ToolContext


@dataclass(frozen=True)
class AgentContext:
    tools: ToolContext  # the inspection in the making, shared with the tools
    settings: AgentSettings
    driver: Driver | None  # who calls the tools; None: the script
    emit: Callable[[AgentEvent], None]  # shows progress
    draws: bool = True  # the report's files are written when it is filed; else they are drawn when somebody asks
