"""Settings of the inspection path. Environment prefix `REFDIFF_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from refdiff.model.settings import ENVIRONMENT


class ToolsSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = ENVIRONMENT

    references: int = Field(default=4, ge=1, le=16, description="Goldens (K) that a photo is compared with.")
    alpha: float = Field(default=0.01, gt=0, lt=0.5, description="False-reject rate asked for when calibrating.")
    auto_fit: bool = Field(
        default=True,
        description="Whether `refdiff serve` fits networks to products by itself, while it has nothing else to do.",
    )
    name_precision: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of right names, among findings that are given the name of a named defect, that is asked for.",
    )
