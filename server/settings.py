"""Settings of the ways in. Environment prefix `REFDIFF_`, `.env` honoured."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from refdiff.model.errors import RefDiffError

S = TypeVar("S", bound=BaseSettings)


class ConfigurationError(RefDiffError):
    """A setting from the environment or `.env` cannot be used: a mistake in how the command was called."""

    exit_code = 64


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # containers run as users without a name
        return "unknown"


class ServerSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = SettingsConfigDict(env_prefix="REFDIFF_", env_file=".env", extra="ignore")

    user: str = Field(
        default_factory=_login_name,
        min_length=1,
        max_length=128,
        description="Who enrols, asks and decides; written into reports.",
    )
    http_max_bytes: int = Field(
        default=128_000_000, ge=1_000_000, description="Largest body of an HTTP request, in bytes."
    )
    rate_per_minute: int = Field(
        default=1200, ge=0, description="HTTP requests a minute of one key, or one address without a key; 0: no limit."
    )
    require_key: bool = Field(default=False, description="Ask for an API key on loopback addresses too.")
    allowed_hosts: list[str] = Field(
        default=[], description='Further names of a server on loopback, behind a proxy, as JSON: ["qa.example.com"].'
    )
    mcp_token: SecretStr | None = Field(
        default=None, min_length=16, description="What callers of `refdiff mcp --http` must send."
    )
    webhook_secret: SecretStr | None = Field(default=None, description="What `refdiff watch --webhook` signs with.")
    vllm_python: Path | None = Field(
        default=None, description="Python of an environment with vLLM; default: .venv-vllm as `make vllm` makes it."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Lines of the log that go to stderr."
    )


def load(kind: type[S], **explicit: Any) -> S:
    """Settings of one room; None among `explicit` means "not given". Raises ConfigurationError naming the setting."""
    try:
        return kind(**{name: value for name, value in explicit.items() if value is not None})
    except ValidationError as e:
        problems = "; ".join(
            f"{_variable(p['loc'])}={_short(p['input'])}: {p['msg'].lower()}" for p in e.errors(include_url=False)
        )
        raise ConfigurationError(f"setting {problems}; correct the environment or the file .env") from e
    except (SettingsError, OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"the settings in the environment or the file .env cannot be read: {e}") from e


def _variable(place: tuple[int | str, ...]) -> str:
    name = ".".join(map(str, place)) or "?"
    return name.upper() if name.upper().startswith(("REFDIFF_", "QDRANT_")) else f"REFDIFF_{name.upper()}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
