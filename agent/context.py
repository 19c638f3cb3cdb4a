"""Run-time dependencies of a run; never checkpointed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refdiff.agent.drivers.driver import Driver
from refdiff.agent.events import AgentEvent
from refdiff.agent.settings import AgentSettings
from refdiff.tools.context import ToolContext


@dataclass(init=False)  # LangGraph requires a dataclass here; the fields are set below
class AgentContext(ToolContext):
    """The tools' workbench plus the agent's own settings, who drives (None: the script) and listener."""

    def __init__(
        self,
        bench: ToolContext,
        settings: AgentSettings,
        driver: Driver | None,
        emit: Callable[[AgentEvent], None],
    ) -> None:
        super().__init__(
            bench.workspace,
            bench.part_id,
            bench.product,
            bench.features,
            bench.inspect,
            bench.compare,
            bench.capture_id,
        )
        self.settings = settings
        self.driver = driver
        self.emit = emit
