"""Settings of a device. Environment prefix `REFDIFF_`."""

from __future__ import annotations

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from refdiff.model.settings import ENVIRONMENT


class DeviceSettings(BaseSettings):
    """Explicit argument > environment > default."""

    model_config = ENVIRONMENT

    api_key: SecretStr | None = Field(default=None, description="Key by which `refdiff-edge watch` sends to a server.")
