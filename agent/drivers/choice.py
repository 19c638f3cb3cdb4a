"""Which chat model drives, by the settings and what is built on this machine."""

from __future__ import annotations

from collections.abc import Callable

from refdiff.agent.drivers.driver import Driver
from refdiff.agent.drivers.embedded import EmbeddedDriver
from refdiff.agent.events import AgentEvent
from refdiff.agent.report import pictures
from refdiff.agent.settings import AgentSettings
from refdiff.model.errors import StorageError
from refdiff.model.images import data_url
from refdiff.model.language.folder import is_built, model_folder, unfit
from refdiff.tools.workspace import Workspace


def choose_driver(
    workspace: Workspace, settings: AgentSettings, emit: Callable[[AgentEvent], None]
) -> tuple[Driver | None, str]:
    """The chat model and "", or None and why only the scripted driver is available."""

    def picture_url(sha256: str) -> str:
        """A picture as a data URL, its long side at most `llm_image_px`."""
        return data_url(pictures.page_image(workspace.picture(sha256), settings.llm_image_px))

    if settings.llm == "off":
        return None, "the language model is switched off by REFDIFF_LLM"
    if settings.llm_base_url:
        from refdiff.agent.drivers.endpoint import EndpointDriver  # its client loads in seconds

        return EndpointDriver(settings, picture_url), ""
    model = workspace.model_settings
    try:
        if reason := unfit(model):
            return None, reason
        folder = model_folder(model)
        if not is_built(folder):
            return None, "the embedded model is not built yet; build it: refdiff model build"
        return EmbeddedDriver(folder, workspace.picture, model.threads), ""
    except StorageError as e:  # reported as the reason for the fallback; a broken model must never stop a line
        emit(AgentEvent("fallback", str(e)))
        return None, "the embedded model is unreadable; rebuild it: refdiff model build --again"
