"""Settings of the agent. Environment prefix `REFDIFF_`; explicit argument > environment > default."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from refdiff.model.settings import ENVIRONMENT


class AgentSettings(BaseSettings):
    model_config = ENVIRONMENT

    llm: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: the endpoint if one is set, else the embedded model; off: the scripted driver only.",
    )
    llm_base_url: str | None = Field(default=None, description="OpenAI-compatible endpoint, e.g. http://host:8001/v1.")
    llm_model: str = Field(default="refdiff", description="Model name at the endpoint.")
    llm_api_key: SecretStr | None = Field(default=None, description="Key of the endpoint.")
    llm_timeout_s: float = Field(default=60.0, gt=0, description="Longest wait for one answer of the endpoint.")
    llm_retries: int = Field(default=2, ge=0, le=10, description="Further tries after a failed call.")
    llm_images: bool = Field(default=True, description="Show image pairs to the model.")
    llm_image_px: int = Field(default=512, ge=64, le=2048, description="Long side of posted images.")
    llm_max_tokens: int = Field(
        default=1024, ge=128, le=65536, description="Longest answer; models that think first need more."
    )
    llm_extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of every request to the endpoint, as JSON."
    )
    max_steps: int = Field(
        default=16, ge=6, le=64, description="LLM calls per inspection before the script takes over."
    )
    checkpoint_url: SecretStr | None = Field(
        default=None,
        description="postgresql://... for checkpoints; default: with the records (REFDIFF_DATABASE_URL), or in SQLite.",
    )

    queue_limit: int = Field(
        default=100, ge=1, le=100_000, description="Inspections that may wait in the queue; more are refused for now."
    )
    lease_s: float = Field(
        default=30.0, ge=1, le=3600,
        description="Seconds without a sign of life of a worker after which another one takes its inspection over.",
    )  # fmt: skip
    hang_s: float = Field(
        default=900.0, ge=1, le=86_400,
        description="Seconds for one step of an inspection, calibration, enrolment, export or fit after which it hangs.",
    )  # fmt: skip
    blind_share: float = Field(
        default=0.02, ge=0, le=1, description="Share of inspections that a person judges blind (REFDIFF_BLIND_SHARE)."
    )
    history_days: int = Field(
        default=30, ge=1, le=3660, description="How long a confirmed defect is remembered, in days."
    )

    @property
    def longest_step_s(self) -> float:
        """`hang_s`, and in any case more than an endpoint may take for one answer."""
        asks = self.llm != "off" and self.llm_base_url is not None
        return max(self.hang_s, 2 * self.llm_timeout_s * (1 + self.llm_retries)) if asks else self.hang_s
