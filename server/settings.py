"""Settings of the server and its chat bots, and the one loader of all settings. Environment prefix `REFDIFF_`, or the
platforms' own names for their secrets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsError

from refdiff.agent.settings import AgentSettings
from refdiff.memory.kinds import Role
from refdiff.memory.settings import MemorySettings, login_name
from refdiff.model.errors import RefDiffError
from refdiff.model.settings import ENVIRONMENT, ModelSettings
from refdiff.tools.exported.signing import ExportSettings
from refdiff.tools.settings import ToolsSettings

S = TypeVar("S", bound=BaseSettings)


class ConfigurationError(RefDiffError):
    """A setting from the environment or a file is invalid. A usage error: exit code 64."""

    exit_code = 64


class ServerSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = ENVIRONMENT

    user: str = Field(
        default_factory=login_name,
        min_length=1,
        max_length=128,
        description="Name of the person who enrols, asks and decides; appears in reports.",
    )
    http_max_bytes: int = Field(
        default=128_000_000, ge=1_000_000, description="Largest body of an HTTP request, in bytes."
    )
    rate_per_minute: int = Field(
        default=1200, ge=0, description="HTTP requests a minute of one key, or one address without a key; 0: no limit."
    )
    bytes_per_minute: int = Field(
        default=2_000_000_000,
        ge=0,
        description="Bytes of photos a minute of one key, or one address without a key; 0: no limit.",
    )
    require_key: bool = Field(default=False, description="Forbid `refdiff serve --without-keys`.")
    allowed_hosts: list[str] = Field(
        default=[], description='Other names of a loopback server behind a proxy, as JSON: ["qa.example.com"].'
    )
    oidc_issuer: str | None = Field(
        default=None, description="OpenID Connect provider that people sign in with: its issuer, an https address."
    )
    oidc_client_id: str | None = Field(default=None, description="What the provider calls this server.")
    oidc_client_secret: SecretStr | None = Field(default=None, description="Secret of that client; none: PKCE alone.")
    oidc_scope: str = Field(
        default="openid profile email", pattern=r"^(.* )?openid( .*)?$", description="What is asked of the provider."
    )
    oidc_name_claim: str = Field(
        default="name", min_length=1, description="Claim with the person's name, which appears in reports."
    )
    oidc_role_claim: str = Field(
        default="roles",
        min_length=1,
        description="Claim with the person's roles; dots lead inside: realm_access.roles.",
    )
    oidc_roles: dict[str, Role] = Field(
        default={}, description='Values of that claim and what they may do, as JSON: {"qa": "inspector"}.'
    )
    oidc_session_h: float = Field(default=10, gt=0, le=168, description="How long somebody stays signed in, in hours.")
    mcp_token: SecretStr | None = Field(
        default=None, min_length=16, description="Token that callers of `refdiff mcp --http` must send."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="Secret that signs the messages of `refdiff watch --webhook`."
    )
    vllm_python: Path | None = Field(
        default=None, description="Python of an environment with vLLM; default: .venv-vllm, made by `make vllm`."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="WARNING", description="Lowest level that is logged to stderr."
    )


class ChatSettings(BaseSettings):
    """Explicit argument > environment > default. A bot whose secrets are missing is off."""

    model_config = ENVIRONMENT

    public_url: str | None = Field(default=None, description="Public address of the review page, for links in answers.")

    slack_bot_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SLACK_BOT_TOKEN", "REFDIFF_SLACK_BOT_TOKEN")
    )
    slack_signing_secret: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SLACK_SIGNING_SECRET", "REFDIFF_SLACK_SIGNING_SECRET")
    )
    slack_app_token: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("SLACK_APP_TOKEN", "REFDIFF_SLACK_APP_TOKEN"),
        description="For Socket Mode, which needs no public address.",
    )
    slack_api_url: str = Field(default="https://slack.com/api/", description="Address of Slack's Web API.")
    slack_deciders: str = Field(
        default="", description="Ids of users who may accept and override, separated by commas; * for all."
    )
    slack_readers: str = Field(
        default="",
        description="Ids of users, or of workspaces, who may ask and read, separated by commas; * for all; default: the "
        "members of the bot's own workspace.",
    )

    teams_client_id: str | None = Field(default=None, description="Application id of the registered bot.")
    teams_client_secret: SecretStr | None = Field(default=None)
    teams_tenant_id: str | None = Field(default=None)
    teams_deciders: str = Field(
        default="", description="Entra object ids of users who may accept and override, separated by commas; * for all."
    )


@dataclass(frozen=True)
class Settings:
    """The settings of every room, read together."""

    model: ModelSettings
    memory: MemorySettings
    tools: ToolsSettings
    agent: AgentSettings
    server: ServerSettings
    chat: ChatSettings
    export: ExportSettings

    @property
    def behind_a_proxy(self) -> str | None:
        """The setting that says that a server on loopback is called from elsewhere too; None if none does."""
        said = {
            "REFDIFF_REQUIRE_KEY": self.server.require_key,
            "REFDIFF_ALLOWED_HOSTS": self.server.allowed_hosts,
            "REFDIFF_PUBLIC_URL": self.chat.public_url,
            "REFDIFF_OIDC_ISSUER": self.server.oidc_issuer,
            "SLACK_SIGNING_SECRET": self.chat.slack_signing_secret,
            "REFDIFF_TEAMS_CLIENT_ID": self.chat.teams_client_id,
            "REFDIFF_TEAMS_CLIENT_SECRET": self.chat.teams_client_secret,
        }
        return next((name for name, value in said.items() if value), None)


def load_settings(**explicit: Any) -> Settings:
    """Read the environment. explicit: values of fields, by field name, that win over it; None means "not given".

    Raises ConfigurationError naming the variable, for any room.
    """
    given = {name: value for name, value in explicit.items() if value is not None}
    return Settings(
        model=_load(ModelSettings, given),
        memory=_load(MemorySettings, given),
        tools=_load(ToolsSettings, given),
        agent=_load(AgentSettings, given),
        server=_load(ServerSettings, given),
        chat=_load(ChatSettings, given),
        export=_load(ExportSettings, given),
    )


def _load(kind: type[S], given: dict[str, Any]) -> S:
    try:
        return kind(**{name: value for name, value in given.items() if name in kind.model_fields})
    except ValidationError as e:
        problems = "; ".join(_problem(kind, p) for p in e.errors(include_url=False))
        # the validator's own message shows the values, secrets too
        raise ConfigurationError(f"setting {problems}; correct the environment or the file of settings") from None
    except (SettingsError, OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"the settings in the environment cannot be read: {e}") from e


def _problem(kind: type[BaseSettings], error: ErrorDetails) -> str:
    """One invalid setting in words; a secret's value is not shown."""
    variable, why = _variable(error["loc"]), error["msg"].lower()
    if _is_secret(kind, str(error["loc"][0])):
        return f"{variable}: {why.replace('items', 'characters')}"
    return f"{variable}={_short(error['input'])}: {why}"


def _is_secret(kind: type[BaseSettings], name: str) -> bool:
    """Whether a field, by its own name or an alias, holds a secret."""
    for own, field in kind.model_fields.items():
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [alias]
        if name in (own, *names):
            return "Secret" in str(field.annotation)
    return True  # unknown: rather say too little


def _variable(place: tuple[int | str, ...]) -> str:
    name = ".".join(map(str, place)) or "?"
    return name.upper() if name.upper().startswith(("REFDIFF_", "QDRANT_")) else f"REFDIFF_{name.upper()}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
