"""One run of the command: its settings, loaded once, what it opens with them, and whether it answers in JSON."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.server.env_files import read_env_files
from refdiff.server.logs import keep_addresses_out
from refdiff.server.settings import Settings, load_settings

if TYPE_CHECKING:  # torch loads in seconds: only commands that look at photos pay for it; databases in a tenth of one
    from refdiff.memory.stores import Stores
    from refdiff.tools.workspace import Workspace


@dataclass
class Invocation:
    as_json: bool = False
    emitted: bool = False  # the one document on stdout is written
    options: dict[str, Any] = field(default_factory=dict)  # settings given on the command line
    env_file: Path | None = None  # settings file named on the command line or by REFDIFF_ENV_FILE
    settings: Settings | None = None
    new_home: Path | None = None  # made by this run, which was to look at its records: perhaps misspelt
    goes_on: str = ""  # how, after Ctrl-C
    runs_long: bool = False  # for hours: what is slower to start and faster then pays


_current: ContextVar[Invocation] = ContextVar("invocation")


@contextlib.contextmanager
def begin(as_json: bool) -> Iterator[Invocation]:
    """Make a new invocation the current one."""
    token = _current.set(Invocation(as_json))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def current() -> Invocation:
    return _current.get()


def settings(**options: Any) -> Settings:
    """The settings of this run, loaded at the first call; `--help` needs none.

    options: values given on the command line, by field name; they win over the environment, and None means "not given".
    Raises ConfigurationError.
    """
    invocation, given = current(), {name: value for name, value in options.items() if value is not None}
    if invocation.settings is None or given:
        invocation.options |= given
        read_env_files(invocation.env_file)
        if invocation.runs_long and not os.environ.get("REFDIFF_ENGINE"):
            invocation.options["engine"] = "auto"
        invocation.settings = load_settings(**invocation.options)
        _set_up_logging(invocation.settings.server.log_level)
    return invocation.settings


def _set_up_logging(level: str) -> None:
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    keep_addresses_out()
    if level != "DEBUG":
        warnings.simplefilter("ignore")  # of libraries, for their developers


def open_stores() -> Stores:
    from refdiff.memory.stores import Stores

    home = settings().memory.home
    is_new = not home.exists()
    stores = Stores.open(settings().memory)
    if is_new:
        current().new_home = home.absolute()
    return stores


def open_workspace(*, shared: bool = False, **options: Any) -> Workspace:
    """shared: beside servers and workers, see `Workspace.open`. options: as of `settings` (references, alpha, threads)."""
    chosen = settings(**options)
    from refdiff.tools.workspace import Workspace

    return Workspace.open(memory=chosen.memory, model=chosen.model, tools=chosen.tools, shared=shared)
