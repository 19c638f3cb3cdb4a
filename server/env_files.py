"""Files of settings: read only where somebody named them, never because they lie in some folder.

Settings decide where photos and keys go and which programs run, so a `.env` in the working folder and a home folder that
somebody supplied have no say.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
from dotenv import dotenv_values

from refdiff.server.settings import ConfigurationError

_PREFIXES = ("REFDIFF_", "QDRANT_", "SLACK_", "OTEL_")
_MAX_BYTES = 1_000_000


def own_file() -> Path:
    """The user's own file of settings, read if it is there."""
    return platformdirs.user_config_path("refdiff") / "settings.env"


def read_env_files(named: Path | None = None) -> None:
    """Put the settings of `named` and of the user's own file into the environment, where it has none of that name.

    Raises ConfigurationError if `named` is missing, or a file cannot be read.
    """
    if named is not None and not named.is_file():
        raise ConfigurationError(f"settings file {named}: no such file; correct --env-file or REFDIFF_ENV_FILE")
    for file in (named, own_file()):
        if file is not None and file.is_file():
            for name, value in _settings_in(file).items():
                os.environ.setdefault(name, value)


def unread_file(named: Path | None = None) -> Path | None:
    """A `.env` in the working folder that holds settings of refdiff and is not read; None if there is none."""
    file = Path(".env")
    try:
        ours = file.is_file() and file.stat().st_size <= _MAX_BYTES and _settings_in(file)
        return file if ours and not (named is not None and named.exists() and file.samefile(named)) else None
    except (OSError, ConfigurationError):
        return None


def _settings_in(file: Path) -> dict[str, str]:
    try:
        found = dotenv_values(file, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(f"settings file {file}: cannot be read ({e})") from e
    return {k.upper(): v for k, v in found.items() if v is not None and k.upper().startswith(_PREFIXES)}
