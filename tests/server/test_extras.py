"""A missing optional dependency is named with its install command before anything else happens."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from refdiff.model.errors import UnavailableError
from refdiff.server.chat.bots import bots
from refdiff.server.cli import main
from refdiff.server.extras import require_extra
from refdiff.server.settings import ChatSettings, ServerSettings
from refdiff.server.web.identity_provider import IdentityProvider

MISSING = {
    "slack": ("slack_bolt", "Slack needs an extra package: pip install 'refdiff[slack]'"),
    "teams": ("microsoft_teams", "Teams needs an extra package: pip install 'refdiff[teams]'"),
    "mcp": ("mcp", "MCP needs an extra package: pip install 'refdiff[mcp]'"),
    "oidc": ("authlib", "Sign-in with an identity provider needs an extra package: pip install 'refdiff[oidc]'"),
    "telemetry": ("opentelemetry.sdk", "Exporting traces needs an extra package: pip install 'refdiff[telemetry]'"),
    "train": ("matplotlib", "Training needs an extra package: pip install 'refdiff[train]'"),
}


@pytest.fixture(params=MISSING)
def missing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """An extra whose module is not installed, and the message."""
    module, message = MISSING[request.param]
    monkeypatch.setattr("refdiff.server.extras.find_spec", lambda name: None if name == module else find_spec(name))
    return request.param, message


def test_missing_extra_is_named_with_its_install_command(missing: tuple[str, str]) -> None:
    extra, message = missing
    with pytest.raises(UnavailableError) as error:
        require_extra(extra)  # type: ignore[arg-type]
    assert str(error.value) == message


def test_installed_extras_raise_nothing() -> None:
    for extra in MISSING:
        require_extra(extra)  # type: ignore[arg-type]


def test_command_or_bot_without_its_extra_stops_with_the_message(
    missing: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    extra, message = missing
    commands = {
        "mcp": ["mcp"],
        "train": ["train", "difference", "--json"],
    }
    secrets: dict[str, Any] = {
        "slack": {"slack_bot_token": "xoxb-1", "slack_signing_secret": "s"},
        "teams": {"teams_client_id": "id", "teams_client_secret": "s"},
    }
    if extra == "telemetry":
        return  # the server starts and says so: test_telemetry.py
    if extra == "oidc":
        with pytest.raises(UnavailableError) as error:
            IdentityProvider(ServerSettings(oidc_issuer="https://login.example.com", oidc_client_id="r"))
        assert str(error.value) == message
        return
    if extra in commands:
        assert main.run(commands[extra]) == 69
        assert message in capsys.readouterr().err
        return
    nothing: Any = SimpleNamespace()
    with pytest.raises(UnavailableError) as error, bots(nothing, nothing, ChatSettings(**secrets[extra])):
        pass
    assert str(error.value) == message
