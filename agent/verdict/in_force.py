"""The settings and weights that verdicts depend on, as the audit chain records them."""

from __future__ import annotations

from typing import Any

from refdiff.agent.drivers.driver import Driver
from refdiff.agent.settings import AgentSettings
from refdiff.model.settings import software_version
from refdiff.tools.inspection.calibration import weights_in_use
from refdiff.tools.workspace import Workspace


def settings_in_force(workspace: Workspace, settings: AgentSettings, driver: Driver | None) -> dict[str, Any]:
    """Everything besides goldens, calibration and specification that can turn one verdict into another; no secrets.

    driver: the language model that drives, None for the script.
    """
    tools, model = workspace.settings, workspace.model_settings
    return {
        "software": software_version(),
        "weights": weights_in_use(workspace) | (driver.weights if driver else {}),
        "working_px": model.working_px,
        "tiles": model.tiles,
        "references": tools.references,
        "alpha": tools.alpha,
        "alpha_over_calibration": "alpha" in tools.model_fields_set,
        "blind_share": settings.blind_share,
        "language_model": None
        if driver is None
        else {
            "model": driver.model, "via": driver.via, "address": driver.url,
            "images": settings.llm_images, "image_px": settings.llm_image_px, "max_tokens": settings.llm_max_tokens,
            "max_steps": settings.max_steps,
        },
    }  # fmt: skip
