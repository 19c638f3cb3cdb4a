"""Parts of the server whose packages are optional: `pip install 'refdiff[slack]'` and the like."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

from refdiff.model.errors import UnavailableError

# by extra: what needs it, and a module that only its packages bring
_EXTRAS = {
    "slack": ("Slack", "slack_bolt"),
    "teams": ("Teams", "microsoft_teams"),
    "mcp": ("MCP", "mcp"),
    "oidc": ("Sign-in with an identity provider", "authlib"),
    "telemetry": ("Exporting traces", "opentelemetry.sdk"),
    "train": ("Training", "matplotlib"),
}


def require_extra(extra: Literal["slack", "teams", "mcp", "oidc", "telemetry", "train"]) -> None:
    """Raises UnavailableError, with what to install, where the packages of an extra are missing."""
    what, module = _EXTRAS[extra]
    if find_spec(module) is None:
        raise UnavailableError(f"{what} needs an extra package: pip install 'refdiff[{extra}]'")
