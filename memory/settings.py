"""Where the stores live. Environment prefix `REFDIFF_`, plus Qdrant's own usual names; `.env` honoured."""

from __future__ import annotations

from pathlib import Path

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class MemorySettings(BaseSettings):
    """Where the stores live and how to open them. An explicit argument beats the environment, which beats the default."""

    model_config = SettingsConfigDict(env_prefix="REFDIFF_", env_file=".env", extra="ignore", populate_by_name=True)

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("refdiff")),
        description="Folder of everything that must be kept (REFDIFF_HOME).",
    )
    qdrant_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("QDRANT_URL", "REFDIFF_QDRANT_URL"),
        description="Qdrant server or cluster; without it the golden bank is embedded under `home`.",
    )
    qdrant_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("QDRANT_API_KEY", "REFDIFF_QDRANT_API_KEY"),
        description="API key of the Qdrant server.",
    )
    bank_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="How long to wait for another process that holds the embedded bank, in s.",
    )

    audit_key: SecretStr | None = Field(
        default=None,
        description="Secret that seals audit exports; kept away from the machine that files (REFDIFF_AUDIT_KEY).",
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        # a later chdir must not move the stores
        return home.expanduser().absolute()

    @field_validator("qdrant_url", "qdrant_api_key", "audit_key", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        # `QDRANT_URL= refdiff ...` is how a shell user switches back to the embedded bank
        return None if isinstance(value, str) and not value.strip() else value
