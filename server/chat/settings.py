"""Settings of the chat bots. Platforms' own usual names for their secrets; all else with the prefix `REFDIFF_`."""

from __future__ import annotations

from typing import Any

from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ChatSettings(BaseSettings):
    """Explicit argument > environment > `.env` > default. A bot whose secrets are missing is off."""

    model_config = SettingsConfigDict(env_prefix="REFDIFF_", env_file=".env", extra="ignore", populate_by_name=True)

    public_url: str | None = Field(
        default=None, description="Where people reach the review page, for links in answers."
    )

    slack_bot_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SLACK_BOT_TOKEN", "REFDIFF_SLACK_BOT_TOKEN")
    )
    slack_signing_secret: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SLACK_SIGNING_SECRET", "REFDIFF_SLACK_SIGNING_SECRET")
    )
    slack_app_token: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("SLACK_APP_TOKEN", "REFDIFF_SLACK_APP_TOKEN"),
        description="For Socket Mode: no address on the internet is needed then.",
    )
    slack_api_url: str = Field(default="https://slack.com/api/", description="Slack's Web API, or what stands for it.")
    slack_deciders: str = Field(
        default="", description="Ids of users who may accept and override, separated by commas; * for all."
    )

    teams_client_id: str | None = Field(default=None, description="Application id of the bot's registration.")
    teams_client_secret: SecretStr | None = Field(default=None)
    teams_tenant_id: str | None = Field(default=None)
    teams_deciders: str = Field(
        default="", description="Entra object ids of users who may accept and override, separated by commas; * for all."
    )

    @property
    def called_from_outside(self) -> bool:
        """Whether a platform or people reach this server from other machines: through a proxy, if it is on loopback."""
        return any((self.public_url, self.slack_signing_secret, self.teams_client_id, self.teams_client_secret))

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: Any, info: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            return cls.model_fields[info.field_name].get_default()
        return value


def may_decide(deciders: str, user: str) -> bool:
    """Is a user on the list? Nobody is on an empty one."""
    named = {d.strip() for d in deciders.split(",") if d.strip()}
    return bool(user) and ("*" in named or user in named)
